"""The finalists of a search in words. Reads the dictionary of `summary.json`. Pure: no files."""

from collections.abc import Mapping
from typing import Any

from amc.report.tables import format_points, format_score, part_of, records_of, scores_are_fractions
from amc.run.settings.scores import score_of_record


def finalists_sentence(summary: Mapping[str, Any]) -> str:
    """How good the result is on images that chose nothing, and how much the search overrated its best policy.

    Empty without finalists.
    """
    finalists = part_of(summary, "finalists")
    trials = records_of(finalists.get("trials"))
    taken = next((trial for trial in trials if trial.get("chosen")), None)
    if taken is None:
        return ""
    kind, percent = score_of_record(summary), scores_are_fractions(summary)

    def score(value: Any) -> str:
        return format_score(kind.named(value) if isinstance(value, int | float) else None, percent=percent)

    images = finalists.get("images")
    if images is None:
        return (
            f"The best of {len(trials)} after a short recovery was taken. Their score is that of the search: there are "
            "no other images, so how much it overrates them is unknown."
        )
    text = (
        f"On {images:,} images that the search never scored: {score(taken.get('score_unseen'))} as pruned, "
        f"{score(finalists.get('dense'))} dense."
    )
    overrated = finalists.get("overrated")
    if isinstance(overrated, int | float):
        size = format_points(100 * abs(overrated)) if percent else f"{abs(overrated):.4g}"
        text += f" The search had {'over' if overrated >= 0 else 'under'}rated its best policy by {size}."
    return text


def finalist_episode(summary: Mapping[str, Any]) -> int | None:
    """The episode of the finalist that was taken; None without one."""
    trials = records_of(part_of(summary, "finalists").get("trials"))
    return next((trial.get("episode") for trial in trials if trial.get("chosen")), None)
