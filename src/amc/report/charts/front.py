"""Score against one cost for several networks, with their Pareto front. Numbers in, SVG out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from amc.report.charts.drawing import Frame, Scale, drawing, floor_axis, level, ticks, value_axis, vertical_scale
from amc.report.tables import format_bytes, format_count, format_milliseconds, format_score

_NEAR = 16  # pixels, within which a second label would cover the first


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One network."""

    label: str
    cost: float
    score: float
    error: float | None  # standard error of the score's difference from the best; None: unknown, or the best itself
    on_front: bool
    taken: bool = False  # the recommended one


@dataclass(frozen=True, slots=True)
class FrontChart:
    """The networks by one cost."""

    points: Sequence[FrontPoint]
    dense: float | None  # the dense network's score; None if the networks have different ones
    cost: str  # the axis's name: "MACs"
    metric: str  # decides the unit, see `format_cost`
    percent: bool  # write scores as percentages


def front_chart(chart: FrontChart, frame: Frame, *, name: str) -> Markup:
    """Draw the networks, and a line through those of the front. `name` makes the SVG's ids unique on the page."""
    x = _horizontal_scale([point.cost for point in chart.points], frame)
    y = _vertical_scale(chart, frame)
    marks = [(value, _mark(chart, value)) for value in ticks(x.low, x.high, max(3, frame.width // 150))]
    front = sorted((point for point in chart.points if point.on_front), key=lambda point: point.cost)
    line = "L".join(f"{x(point.cost):.1f} {y(point.score):.1f}" for point in front)
    parts = [
        value_axis(frame, y, percent=chart.percent),
        floor_axis(frame, x, marks, chart.cost),
        level(frame, y, chart.dense, "c-dense"),
        f'<path class="c-best" d="M{line}"/>' if len(front) > 1 else "",
        *(_point(point, x, y, chart) for point in chart.points),
        *_labels(chart, x, y),
    ]
    title = f"Score and {chart.cost}"
    return drawing(parts, frame, name=name, title=title, description=describe_front(chart))


def describe_front(chart: FrontChart) -> str:
    """A description of the chart, for readers who cannot see it."""
    text = [] if chart.dense is None else [f"The dense network scores {_score(chart, chart.dense)}."]
    for point in sorted(chart.points, key=lambda point: point.cost):
        place = "on the front" if point.on_front else "behind the front"
        text.append(f"{point.label}: {_score(chart, point.score)} at {_cost(chart, point.cost)}, {place}.")
    return " ".join(text)


def _vertical_scale(chart: FrontChart, frame: Frame) -> Scale:
    """Holds all scores and their errors. An accuracy ends at 100%, and so does its axis."""
    heights = [point.score + sign * (point.error or 0.0) for point in chart.points for sign in (-1, 1)]
    values = heights if chart.dense is None else [*heights, chart.dense]
    return vertical_scale(values, frame, percent=chart.percent)


def _horizontal_scale(costs: Sequence[float], frame: Frame) -> Scale:
    low, high = (min(costs), max(costs)) if costs else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.1 * (high or 1.0)
    return Scale(max(0.0, low - margin), high + margin, frame.left, frame.end)


def _point(point: FrontPoint, x: Scale, y: Scale, chart: FrontChart) -> str:
    across, up, parts = f"{x(point.cost):.1f}", f"{y(point.score):.1f}", []
    if point.error:
        low, high = (f"{y(min(y.high, point.score + sign * point.error)):.1f}" for sign in (-1, 1))
        parts.append(f'<line class="c-gain" x1="{across}" x2="{across}" y1="{low}" y2="{high}"/>')
    kind = "c-tuned" if point.on_front else "c-explore"
    title = f"{point.label}: {_score(chart, point.score)} at {_cost(chart, point.cost)}"
    parts.append(f'<circle class="{kind}" cx="{across}" cy="{up}" r="4.5"><title>{escape(title)}</title></circle>')
    if point.taken:
        parts.append(f'<circle class="c-chosen" cx="{across}" cy="{up}" r="8"/>')
    return "".join(parts)


def _labels(chart: FrontChart, x: Scale, y: Scale) -> Iterator[str]:
    """A letter to the upper right of each point; a letter that would cover an earlier one is moved below it."""
    placed: list[tuple[float, float]] = []
    for point in sorted(chart.points, key=lambda point: (point.cost, -point.score)):
        across, up = x(point.cost) + 9, y(point.score) - 8
        while any(abs(across - left) < _NEAR and abs(up - top) < _NEAR for left, top in placed):
            up += _NEAR
        placed.append((across, up))
        yield f'<text class="label" x="{across:.1f}" y="{up:.1f}">{escape(point.label)}</text>'


def _score(chart: FrontChart, score: float) -> str:
    return format_score(score, percent=chart.percent)


def _cost(chart: FrontChart, value: float) -> str:
    return format_cost(chart.metric, value)


def format_cost(metric: str, value: float | None) -> str:
    """A cost with its unit: MACs and parameters, bytes, or milliseconds."""
    if metric == "latency":
        return format_milliseconds(value)
    return format_count(value) if metric in ("macs", "params") else format_bytes(value)


def _mark(chart: FrontChart, value: float) -> str:
    """The cost of a tick, which is a round number: "120 k"."""
    number, space, unit = _cost(chart, value).partition(" ")
    return f"{float(number):g}{space}{unit}"
