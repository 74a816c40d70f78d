"""The guarantee of `max_drop` in words. Reads the dictionary of `summary.json`. Pure: no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.report.tables import DASH, format_points, part_of, records_of
from amc.report.words import format_allowance


@dataclass(frozen=True, slots=True)
class Verdict:
    """The guarantee as text."""

    badge: str
    sentence: str
    confirmed: bool


def guarantee_verdict(summary: Mapping[str, Any]) -> Verdict | None:
    """Whether the allowed loss is confirmed, in one sentence; None for a run without a guarantee."""
    guarantee = part_of(summary, "guarantee")
    if not guarantee:
        return None
    allowed = guarantee.get("max_drop")
    allowance = format_allowance(allowed) if isinstance(allowed, int | float) else DASH
    confirmed, sentence = bool(guarantee.get("confirmed")), _sentence(guarantee, allowance)
    if part_of(summary, "slim").get("score_finetuned") is not None:
        sentence += " This was measured before fine-tuning."
    word = "confirmed" if confirmed else "not confirmed"
    return Verdict(f"loss of at most {allowance}: {word}", sentence, confirmed)


def guaranteed_episode(summary: Mapping[str, Any]) -> int | None:
    """The last episode with a confirmed loss, else that with the smallest upper bound; None without a guarantee."""
    trials = records_of(part_of(summary, "guarantee").get("trials"))
    if not trials:
        return None
    confirmed = [trial for trial in trials if trial.get("confirmed")]
    chosen = confirmed[-1] if confirmed else min(trials, key=lambda trial: trial.get("upper") or 0.0)
    return chosen.get("episode")


def _sentence(guarantee: Mapping[str, Any], allowance: str) -> str:
    confirmed = bool(guarantee.get("confirmed"))
    lost = _lost(guarantee.get("drop"))
    if guarantee.get("images") is None:
        return (
            f"Not confirmed: the score is the user's own, so there are no other images to confirm it on; by that score "
            f"the network {lost}, with {allowance} allowed."
        )
    confidence = guarantee.get("confidence")
    sure = f" (confidence {confidence:.0%})" if isinstance(confidence, int | float) else ""
    text = (
        f"{'Confirmed' if confirmed else 'Not confirmed'}: on {guarantee['images']:,} images that the search never "
        f"scored the network {lost}, at most {format_points(guarantee.get('upper'))}{sure}; {allowance} allowed."
    )
    tried = len(guarantee.get("trials") or ())
    if not confirmed:
        text += f" Of {tried} candidates tried it is the best supported." if tried > 1 else ""
    return text


def _lost(drop: Any) -> str:
    if not isinstance(drop, int | float):
        return "loses an unknown amount"
    return f"gains {format_points(-drop)}" if drop < 0 else f"loses {format_points(drop)}"
