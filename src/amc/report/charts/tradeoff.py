"""A chart of score against cost. Numbers in, SVG out."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from amc.report.charts.drawing import (
    Frame,
    Scale,
    below,
    drawing,
    floor_axis,
    level,
    lowest_shown,
    share_marks,
    value_axis,
    vertical_scale,
)
from amc.report.tables import format_score


@dataclass(frozen=True, slots=True)
class Point:
    """One scored policy."""

    number: int  # of its episode
    share: float  # of the dense network's cost, in (0, 1]
    score: float
    explored: bool = False  # True for the warm-up


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The policies of a search."""

    points: Sequence[Point]
    chosen: int | None  # episode of the resulting policy
    uniform: Sequence[Point]
    random: Sequence[Point]
    dense: float | None  # the dense network's score
    least: float | None  # the dense score minus the allowed loss
    cost: str  # what `share` is a share of: "MACs"
    percent: bool  # write scores as percentages


def tradeoff_chart(trade: TradeOff, frame: Frame, *, name: str) -> Markup:
    """Draw every policy, with a ring around the chosen one. `name` makes the SVG's ids unique on the page."""
    drawn = [*trade.points, *trade.uniform, *trade.random]
    x = _horizontal_scale([point.share for point in drawn], frame)
    y, foot = _vertical_scale(trade, frame), lowest(trade)
    parts = [
        value_axis(frame, y, percent=trade.percent),
        floor_axis(frame, x, share_marks(x, frame), f"{trade.cost} left"),
        level(frame, y, trade.dense, "c-dense"),
        level(frame, y, trade.least, "c-limit"),
        _ladder(trade, foot, frame, x, y),
        *(_mark(point, "random", foot, frame, x, y, trade) for point in trade.random),
        *(_mark(point, "explore" if point.explored else "exploit", foot, frame, x, y, trade) for point in trade.points),
        *(
            f'<circle class="c-chosen" cx="{x(point.share):.1f}" cy="{y(point.score):.1f}" r="7"/>'
            for point in trade.points
            if point.number == trade.chosen
        ),
    ]
    return drawing(parts, frame, name=name, title="Score and cost", description=describe_tradeoff(trade))


def describe_tradeoff(trade: TradeOff) -> str:
    """A description of the chart, for readers who cannot see it."""
    if not trade.points:
        return "No episode has a score yet."
    shares, scores = [point.share for point in trade.points], [point.score for point in trade.points]
    low, high = (format_score(value, percent=trade.percent) for value in (min(scores), max(scores)))
    text = [
        f"{len(trade.points)} policies, from {min(shares):.1%} to {max(shares):.1%} of the {trade.cost}, "
        f"score {low} to {high}."
    ]
    for point in trade.points:
        if point.number == trade.chosen:
            score = format_score(point.score, percent=trade.percent)
            text.append(f"The chosen one, of episode {point.number}, keeps {point.share:.1%} and scores {score}.")
    foot = lowest(trade)
    cut = sum(point.score < foot for point in trade.points)
    if cut:
        text.append(f"{cut} of them score below the drawing; triangles at its foot stand for them.")
    return " ".join(text)


def lowest(trade: TradeOff) -> float:
    """The smallest score on the chart."""
    chosen = [point.score for point in trade.points if point.number == trade.chosen]
    return lowest_shown([point.score for point in trade.points], [*chosen, trade.dense, trade.least])


def _horizontal_scale(shares: Sequence[float], frame: Frame) -> Scale:
    low, high = (min(shares), max(shares)) if shares else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.05
    return Scale(max(0.0, low - margin), high + margin, frame.left, frame.end)


def _vertical_scale(trade: TradeOff, frame: Frame) -> Scale:
    scores = [point.score for point in (*trade.points, *trade.uniform, *trade.random)]
    scores += [value for value in (trade.dense, trade.least) if value is not None]
    foot = lowest(trade)
    return vertical_scale([max(score, foot) for score in scores], frame, percent=trade.percent)


_MARKS = {  # by kind: class, radius, who proposed the policy
    "explore": ("c-explore", 3.2, ""),
    "exploit": ("c-exploit", 3.2, ""),
    "random": ("c-random-dot", 2.0, "random, "),
    "uniform": ("c-uniform-dot", 2.8, "uniform, "),
}


def _mark(point: Point, of: str, foot: float, frame: Frame, x: Scale, y: Scale, trade: TradeOff) -> str:
    """A dot, or a triangle at the lower edge for a policy below the chart."""
    kind, radius, who = _MARKS[of]
    score = format_score(point.score, percent=trade.percent)
    title = f"<title>{who}episode {point.number}: {score} at {point.share:.1%} of the {trade.cost}</title>"
    at = x(point.share)
    if point.score < foot:
        return below(kind, at, frame, title)
    return f'<circle class="{kind}" cx="{at:.1f}" cy="{y(point.score):.1f}" r="{radius}">{title}</circle>'


def _ladder(trade: TradeOff, foot: float, frame: Frame, x: Scale, y: Scale) -> str:
    """The uniform policies on the chart, joined by a line in the order of cost."""
    shown = sorted((p for p in trade.uniform if p.score >= foot), key=lambda point: point.share)
    if not shown:
        return ""
    path = "L".join(f"{x(point.share):.1f} {y(point.score):.1f}" for point in shown)
    dots = "".join(_mark(point, "uniform", foot, frame, x, y, trade) for point in shown)
    return f'<path class="c-uniform" d="M{path}"/>{dots}'
