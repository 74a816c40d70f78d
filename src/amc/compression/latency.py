"""Latency as a cost of the search: a table predicts it, and the prediction bounds the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from amc.deploy.table import Bench, Latency, Place, latency_table
from amc.deploy.table.measuring import Build, Told
from amc.errors import BudgetError
from amc.search import Budget, Decision, Metric
from amc.structure import Structure

ALIGN = 8  # runtimes have fast code for multiples of 8 channels; other widths are as slow as the next multiple
NARROW = 4  # the same for groups of fewer channels

# The places of files and buffers in memory change a ratio by about 1% from one process to the next.
GUARD = 0.05  # share of a limit that the prediction leaves free; the measured network must leave half of it free


def aligned(decisions: Sequence[Decision], round_to: int | None) -> tuple[Decision, ...]:
    """The same decisions without the keep counts that runtimes handle badly, unless the user chose the rounding."""
    if round_to is not None:
        return tuple(decisions)
    narrowed = []
    for decision in decisions:
        kept = tuple(count for count in decision.choices if _is_fast(count) or count == decision.size)
        narrowed.append(replace(decision, choices=kept))
    return tuple(narrowed)


def _is_fast(count: int) -> bool:
    return count % (ALIGN if count > ALIGN else NARROW) == 0


def latency_of(
    model: nn.Module,
    structure: Structure,
    example_input: Any,
    decisions: Sequence[Decision],
    build: Build,
    bench: Bench,
    *,
    budgets: Sequence[Budget] = (),
    stored: Path | None,
    warn: Callable[[str], None],
    on_step: Callable[[int, int], None] | None = None,
) -> Latency:
    """The network's latency table: that of the run being resumed (`stored`), from the cache, or measured now.

    Raises BudgetError for a latency budget that cannot be reached, before most of the table is measured.
    """
    choices = [decision.choices for decision in decisions]

    def check(dense_ms: float, least_ms: float) -> None:
        for budget in budgets:
            if budget.metric is Metric.LATENCY:
                _check_reachable(budget, dense_ms, least_ms, bench.place)

    told = Told(check, warn, on_step)
    latency = latency_table(model, structure, example_input, choices, build, bench, stored=stored, told=told)
    check(latency.dense_ms, float(latency.cost(np.array([options[0] for options in choices]))))
    return latency


def _check_reachable(budget: Budget, dense_ms: float, least_ms: float, place: Place) -> None:
    """Raise BudgetError for a limit above the dense latency, or below that of the smallest network."""
    if budget.absolute is not None and budget.absolute > dense_ms:
        raise BudgetError(
            f"budget {budget} is above the dense network's {dense_ms:.3g} ms on {place}: it asks for nothing; lower it "
            "or leave it out"
        )
    if least_ms > limit_ms(budget, dense_ms):
        raise BudgetError(
            f"budget {budget} cannot be reached: even at the largest sparsity of every group the network takes "
            f"{least_ms:.3g} of {dense_ms:.3g} ms on {place}; raise the budget to "
            f"{np.ceil(1000 * least_ms / dense_ms / (1 - GUARD)) / 10:g}% ({least_ms / (1 - GUARD):.3g} ms) or more"
        )


def limit_ms(budget: Budget, dense_ms: float) -> float:
    """The predicted latency that a budget allows in the search: its limit minus the guard."""
    return budget.limit(dense_ms) * (1 - GUARD)


def guarded(budgets: Sequence[Budget], latency: Latency) -> tuple[Budget, ...]:
    """The budgets of the search: latency budgets minus the guard, others unchanged."""
    return tuple(
        Budget(Metric.LATENCY, absolute=limit_ms(budget, latency.dense_ms))
        if budget.metric is Metric.LATENCY
        else budget
        for budget in budgets
    )
