"""Nothing that the product computes with is wrong on any instruction set that can be tried here."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch

from tests.kernels.cases import CHANNELS, KERNELS, LAST, LAYOUTS, STRIDES, Case, covering_grid, full_grid
from tests.kernels.sweep import AVX2, IS_X86, SETTINGS, Setting, findings, sweep

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="the sweep forks, and checks glibc's heap")
GRID = tuple(dict.fromkeys(covering_grid()))


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_kernel_is_right(setting: Setting, threads: int) -> None:
    found = [str(finding) for finding in findings(GRID, sweep(GRID, setting, threads=threads))]
    assert found == []


@needs_fork
@pytest.mark.slow
@pytest.mark.skipif(not IS_X86 or torch.__version__.partition("+")[0] != "2.13.0", reason="a fault of this version")
def test_the_known_fault_is_found_where_nothing_guards_against_it() -> None:
    """So that the sweep that finds nothing is known to look. With two threads the fault often ends in a deadlock."""
    cases = [case for case in GRID if case.is_strided_pointwise and case.layout == LAST and case.size == 64]
    found = {finding.case.inputs for finding in findings(cases, sweep(cases, AVX2, guarded=False))}
    assert found >= {3, 5, 6, 7}
    assert found <= set(range(1, 8))  # a vector of AVX2 has eight


@needs_fork
def test_a_crash_names_its_case_and_costs_no_other() -> None:
    cases = [Case("linear", 3, 4), Case("planted crash", 1), Case("linear", 5, 2)]
    first, crash, second = sweep(cases)
    assert crash == {"crash": "SIGABRT"}
    assert first["errors"].keys() == second["errors"].keys() == {
        "output", "gradient of input", "gradient of argument 1", "gradient of argument 2"
    }  # fmt: skip
    assert list(map(str, findings(cases, [first, crash, second]))) == [f"SIGABRT: {cases[1]}"]


@needs_fork
def test_a_case_that_never_comes_back_is_a_finding() -> None:
    case = Case("planted hang", 1)
    assert sweep([case], options=("--hang", "1")) == [{"crash": "hangs"}]


def test_a_result_that_is_off_is_a_finding_and_one_that_is_not_a_number_too() -> None:
    case = Case("linear", 3)
    outcomes = [{"errors": {"output": value}} for value in (1e-5, 0.02, float("nan"), sys.float_info.max)]
    found = [finding.how for finding in findings([case] * 4, outcomes)]
    assert found[:2] == ["output off by 2.0%", "output off by nan%"]
    assert len(found) == 3


def test_the_grid_in_the_tests_covers_what_the_full_one_has() -> None:
    full = tuple(full_grid())
    assert set(GRID) <= set(full)
    assert {case.operation for case in GRID} == {case.operation for case in full}
    shapes = Counter((c.inputs, c.kernel, c.stride, c.layout) for c in GRID if c.operation == "conv2d" and c.size == 8)
    for channels in CHANNELS:
        for kernel in KERNELS:
            assert all(shapes[channels, kernel, stride, layout] for stride in STRIDES for layout in LAYOUTS)
    assert {case.batch for case in GRID} >= {1, 33, 64}
    assert {case.dtype for case in GRID if case.operation == "conv2d"} == {"float32", "bfloat16"}
    assert {case.groups == case.inputs for case in GRID if case.inputs > 1} == {True, False}
