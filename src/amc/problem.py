"""From a network's structure to the numbers that a search sees."""

from __future__ import annotations

import math

from amc.search import Budget, Decision, LayerFeatures, Metric, Problem
from amc.structure import Group, Structure

MAX_SPARSITY = 0.8  # largest share of a group's channels that may go (arXiv 1802.03494, section 4)
LEAST_CHOICES = 8  # rounding leaves a group at least this many keep counts
ROUND_TO = 8  # channel counts that vector units like


def make_problem(
    structure: Structure,
    budgets: tuple[Budget, ...],
    *,
    round_to: int | None = None,
    max_sparsity: float = MAX_SPARSITY,
) -> Problem:
    """One decision a group, in execution order, priced by the structure's closed forms.

    `round_to` None means 8 where a group is wide enough, else the largest power of two that leaves it at least
    8 keep counts. Raises BudgetError where nothing can be pruned or the budget cannot be reached.
    """
    decisions = tuple(
        Decision(
            group.name,
            group.size,
            keep_choices(group.size, round_to, max_sparsity),
            _features(structure, group),
        )
        for group in structure.groups
    )
    costs = {
        Metric.MACS: lambda keep_counts: structure.cost(keep_counts, "macs"),
        Metric.PARAMS: lambda keep_counts: structure.cost(keep_counts, "params"),
    }
    return Problem(decisions, costs, budgets)


def keep_choices(size: int, round_to: int | None, max_sparsity: float) -> tuple[int, ...]:
    """Keep counts on offer: multiples of the rounding, and the whole group."""
    step = round_to or min(ROUND_TO, 1 << max(0, int(math.log2(max(1, size // LEAST_CHOICES)))))
    least = max(1, math.ceil(size * (1 - max_sparsity) - 1e-9))
    return tuple(sorted({*(k for k in range(step, size, step) if k >= least), size}))


def _features(structure: Structure, group: Group) -> LayerFeatures:
    """The layer that reads most of the group; the paper's state describes the layer whose input is pruned."""
    layers = [structure.layers[index] for index in group.consumers or group.producers]
    if not layers:
        return LayerFeatures(n=1, c=group.size, h=1, w=1, stride=1, k=1, macs=0)
    main = max(layers, key=lambda layer: layer.macs)
    height, width = (*main.input_size, 1, 1)[:2]
    return LayerFeatures(
        n=main.output.size,
        c=main.input.size,
        h=height,
        w=width,
        stride=max(main.stride, default=1),
        k=max(main.kernel, default=1),
        macs=sum(layer.macs for layer in layers),
    )
