"""Accuracy against cost over the points of a sweep, with its uncertainty. Numbers in, SVG out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from amc.report.charts.drawing import Frame, Scale, drawing, floor_axis, level, share_marks, value_axis, vertical_scale
from amc.report.tables import format_score


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One budget's result."""

    number: int  # counted from 1: the largest budget
    share: float  # of the dense network's cost, in (0, 1]
    score: float  # of the result, on images that chose nothing if there are any
    error: float | None  # standard error of its difference from the dense network's score
    pruned: float | None  # score as pruned, on the images of the search


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of a sweep, the largest budget first."""

    points: Sequence[CurvePoint]
    dense: float | None  # the dense network's score, on the same images
    knee: int | None  # the number of a point
    cost: str  # what `share` is a share of: "MACs"
    percent: bool  # write scores as percentages


def curve_chart(curve: Curve, frame: Frame, *, name: str) -> Markup:
    """Draw the curve with a bar of one standard error at each point and a ring around the knee.

    `name` makes the SVG's ids unique on the page.
    """
    x = _horizontal_scale([point.share for point in curve.points], frame)
    y = vertical_scale(list(_heights(curve)), frame, percent=curve.percent)
    line = "L".join(f"{x(point.share):.1f} {y(point.score):.1f}" for point in curve.points)
    parts = [
        value_axis(frame, y, percent=curve.percent),
        floor_axis(frame, x, share_marks(x, frame), f"{curve.cost} left"),
        level(frame, y, curve.dense, "c-dense"),
        f'<path class="c-best" d="M{line}"/>' if len(curve.points) > 1 else "",
        *(_point(point, x, y, curve) for point in curve.points),
    ]
    return drawing(parts, frame, name=name, title="Accuracy and cost", description=describe_curve(curve))


def describe_curve(curve: Curve) -> str:
    """A description of the chart, for readers who cannot see it."""
    if not curve.points:
        return "No point is finished yet."
    text = []
    if curve.dense is not None:
        text.append(f"The dense network scores {format_score(curve.dense, percent=curve.percent)}.")
    for point in curve.points:
        knee = " (the knee)" if point.number == curve.knee else ""
        text.append(f"{point.share:.1%} of the {curve.cost}{knee}: {scored(point, percent=curve.percent)}.")
    return " ".join(text)


def scored(point: CurvePoint, *, percent: bool) -> str:
    """The score with its uncertainty: "91.20% ± 0.41"."""
    text = format_score(point.score, percent=percent)
    if point.error is None:
        return text
    return f"{text} ± {point.error * 100:.2f}" if percent else f"{text} ± {point.error:.2g}"


def _heights(curve: Curve) -> Iterator[float]:
    """Every value that the vertical axis must hold."""
    if curve.dense is not None:
        yield curve.dense
    for point in curve.points:
        error = point.error or 0.0
        yield from (point.score - error, point.score + error)
        if point.pruned is not None:
            yield point.pruned


def _horizontal_scale(shares: Sequence[float], frame: Frame) -> Scale:
    low, high = (min(shares), max(shares)) if shares else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.05
    return Scale(max(0.0, low - margin), high + margin, frame.left, frame.end)


def _point(point: CurvePoint, x: Scale, y: Scale, curve: Curve) -> str:
    at, parts = f"{x(point.share):.1f}", []
    if point.error:
        low, high = (f"{y(point.score + sign * point.error):.1f}" for sign in (-1, 1))
        parts.append(f'<line class="c-gain" x1="{at}" x2="{at}" y1="{low}" y2="{high}"/>')
    if point.pruned is not None:
        text = format_score(point.pruned, percent=curve.percent)
        parts.append(
            f'<circle class="c-explore" cx="{at}" cy="{y(point.pruned):.1f}" r="3.5">'
            f"<title>point {point.number}, as pruned: {text}</title></circle>"
        )
    title = f"point {point.number}: {scored(point, percent=curve.percent)} at {point.share:.1%} of the {curve.cost}"
    parts.append(f'<circle class="c-tuned" cx="{at}" cy="{y(point.score):.1f}" r="4.5"><title>{title}</title></circle>')
    if point.number == curve.knee:
        parts.append(f'<circle class="c-chosen" cx="{at}" cy="{y(point.score):.1f}" r="8"/>')
    return "".join(parts)
