"""The score after each epoch of fine-tuning. Numbers in, SVG out."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from amc.report.charts.drawing import Frame, Scale, drawing, floor_axis, level, ticks, value_axis, vertical_scale
from amc.report.tables import format_score


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """A fine-tuning."""

    scores: Sequence[float | None]  # after each epoch
    start: float | None  # before the first one
    dense: float | None  # the dense network's score
    percent: bool  # write scores as percentages


def training_chart(curve: TrainingCurve, frame: Frame, *, name: str) -> Markup:
    """Draw the scores from before the first epoch to the last. `name` makes the SVG's ids unique on the page."""
    points = [(epoch, score) for epoch, score in enumerate((curve.start, *curve.scores)) if score is not None]
    values = [score for _, score in points] + ([] if curve.dense is None else [curve.dense])
    y = vertical_scale(values, frame, percent=curve.percent)
    x = Scale(-0.3, max(1, len(curve.scores)) + 0.3, frame.left, frame.end)
    marks = [(value, f"{value:g}") for value in ticks(0, x.high, max(4, frame.width // 110)) if value == int(value)]
    line = "L".join(f"{x(epoch):.1f} {y(score):.1f}" for epoch, score in points)
    parts = [
        value_axis(frame, y, percent=curve.percent),
        floor_axis(frame, x, marks, "epoch"),
        level(frame, y, curve.dense, "c-dense"),
        f'<path class="c-best" d="M{line}"/>' if len(points) > 1 else "",
        *(
            f'<circle class="c-tuned" cx="{x(epoch):.1f}" cy="{y(score):.1f}" r="4">'
            f"<title>{_when(epoch)}: {format_score(score, percent=curve.percent)}</title></circle>"
            for epoch, score in points
        ),
    ]
    return drawing(parts, frame, name=name, title="Fine-tuning", description=describe_training(curve))


def describe_training(curve: TrainingCurve) -> str:
    """A description of the chart, for readers who cannot see it."""
    known = [(epoch, score) for epoch, score in enumerate((curve.start, *curve.scores)) if score is not None]
    text = [f"{_when(epoch).capitalize()}: {format_score(score, percent=curve.percent)}." for epoch, score in known]
    if curve.dense is not None:
        text.append(f"The dense network scores {format_score(curve.dense, percent=curve.percent)}.")
    return " ".join([text[0], *text[-2:]]) if len(text) > 3 else " ".join(text)


def _when(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "before the first epoch"
