"""The charts of one run, made from the numbers of its record."""

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from amc.report.charts.drawing import NARROW, WIDE
from amc.report.charts.learning import LearningCurve, learning_curve
from amc.report.charts.tradeoff import Point, TradeOff, tradeoff_chart
from amc.report.charts.training import TrainingCurve, training_chart
from amc.report.record import RunRecord, ranked
from amc.report.tables import part_of, scores_are_fractions
from amc.report.words import metric_label, metric_of
from amc.run.settings.scores import TOP1, score_of_record
from amc.search import EpisodeRecord


def scores_of(episodes: Iterable[EpisodeRecord]) -> list[float]:
    """The scores of the episodes that did not fail."""
    return [episode.score for episode in episodes if episode.score is not None]


def is_percent(record: RunRecord) -> bool:
    """Whether every score of the run is a fraction."""
    scores = scores_of((*record.episodes, *record.random, *record.uniform))
    return scores_are_fractions({**record.config, **record.summary}) and all(0 <= score <= 1 for score in scores)


def baseline_of(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A baseline's results in the summary; empty if absent."""
    return part_of(part_of(summary, "baselines"), name)


def score_curve(record: RunRecord) -> LearningCurve:
    """Scores by episode, for a search with a budget: all policies cost about the same."""
    uniform = baseline_of(record.summary, "uniform").get("score")
    return LearningCurve(
        scores=[episode.score for episode in record.episodes],
        first=_first(record),
        planned=_planned(record),
        warmup=record.warmup,
        uniform=max(scores_of(record.uniform), default=uniform),
        random=[episode.score for episode in record.random],
        percent=is_percent(record),
        quantity=_quantity(record),
    )


def _quantity(record: RunRecord) -> str:
    """The name of the score on the axis. An error has a minus sign, because higher is better."""
    kind = score_of_record({**record.config, **record.summary})
    return "score" if kind is TOP1 else f"{'−' if kind.is_error else ''}{kind.label}"


def reward_curve(record: RunRecord) -> LearningCurve:
    """Rewards by episode, for a search without a budget: scores alone ignore the cost."""
    return LearningCurve(
        scores=[episode.reward for episode in record.episodes],
        first=_first(record),
        planned=_planned(record),
        warmup=record.warmup,
        uniform=max((e.reward for e in record.uniform if e.reward is not None), default=None),
        random=[episode.reward for episode in record.random],
        percent=False,
        quantity="reward",
    )


def training_curve(record: RunRecord) -> TrainingCurve:
    """The scores of fine-tuning, on the images of the search."""
    slim = part_of(record.summary, "slim")
    return TrainingCurve(
        scores=[epoch.get("score") for epoch in record.finetune],
        start=slim.get("score_recovered", slim.get("score")),
        dense=part_of(record.summary, "dense").get("score"),
        percent=is_percent(record),
    )


def trade_off(record: RunRecord) -> TradeOff:
    """The score and cost of every policy."""
    summary = {**record.config, **record.summary}
    metric = metric_of(summary)
    dense = part_of(record.summary, "dense")
    score, drop = dense.get("score"), summary.get("max_drop", part_of(summary, "guarantee").get("max_drop"))
    return TradeOff(
        points=_points(record.episodes, metric, dense, warmup=_first(record) + record.warmup),
        chosen=record.chosen,
        uniform=_points(record.uniform, metric, dense),
        random=_points(record.random, metric, dense),
        dense=score,
        least=None if drop is None or score is None else score - drop / 100,
        cost=metric_label(metric),
        percent=is_percent(record),
    )


def both_widths(chart: LearningCurve | TradeOff | TrainingCurve, name: str) -> list[Markup]:
    """One drawing for a wide page and one for a narrow one."""
    if isinstance(chart, LearningCurve):
        return [learning_curve(chart, frame, name=f"{name}-{width}") for frame, width in _FRAMES]
    if isinstance(chart, TrainingCurve):
        return [training_chart(chart, frame, name=f"{name}-{width}") for frame, width in _FRAMES]
    return [tradeoff_chart(chart, frame, name=f"{name}-{width}") for frame, width in _FRAMES]


_FRAMES = ((WIDE, "wide"), (NARROW, "narrow"))


def best_of(episodes: Iterable[EpisodeRecord]) -> EpisodeRecord | None:
    """The episode with the highest reward; None without a reward."""
    best = ranked(episodes)
    return best[0] if best else None


def _points(
    episodes: Iterable[EpisodeRecord], metric: str, dense: Mapping[str, Any], *, warmup: int = 0
) -> tuple[Point, ...]:
    """The scored episodes, with costs as shares of the dense cost; none if the dense cost is unknown."""
    whole = dense.get(metric)
    if not whole:
        return ()
    return tuple(
        Point(episode.episode, episode.cost[metric] / whole, episode.score, explored=episode.episode < warmup)
        for episode in episodes
        if episode.score is not None and metric in episode.cost
    )


def _first(record: RunRecord) -> int:
    return record.episodes[0].episode if record.episodes else 0


def _planned(record: RunRecord) -> int:
    if record.episodes and record.episodes[-1].stopped is not None:
        return len(record.episodes)
    planned = record.config.get("episodes")
    return planned if isinstance(planned, int) else len(record.episodes)
