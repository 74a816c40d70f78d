"""Accuracy against density over the rounds of a schedule. Numbers in, SVG out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from markupsafe import Markup

from amc.report.charts.drawing import Frame, Scale, drawing, floor_axis, level, value_axis, vertical_scale
from amc.report.tables import format_score

_TICK_PIXELS = 36  # width of a share's text


@dataclass(frozen=True, slots=True)
class RoundPoint:
    """One round: the remaining share of the dense cost, and the scores."""

    number: int  # counted from 1
    share: float  # of the dense network's cost, in (0, 1]
    pruned: float | None  # score after the search
    tuned: float | None  # score after fine-tuning


@dataclass(frozen=True, slots=True)
class RoundsCurve:
    """All rounds, in their order."""

    rounds: Sequence[RoundPoint]
    dense: float | None  # the dense network's score
    cost: str  # what `share` is a share of: "MACs"
    percent: bool  # write scores as percentages


@dataclass(frozen=True, slots=True)
class _ShareScale:
    """Shares to pixels, with 100% on the left. Logarithmic: each round removes a share of the remaining cost."""

    logs: Scale

    @classmethod
    def over(cls, shares: Sequence[float], frame: Frame) -> Self:
        low, high = math.log(min(shares)), math.log(max(shares))
        margin = 0.04 * (high - low) or 0.05
        return cls(Scale(high + margin, low - margin, frame.left, frame.end))

    def __call__(self, share: float) -> float:
        return self.logs(math.log(share))


def rounds_chart(curve: RoundsCurve, frame: Frame, *, name: str) -> Markup:
    """Draw the rounds from the dense network (left) to the last. `name` makes the SVG's ids unique on the page."""
    shares = [1.0, *(point.share for point in curve.rounds)]
    x = _ShareScale.over(shares, frame)
    values = [value for point in curve.rounds for value in (point.pruned, point.tuned) if value is not None]
    y = vertical_scale([*values, *([] if curve.dense is None else [curve.dense])], frame, percent=curve.percent)
    parts = [
        value_axis(frame, y, percent=curve.percent),
        floor_axis(frame, x, _marks(shares, x), f"{curve.cost} left (logarithmic)"),
        level(frame, y, curve.dense, "c-dense"),
        _line(curve, x, y),
        *(_round(point, x, y, percent=curve.percent) for point in curve.rounds),
    ]
    return drawing(parts, frame, name=name, title="Accuracy of every round", description=describe_rounds(curve))


def describe_rounds(curve: RoundsCurve) -> str:
    """A description of the chart, for readers who cannot see it."""
    if not curve.rounds:
        return "No round is finished yet."
    text = []
    if curve.dense is not None:
        text.append(f"The dense network scores {format_score(curve.dense, percent=curve.percent)}.")
    for point in curve.rounds:
        pruned, tuned = (format_score(value, percent=curve.percent) for value in (point.pruned, point.tuned))
        text.append(
            f"Round {point.number}, {point.share:.1%} of the {curve.cost}: {pruned} as pruned, {tuned} fine-tuned."
        )
    return " ".join(text)


def _marks(shares: Sequence[float], x: _ShareScale) -> list[tuple[float, str]]:
    """The marks of the axis: the rounds' shares, without those whose text would overlap."""
    marks: list[tuple[float, str]] = []
    for share in shares:
        if not marks or x(share) - x(marks[-1][0]) >= _TICK_PIXELS:
            marks.append((share, f"{share:.0%}"))
    return marks


def _line(curve: RoundsCurve, x: _ShareScale, y: Scale) -> str:
    """The line from the dense network through every fine-tuned one."""
    stops = [] if curve.dense is None else [(1.0, curve.dense)]
    stops += [(point.share, point.tuned) for point in curve.rounds if point.tuned is not None]
    if len(stops) < 2:
        return ""
    return f'<path class="c-best" d="M{"L".join(f"{x(share):.1f} {y(score):.1f}" for share, score in stops)}"/>'


def _round(point: RoundPoint, x: _ShareScale, y: Scale, *, percent: bool) -> str:
    at, parts = f"{x(point.share):.1f}", []
    if point.pruned is not None and point.tuned is not None:
        parts.append(f'<line class="c-gain" x1="{at}" x2="{at}" y1="{y(point.pruned):.1f}" y2="{y(point.tuned):.1f}"/>')
    for score, kind, what in ((point.pruned, "c-explore", "as pruned"), (point.tuned, "c-tuned", "fine-tuned")):
        if score is not None:
            title = f"round {point.number}, {what}: {format_score(score, percent=percent)}"
            parts.append(
                f'<circle class="{kind}" cx="{at}" cy="{y(score):.1f}" r="4.5"><title>{title}</title></circle>'
            )
    return "".join(parts)
