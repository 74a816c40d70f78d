"""The learning curve as SVG text. Numbers in, SVG out; see `amc.report.charts.drawing`."""

import math
from collections.abc import Iterable, Sequence
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
    ticks,
    value_axis,
    vertical_scale,
)
from amc.report.tables import format_score


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The scores of a search by episode, and its baselines. A failed episode has None."""

    scores: Sequence[float | None]
    first: int  # number of the first episode
    planned: int  # number of episodes requested; the axis has this length
    warmup: int  # first episodes, which explored at random
    uniform: float | None  # score of the uniform policy
    random: Sequence[float | None]  # scores of the random policies
    percent: bool  # write scores as percentages
    quantity: str = "score"  # or "reward", or another score's name


def learning_curve(curve: LearningCurve, frame: Frame, *, name: str) -> Markup:
    """Draw the scores, the best so far, and the baselines. `name` makes the SVG's ids unique on the page."""
    count = max(curve.planned, len(curve.scores), len(curve.random), 2)
    x = Scale(curve.first - 0.5, curve.first + count - 0.5, frame.left, frame.end)
    low = lowest(curve)
    values = [score for score in (*curve.scores, *running_best(curve.random), curve.uniform) if score is not None]
    y = vertical_scale([max(score, low) for score in values], frame, percent=curve.percent)
    numbers = ticks(x.low, x.high, max(3, frame.width // 110))
    parts = [
        _warmup_band(curve, frame, x),
        value_axis(frame, y, percent=curve.percent),
        # Only whole numbers: no episode has number 2.5.
        floor_axis(frame, x, [(value, f"{value:g}") for value in numbers if value == int(value)], "episode"),
        _dots(curve, low, frame, x, y),
        # The broken lines lie on the whole one: where they agree, both are seen.
        _steps(running_best(curve.scores), low, curve.first, x, y, kind="best"),
        level(frame, y, curve.uniform, "c-uniform") if curve.uniform is not None and curve.uniform >= low else "",
        _steps(running_best(curve.random), low, curve.first, x, y, kind="random"),
    ]
    return drawing(parts, frame, name=name, title="Learning curve", description=describe(curve))


def lowest(curve: LearningCurve) -> float:
    """The smallest score on the chart."""
    scores = [score for score in curve.scores if score is not None]
    return lowest_shown(scores) if scores else -math.inf


def running_best(scores: Iterable[float | None]) -> list[float | None]:
    """The largest score up to each episode; None before the first scored episode."""
    best: float | None = None
    result = []
    for score in scores:
        if score is not None and (best is None or score > best):
            best = score
        result.append(best)
    return result


def describe(curve: LearningCurve) -> str:
    """A description of the chart, for readers who cannot see it."""
    best = running_best(curve.scores)
    if not best or best[-1] is None:
        return "No episode has a score yet."
    reached = best.index(best[-1]) + curve.first
    text = [
        f"{len(curve.scores)} episodes; the best {curve.quantity}, {format_score(best[-1], percent=curve.percent)}, "
        f"came in episode {reached}."
    ]
    if curve.warmup:
        text.append(f"The first {curve.warmup} episodes were warm-up.")
    verb = "earns" if curve.quantity == "reward" else "scores"
    if curve.uniform is not None:
        text.append(f"The uniform policy {verb} {format_score(curve.uniform, percent=curve.percent)}.")
    random = running_best(curve.random)
    if random and random[-1] is not None:
        score = format_score(random[-1], percent=curve.percent)
        text.append(f"The best of {len(random)} random policies {verb} {score}.")
    low = lowest(curve)
    under = sum(score < low for score in curve.scores if score is not None)
    if under:
        text.append(f"{under} below the drawing are triangles at its foot.")
    failed = sum(score is None for score in curve.scores)
    if failed:
        text.append(f"{failed} {'episode' if failed == 1 else 'episodes'} failed.")
    return " ".join(text)


def _warmup_band(curve: LearningCurve, frame: Frame, x: Scale) -> str:
    shown = min(curve.warmup, max(curve.planned, len(curve.scores)))
    if shown <= 0:
        return ""
    width, height = x(x.low + shown) - frame.left, frame.floor - frame.top
    return (
        f'<rect class="warmup" x="{frame.left}" y="{frame.top}" width="{width:.1f}" height="{height}"/>'
        f'<text class="label" x="{frame.left + 1}" y="{frame.top - 7}">warm-up</text>'
    )


def _steps(best: Sequence[float | None], low: float, first: int, x: Scale, y: Scale, *, kind: str) -> str:
    """A staircase: each best score continues until a better one. Below `low` it has not begun."""
    path: list[str] = []
    previous: float | None = None
    for number, value in enumerate(best, start=first):
        if value is None or value < low or value == previous:
            continue
        path.append(f"M{x(number):.1f} {y(value):.1f}" if previous is None else f"H{x(number):.1f}V{y(value):.1f}")
        previous = value
    if previous is None:
        return ""
    return f'<path class="c-{kind}" d="{"".join(path)}H{x(first + len(best) - 1):.1f}"/>'


def _dots(curve: LearningCurve, low: float, frame: Frame, x: Scale, y: Scale) -> str:
    radius = min(3.5, max(2.0, 0.45 * (x(1) - x(0))))  # smaller where episodes crowd
    parts = []
    for number, score in enumerate(curve.scores, start=curve.first):
        at = x(number)
        if score is None:
            mark = f'<path class="c-failed" d="M{at - 4:.1f} {frame.floor - 9}l8 8m0 -8l-8 8"'
            parts.append(f"{mark}><title>episode {number}: failed</title></path>")
            continue
        kind = "c-explore" if number < curve.first + curve.warmup else "c-exploit"
        title = f"<title>episode {number}: {format_score(score, percent=curve.percent)}</title>"
        if score < low:
            parts.append(below(kind, at, frame, title))
            continue
        parts.append(f'<circle class="{kind}" cx="{at:.1f}" cy="{y(score):.1f}" r="{radius:.1f}">{title}</circle>')
    return "".join(parts)
