"""Chooses the widths of a block to measure, and interpolates the cost of the other widths.

Runtimes compute channels in vectors of 8 or 16, so latency is a staircase over the channels: a width costs as much as
the next multiple of the step. Widths below the first step are not rounded. At most a given number of these widths is
measured; latency is interpolated between them. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Node = tuple[int, int]  # channels in, channels out

CELLS = 128  # most steps of a lookup table's axis; a width between two entries costs as much as the larger entry


@dataclass(frozen=True, slots=True)
class Axis:
    """The widths (channel counts) that one side of a layer can have."""

    low: int
    high: int
    unit: int  # every width is low plus a multiple of unit
    step: int  # channels per stair of the runtime's latency; 1: no staircase

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high or self.unit < 1 or self.step < 1:
            raise ValueError(f"no axis runs from {self.low} to {self.high} in units of {self.unit}")

    @property
    def spacing(self) -> int:
        """Distance between two widths of the lookup table: the least multiple of `unit` with at most `CELLS` steps."""
        spans = -(-(self.high - self.low) // self.unit)
        return self.unit * max(1, -(-spans // CELLS))

    @property
    def widths(self) -> npt.NDArray[np.int64]:
        """Widths of the lookup table, ascending; the last is `high`."""
        return np.minimum(np.arange(self.low, self.high + self.spacing, self.spacing), self.high)

    def effective(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Round each width up to a multiple of the step (at most `high`); widths up to one step stay unchanged."""
        given = np.asarray(widths, dtype=np.int64)
        return np.where(given <= self.step, given, np.minimum(-(-given // self.step) * self.step, self.high))

    def nodes(self, points: int) -> tuple[int, ...]:
        """At most `points` widths to measure (`points` >= 2): both ends, and evenly spaced stairs between them."""
        stairs = np.unique(self.effective(self.widths))
        fine = max(1, self.step // 4)  # distance of the widths below the first stair
        stairs = stairs[(stairs >= self.step) | (stairs % fine == 0) | (stairs == stairs[0]) | (stairs == stairs[-1])]
        chosen = np.rint(np.linspace(0, len(stairs) - 1, min(points, len(stairs)))).astype(int)
        return tuple(stairs[chosen].tolist())


def monotone(table: FloatArray) -> FloatArray:
    """The nearest table whose costs never fall with the width: the mean of the upper and the lower envelope.

    The upper envelope is the largest cost of all narrower widths; the lower envelope is the least cost of all wider
    widths. Costs that rise stay unchanged. Costs may fall because of noise, or because a runtime is slow at one width.
    The mean corrects both sides equally, so the sum over many layers is not biased.
    """
    upper, lower = table, table
    for axis in range(table.ndim):
        upper = np.maximum.accumulate(upper, axis=axis)
        lower = np.flip(np.minimum.accumulate(np.flip(lower, axis), axis=axis), axis)
    return (upper + lower) / 2


def lookup(inputs: Axis, outputs: Axis, times: Mapping[Node, float]) -> FloatArray:
    """Costs [inputs.widths, outputs.widths], interpolated from the costs at the nodes; they never fall with a width.

    `times` must hold the full product of its input widths and its output widths, which must include the axes' ends.
    """
    ins, outs = (np.array(sorted(set(side))) for side in zip(*times, strict=True))
    grid = np.array([[times[a, b] for b in outs.tolist()] for a in ins.tolist()])
    grid = monotone(grid)
    output_widths = outputs.effective(outputs.widths)
    rows = np.stack([np.interp(output_widths, outs, row) for row in grid])
    input_widths = inputs.effective(inputs.widths)
    return monotone(np.stack([np.interp(input_widths, ins, column) for column in rows.T], axis=1))
