"""Compares the search with its baselines, on the search split and before fine-tuning."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from amc.report.figures import baseline_of, best_of, scores_of
from amc.report.record import RunRecord, merit
from amc.report.tables import DASH, format_difference, format_ratio, format_score, part_of, within
from amc.report.words import metric_of
from amc.search import EpisodeRecord


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best policy of the search compared with one baseline, as text."""

    baseline: str
    score: str
    difference: str  # search minus baseline: of the score or, without a budget, of the reward
    ahead: bool | None  # True if the search is better; None if unknown, or if noise explains the difference
    detail: str
    left: str = ""  # share of the dense cost; only without a budget
    reward: str = ""
    noise: bool = False  # whether the difference is no larger than its standard error


def score_comparisons(record: RunRecord, *, percent: bool) -> list[Comparison]:
    """Comparisons with a budget: the policy with the higher score is better."""
    best = record.best
    if not best:
        return []
    first = best[0]
    assert first.score is not None
    random, uniform = scores_of(record.random), scores_of(record.uniform)
    summarised = baseline_of(record.summary, "random")
    middle = median(random) if random else summarised.get("median")
    number = len(record.random) or summarised.get("episodes")
    detail = f"median {format_score(middle, percent=percent)}" if middle is not None else ""
    if number and number != len(record.episodes):
        detail += f"; compared with {len(record.episodes)} episodes of the search"
    of_uniform = max(uniform, default=baseline_of(record.summary, "uniform").get("score"))
    candidates = [
        ("uniform policy", record.uniform, of_uniform, ""),
        (
            f"best of {number or 'the'} random policies", record.random,
            max(random, default=summarised.get("score")), detail,
        ),
    ]  # fmt: skip
    return [
        _scored(name, other, first, _error(first, _highest(episodes)), text, percent=percent)
        for name, episodes, other, text in candidates
        if other is not None
    ]


def _scored(
    name: str, other: float, best: EpisodeRecord, error: float | None, detail: str, *, percent: bool
) -> Comparison:
    """The best policy beside a baseline's score. `error`: of their difference."""
    assert best.score is not None
    difference = format_difference(other, best.score, percent=percent, error=error)
    noise = within(other, best.score, error)
    ahead = None if noise else best.score > other
    return Comparison(name, format_score(other, percent=percent), difference, ahead, detail, noise=noise)


def _highest(episodes: Sequence[EpisodeRecord]) -> EpisodeRecord | None:
    """The episode with the highest score; None if none has one."""
    scored = [episode for episode in episodes if episode.score is not None]
    return max(scored, key=lambda episode: episode.score or 0.0, default=None)


def _error(first: EpisodeRecord, other: EpisodeRecord | None) -> float | None:
    """The standard error of the difference between two policies' scores, from those to the dense network.

    Too large rather than too small: it counts the images as if both policies had answered different ones.
    """
    if other is None or first.keep == other.keep or None in (first.standard_error, other.standard_error):
        return None
    return math.hypot(first.standard_error or 0.0, other.standard_error or 0.0)


def reward_comparisons(record: RunRecord, *, percent: bool) -> list[Comparison]:
    """Comparisons without a budget: each agent's policy with the highest reward. Scores and costs may differ."""
    best = best_of(record.episodes)
    if best is None:
        return []
    lines = []
    for name, episodes in (("uniform", record.uniform), ("random", record.random)):
        other, summarised = best_of(episodes), baseline_of(record.summary, name)
        if other is not None:
            lines.append(_compared(f"best of {len(episodes)} {name} policies", other, best, record, percent=percent))
        elif summarised.get("score") is not None:
            lines.append(_summarised(name, summarised, record, percent=percent))
    return lines


def _compared(name: str, other: EpisodeRecord, best: EpisodeRecord, record: RunRecord, *, percent: bool) -> Comparison:
    return Comparison(
        baseline=name,
        score=format_score(other.score, percent=percent),
        difference=format_difference(merit(other), merit(best), percent=False),
        ahead=merit(best) > merit(other),
        detail="",
        left=share_left(other.cost, record),
        reward=format_score(merit(other), percent=False).replace("-", "−"),
    )


def _summarised(name: str, baseline: Mapping[str, Any], record: RunRecord, *, percent: bool) -> Comparison:
    """A baseline without a journal, from the summary."""
    return Comparison(
        baseline=f"best {name} policy",
        score=format_score(baseline["score"], percent=percent),
        difference=DASH,
        ahead=None,
        detail="",
        left=share_left(baseline, record),
        reward=DASH,
    )


def share_left(cost: Mapping[str, Any], record: RunRecord) -> str:
    """A policy's cost as a share of the dense network's, in the search's metric."""
    metric = metric_of({**record.config, **record.summary})
    return format_ratio(part_of(record.summary, "dense").get(metric), cost.get(metric))
