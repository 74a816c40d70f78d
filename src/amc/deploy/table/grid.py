"""Which widths of a block are measured, and what the others cost.

Runtimes compute channels in vectors of 8 or 16, so latency is a staircase over the channels: a width costs what the
next multiple of the step costs. Below the first step every width counts as it is. Measured are multiples of the step,
few where there are many; between them latency is interpolated. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Node = tuple[int, int]  # channels in, channels out

CELLS = 128  # places on an axis at most; a width between two costs what the wider one does


@dataclass(frozen=True, slots=True)
class Axis:
    """The widths that one side of a layer can have."""

    low: int
    high: int
    unit: int  # all widths are low + a multiple of it
    step: int  # of the runtime's staircase; 1: none

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high or self.unit < 1 or self.step < 1:
            raise ValueError(f"no axis runs from {self.low} to {self.high} in units of {self.unit}")

    @property
    def pitch(self) -> int:
        """Distance of two places: the unit, or a multiple of it that leaves at most `CELLS` places."""
        spans = -(-(self.high - self.low) // self.unit)
        return self.unit * max(1, -(-spans // CELLS))

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Widths of the lookup table, ascending; the last is `high`."""
        return np.minimum(np.arange(self.low, self.high + self.pitch, self.pitch), self.high)

    def effective(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The stair that a width is on: its next multiple of the step; up to the first one, itself."""
        given = np.asarray(widths, dtype=np.int64)
        return np.where(given <= self.step, given, np.minimum(-(-given // self.step) * self.step, self.high))

    def nodes(self, points: int) -> tuple[int, ...]:
        """Widths to measure, at most `points` (two at least): ends always, stairs evenly between them."""
        stairs = np.unique(self.effective(self.places))
        fine = max(1, self.step // 4)  # below the first stair
        stairs = stairs[(stairs >= self.step) | (stairs % fine == 0) | (stairs == stairs[0]) | (stairs == stairs[-1])]
        chosen = np.rint(np.linspace(0, len(stairs) - 1, min(points, len(stairs)))).astype(int)
        return tuple(stairs[chosen].tolist())


def monotone(table: FloatArray) -> FloatArray:
    """The nearest table in which no cost falls with the width: half-way between the two envelopes.

    The upper envelope is the largest cost of any narrower width, the lower one the least of any wider. Where the
    table rises anyway it stays as it is; where it falls, by noise or because a runtime dislikes a width, both sides
    meet in the middle, so that the sum over many layers is not biased.
    """
    upper, lower = table, table
    for axis in range(table.ndim):
        upper = np.maximum.accumulate(upper, axis=axis)
        lower = np.flip(np.minimum.accumulate(np.flip(lower, axis), axis=axis), axis)
    return (upper + lower) / 2


def lookup(inputs: Axis, outputs: Axis, times: Mapping[Node, float]) -> FloatArray:
    """Cost at every pair of places [in, out], from the cost at the nodes; never falling with either width.

    `times` must hold every pair of some widths in with some widths out; both must cover the axes' ends.
    """
    ins, outs = (np.array(sorted(set(side))) for side in zip(*times, strict=True))
    grid = np.array([[times[a, b] for b in outs.tolist()] for a in ins.tolist()])
    grid = monotone(grid)
    wide = outputs.effective(outputs.places)
    rows = np.stack([np.interp(wide, outs, row) for row in grid])
    tall = inputs.effective(inputs.places)
    return monotone(np.stack([np.interp(tall, ins, column) for column in rows.T], axis=1))
