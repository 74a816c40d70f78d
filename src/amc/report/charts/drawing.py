"""The parts that all charts share: sizes, scales, ticks and axes, as SVG text.

Colours come from the page's style sheet (classes), so that a chart works on light and dark pages. Text sizes do not
scale with the page. So a page has a wide and a narrow version of each chart and shows the one that fits. Pure: no
files.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from markupsafe import Markup, escape

_ROOM_FOR_QUARTILES = 8  # values; a chart with fewer shows all of them


@dataclass(frozen=True, slots=True)
class Frame:
    """Size of a drawing in pixels, margins included."""

    width: int
    height: int
    left: int = 52
    right: int = 12
    top: int = 22
    bottom: int = 42

    @property
    def end(self) -> int:
        """The right edge of the plot, pixels."""
        return self.width - self.right

    @property
    def floor(self) -> int:
        """The lower edge of the plot, pixels."""
        return self.height - self.bottom


WIDE = Frame(width=900, height=360)
NARROW = Frame(width=380, height=300)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixels of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def drawing(parts: Iterable[str], frame: Frame, *, name: str, title: str, description: str) -> Markup:
    """The parts as one SVG. `name` makes its ids unique on the page; the last word of `name` is its class."""
    label = escape(name)
    return Markup(
        f'<svg class="chart {escape(name.rpartition("-")[2])}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-labelledby="{label}-title {label}-desc">'
        f'<title id="{label}-title">{escape(title)}</title>'
        f'<desc id="{label}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high]. Their step is 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def vertical_scale(values: Sequence[float], frame: Frame, *, percent: bool = False) -> Scale:
    """The vertical scale of all `values`, with a margin; [0, 1] without values. `percent`: it ends at 0 and 1."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    low, high = low - margin, high + margin
    return Scale(max(low, 0.0) if percent else low, min(high, 1.0) if percent else high, frame.floor, frame.top)


def lowest_shown(values: Sequence[float], needed: Iterable[float | None] = ()) -> float:
    """The smallest value on a chart. The worst quarter may be below it, so that the others spread; none of `needed`."""
    if len(values) < _ROOM_FOR_QUARTILES:
        return min(values, default=0.0)
    return min(quantiles(values, n=4)[0], *(value for value in needed if value is not None), max(values))


def below(kind: str, at: float, frame: Frame, title: str) -> str:
    """A triangle at the foot of the chart, for a value below it."""
    return f'<path class="{kind}" d="M{at - 3.5:.1f} {frame.floor - 8}h7l-3.5 6z">{title}</path>'


def share_marks(x: Scale, frame: Frame) -> list[tuple[float, str]]:
    """The marks of a horizontal axis of shares of a cost."""
    values = ticks(x.low, x.high, max(4, frame.width // 110))
    digits = _digits(values, percent=True)
    return [(value, f"{value * 100:.{digits}f}%") for value in values]


def value_axis(frame: Frame, y: Scale, *, percent: bool) -> str:
    """Horizontal grid lines with their values."""
    values = ticks(y.low, y.high, 5)
    digits = _digits(values, percent=percent)
    parts = []
    for value in values:
        text = f"{value * 100:.{digits}f}%" if percent else f"{value:g}"
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.end}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{at}" dy="0.32em" text-anchor="end">{text}</text>')
    return "".join(parts)


def floor_axis(frame: Frame, x: Callable[[float], float], marks: Iterable[tuple[float, str]], label: str) -> str:
    """The horizontal axis with its marks, (value, text), and its label."""
    parts = [
        f'<text class="tick" x="{x(value):.1f}" y="{frame.floor + 17}" text-anchor="middle">{text}</text>'
        for value, text in marks
    ]
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{frame.end}" y1="{frame.floor}" y2="{frame.floor}"/>')
    middle = (frame.left + frame.end) / 2
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{frame.floor + 36}" text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(parts)


def level(frame: Frame, y: Scale, value: float | None, kind: str) -> str:
    """A horizontal line at `value`; empty for None."""
    if value is None:
        return ""
    at = f"{y(value):.1f}"
    return f'<line class="{kind}" x1="{frame.left}" x2="{frame.end}" y1="{at}" y2="{at}"/>'


def _digits(values: Sequence[float], *, percent: bool) -> int:
    """The number of decimals at which neighbouring ticks differ."""
    step = (values[1] - values[0]) * (100 if percent else 1) if len(values) > 1 else 1.0
    return max(0, -math.floor(math.log10(step) + 1e-9))
