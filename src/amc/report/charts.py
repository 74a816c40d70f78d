"""The learning curve as SVG text.

Numbers in, SVG out. Colours come from the page's style sheet (classes `c-…`), so that one drawing serves
light and dark; text sizes do not scale with the page, so the page draws one wide and one narrow version and
shows the one that fits. Pure: no files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from amc.report.tables import format_score


@dataclass(frozen=True, slots=True)
class Frame:
    """Size of a drawing in pixels, margins included."""

    width: int
    height: int
    left: int = 52
    right: int = 12
    top: int = 22
    bottom: int = 42


WIDE = Frame(width=900, height=360)
NARROW = Frame(width=380, height=300)


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Scores in the order of their episodes; None for an episode that failed."""

    scores: Sequence[float | None]
    first: int  # number of the first episode
    planned: int  # episodes that the search was asked for; the axis reaches that far
    warmup: int  # leading episodes that explored at random
    uniform: float | None
    random: Sequence[float | None]
    percent: bool  # write scores as percentages


@dataclass(frozen=True, slots=True)
class _Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def learning_curve(curve: LearningCurve, frame: Frame, *, name: str) -> Markup:
    """Draw scores, their best so far, and the baselines; `name` keeps the ids of one page apart."""
    count = max(curve.planned, len(curve.scores), len(curve.random), 2)
    x = _Scale(curve.first - 0.5, curve.first + count - 0.5, frame.left, frame.width - frame.right)
    y = _vertical_scale(curve, frame)
    parts = [
        _warmup_band(curve, frame, x),
        _axes(frame, x, y, percent=curve.percent),
        _uniform_line(curve, frame, y),
        _steps(running_best(curve.random), curve.first, x, y, kind="random"),
        _dots(curve, frame, x, y),
        _steps(running_best(curve.scores), curve.first, x, y, kind="best"),
    ]
    return Markup(
        f'<svg class="chart {escape(name)}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-labelledby="{escape(name)}-title {escape(name)}-desc">'
        f'<title id="{escape(name)}-title">Learning curve</title>'
        f'<desc id="{escape(name)}-desc">{escape(describe(curve))}</desc>{"".join(parts)}</svg>'
    )


def running_best(scores: Iterable[float | None]) -> list[float | None]:
    """Largest score up to each episode; None before the first one that did not fail."""
    best: float | None = None
    result = []
    for score in scores:
        if score is not None and (best is None or score > best):
            best = score
        result.append(best)
    return result


def describe(curve: LearningCurve) -> str:
    """The drawing in words, for those who cannot see it."""
    best = running_best(curve.scores)
    if not best or best[-1] is None:
        return "No episode has a score yet."
    reached = best.index(best[-1]) + curve.first
    text = [
        f"{len(curve.scores)} episodes; the best score, {format_score(best[-1], percent=curve.percent)}, "
        f"came in episode {reached}."
    ]
    if curve.warmup:
        text.append(f"The first {curve.warmup} episodes were warm-up.")
    if curve.uniform is not None:
        text.append(f"The uniform policy scores {format_score(curve.uniform, percent=curve.percent)}.")
    random = running_best(curve.random)
    if random and random[-1] is not None:
        score = format_score(random[-1], percent=curve.percent)
        text.append(f"The best of {len(random)} random policies scores {score}.")
    failed = sum(score is None for score in curve.scores)
    if failed:
        text.append(f"{failed} {'episode' if failed == 1 else 'episodes'} failed.")
    return " ".join(text)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high], a step of 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _vertical_scale(curve: LearningCurve, frame: Frame) -> _Scale:
    values = [score for score in (*curve.scores, *running_best(curve.random), curve.uniform) if score is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    return _Scale(low - margin, high + margin, frame.height - frame.bottom, frame.top)


def _axes(frame: Frame, x: _Scale, y: _Scale, *, percent: bool) -> str:
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    values = ticks(y.low, y.high, 5)
    digits = _digits(values, percent=percent)
    for value in values:
        text = f"{value * 100:.{digits}f}%" if percent else f"{value:g}"
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{at}" dy="0.32em" text-anchor="end">{text}</text>')
    parts.extend(
        f'<text class="tick" x="{x(value):.1f}" y="{floor + 17}" text-anchor="middle">{value:g}</text>'
        for value in ticks(x.low, x.high, max(3, frame.width // 110))
        if value == int(value)  # there is no episode 2.5
    )
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    middle = (frame.left + right) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{floor + 36}" text-anchor="middle">episode</text>')
    return "".join(parts)


def _digits(values: Sequence[float], *, percent: bool) -> int:
    """Decimals that tell neighbouring ticks apart."""
    step = (values[1] - values[0]) * (100 if percent else 1) if len(values) > 1 else 1.0
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _warmup_band(curve: LearningCurve, frame: Frame, x: _Scale) -> str:
    shown = min(curve.warmup, max(curve.planned, len(curve.scores)))
    if shown <= 0:
        return ""
    width = x(x.low + shown) - frame.left
    height = frame.height - frame.bottom - frame.top
    return (
        f'<rect class="warmup" x="{frame.left}" y="{frame.top}" width="{width:.1f}" height="{height}"/>'
        f'<text class="label" x="{frame.left + 1}" y="{frame.top - 7}">warm-up</text>'
    )


def _uniform_line(curve: LearningCurve, frame: Frame, y: _Scale) -> str:
    if curve.uniform is None:
        return ""
    at = f"{y(curve.uniform):.1f}"
    return f'<line class="c-uniform" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{at}" y2="{at}"/>'


def _steps(best: Sequence[float | None], first: int, x: _Scale, y: _Scale, *, kind: str) -> str:
    """A staircase: the best score holds until a better one comes."""
    path: list[str] = []
    former: float | None = None
    for number, value in enumerate(best, start=first):
        if value is None or value == former:
            continue
        path.append(f"M{x(number):.1f} {y(value):.1f}" if former is None else f"H{x(number):.1f}V{y(value):.1f}")
        former = value
    if former is None:
        return ""
    return f'<path class="c-{kind}" d="{"".join(path)}H{x(first + len(best) - 1):.1f}"/>'


def _dots(curve: LearningCurve, frame: Frame, x: _Scale, y: _Scale) -> str:
    radius = min(3.5, max(2.0, 0.45 * (x(1) - x(0))))  # smaller where episodes crowd
    floor = frame.height - frame.bottom
    parts = []
    for number, score in enumerate(curve.scores, start=curve.first):
        at = x(number)
        if score is None:
            mark = f'<path class="c-failed" d="M{at - 4:.1f} {floor - 9}l8 8m0 -8l-8 8"'
            parts.append(f"{mark}><title>episode {number}: failed</title></path>")
            continue
        kind = "c-explore" if number < curve.first + curve.warmup else "c-exploit"
        mark = f'<circle class="{kind}" cx="{at:.1f}" cy="{y(score):.1f}" r="{radius:.1f}"'
        text = f"episode {number}: {format_score(score, percent=curve.percent)}"
        parts.append(f"{mark}><title>{text}</title></circle>")
    return "".join(parts)
