"""Widths, stairs and monotone tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amc.deploy.table.grid import CELLS, Axis, lookup, monotone
from tests.deploy.benches import smooth, stairs

TABLES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(0.01, 100))


@given(TABLES)
def test_monotone_never_falls_and_stays_between_the_envelopes(table: np.ndarray) -> None:
    result = monotone(table)
    assert (np.diff(result, axis=0) >= 0).all()
    assert (np.diff(result, axis=1) >= 0).all()
    for i, j in np.ndindex(*table.shape):
        assert table[i:, j:].min() / 2 + table[: i + 1, : j + 1].max() / 2 == pytest.approx(result[i, j])


@given(TABLES)
def test_monotone_leaves_a_rising_table_as_it_is(table: np.ndarray) -> None:
    rising = np.cumsum(np.cumsum(table, axis=0), axis=1)
    assert monotone(rising) == pytest.approx(rising)


def axes(step: int) -> st.SearchStrategy[Axis]:
    return st.builds(
        lambda low, extra, unit: Axis(low * unit, (low + extra) * unit, unit, step),
        st.integers(1, 64), st.integers(0, 2048), st.sampled_from([1, 2, 49]),
    )  # fmt: skip


@given(st.sampled_from([1, 4, 8, 16]).flatmap(axes), st.integers(2, 12))
def test_an_axis_covers_its_range_with_few_widths_and_nodes(axis: Axis, points: int) -> None:
    widths, nodes = axis.widths, axis.nodes(points)
    assert (widths[0], widths[-1]) == (axis.low, axis.high)
    assert (np.diff(widths) > 0).all()
    assert len(widths) <= CELLS + 1
    assert 1 <= len(nodes) <= points
    assert nodes[-1] == axis.effective(axis.high)
    assert nodes[0] == axis.effective(axis.low)
    assert all(axis.low <= node <= axis.high for node in nodes)
    effective = axis.effective(widths)
    assert (np.diff(effective) >= 0).all()
    assert (effective >= np.minimum(widths, axis.high)).all()


def test_stairs_are_multiples_of_the_step() -> None:
    assert Axis(4, 64, 1, 16).effective([4, 15, 16, 17, 40, 64]).tolist() == [4, 15, 16, 32, 48, 64]
    assert Axis(4, 64, 1, 16).nodes(9) == (4, 8, 12, 16, 32, 48, 64)
    assert Axis(40, 60, 1, 16).nodes(9) == (48, 60)
    assert Axis(8, 100, 4, 1).nodes(3) in {(8, 52, 100), (8, 56, 100)}


def test_a_bilinear_law_is_interpolated_exactly_from_its_corners() -> None:
    """t = a * in * out + b * out is linear in each width, so four nodes determine it."""
    inputs, outputs = Axis(8, 64, 1, 1), Axis(16, 128, 1, 1)
    times = {(a, b): smooth(a, b, 100) for a in (8, 64) for b in (16, 128)}
    table = lookup(inputs, outputs, times)
    expected = [[smooth(a, b, 100) for b in outputs.widths.tolist()] for a in inputs.widths.tolist()]
    assert table == pytest.approx(np.array(expected))


def test_a_staircase_with_a_known_step_is_interpolated_exactly() -> None:
    axis = Axis(8, 64, 1, 8)
    times = {(a, b): stairs(a, b, 100) for a in axis.nodes(99) for b in axis.nodes(99)}
    expected = [[stairs(a, b, 100) for b in axis.widths.tolist()] for a in axis.widths.tolist()]
    assert lookup(axis, axis, times) == pytest.approx(np.array(expected))


def test_a_wide_axis_has_a_larger_spacing() -> None:
    axis = Axis(100, 2148, 1, 1)
    assert axis.spacing == 16
    assert len(axis.widths) == CELLS + 1
