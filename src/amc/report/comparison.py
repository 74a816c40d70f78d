"""Compares the search with its baselines, on the search split and before fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from amc.report.figures import baseline_of, best_of, scores_of
from amc.report.record import RunRecord, merit
from amc.report.tables import DASH, format_difference, format_ratio, format_score, part_of
from amc.report.words import metric_of
from amc.search import EpisodeRecord


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best policy of the search compared with one baseline, as text."""

    baseline: str
    score: str
    difference: str  # search minus baseline: of the score or, without a budget, of the reward
    ahead: bool | None  # True if the search is better; None if unknown
    detail: str
    left: str = ""  # share of the dense cost; only without a budget
    reward: str = ""


def score_comparisons(record: RunRecord, *, percent: bool) -> list[Comparison]:
    """Comparisons with a budget: the policy with the higher score is better."""
    best = record.best
    if not best:
        return []
    score = best[0].score
    assert score is not None
    random, uniform = scores_of(record.random), scores_of(record.uniform)
    summarised = baseline_of(record.summary, "random")
    middle = median(random) if random else summarised.get("median")
    number = len(record.random) or summarised.get("episodes")
    detail = f"median {format_score(middle, percent=percent)}" if middle is not None else ""
    if number and number != len(record.episodes):
        detail += f"; compared with {len(record.episodes)} episodes of the search"
    candidates = [
        ("uniform policy", max(uniform, default=baseline_of(record.summary, "uniform").get("score")), ""),
        (f"best of {number or 'the'} random policies", max(random, default=summarised.get("score")), detail),
    ]
    return [
        Comparison(
            baseline=name,
            score=format_score(other, percent=percent),
            difference=format_difference(other, score, percent=percent),
            ahead=score > other,
            detail=text,
        )
        for name, other, text in candidates
        if other is not None
    ]


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
