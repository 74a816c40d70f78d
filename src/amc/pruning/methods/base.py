"""The interface of every method of compression, and the search problem of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from amc.errors import BudgetError
from amc.pruning import Calibration, Policy
from amc.pruning.ranking import Order
from amc.run.settings import MAX_SPARSITY, MAX_SPARSITY_LINEAR, Ranking
from amc.search import Budget, CostFunction, Decision, Metric, Problem
from amc.search.problem import FloatArray
from amc.structure import Certificate, Layer, Structure


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """How a method prunes; `SearchConfig` has the same fields and checks them."""

    round_to: int | None = None  # channels
    max_sparsity: float = MAX_SPARSITY
    max_sparsity_linear: float = MAX_SPARSITY_LINEAR
    ranking: Ranking | None = None  # None: elimination for channels, magnitude for masks
    reconstruct: bool = True


class Builder(Protocol):
    """Builds networks from keep counts, with everything computed in advance that does not depend on them."""

    def policy(self, keep_counts: Sequence[int]) -> Policy:
        """What is kept, decision by decision."""
        ...

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """The compressed network: a new module, in eval mode."""
        ...

    def sliced(self, tensors: Mapping[str, Tensor], keep_counts: Sequence[int]) -> dict[str, Tensor]:
        """Values with the names and shapes of the dense network's parameters or buffers, as that network has them."""
        ...

    def errors(self, choices: Sequence[Sequence[int]]) -> tuple[FloatArray, ...]:
        """For every decision, what the layers lose at each of these keep counts: [counts], in [0, 1] a layer.

        Empty where the method computes no errors.
        """
        ...


class Finishing(Protocol):
    """What the end of a job does with the networks that a method has built."""

    def masks(self, slim: nn.Module) -> dict[str, Tensor]:
        """For training, by weight name: True where a weight of a built network may change; empty if all may."""
        ...

    def stored(self, model: nn.Module, under: str = "") -> bytes:
        """The bytes of the file of a network of this method. `under`: before the names of the weights that are masked.

        A network that has the built one as a part is stored with that part's name and a dot.
        """
        ...

    def recount(self, model: nn.Module, example_input: Any) -> dict[str, int]:
        """The costs of a built network, counted on the network itself: macs, params, size (bytes of its file), memory.

        Without the memory if the network cannot be traced again.
        """
        ...


class Method(Finishing, Protocol):
    """A way of compressing one network: what the agent decides, what that costs, and how it is built.

    `whole`: the reason for each group or layer that stays whole, by name: the user's patterns or the network lock it.
    """

    @property
    def name(self) -> str: ...

    @property
    def structure(self) -> Structure: ...

    @property
    def decisions(self) -> tuple[Decision, ...]: ...

    @property
    def costs(self) -> Mapping[Metric, CostFunction]:
        """Closed forms; the size is the largest that the stored file can have."""
        ...

    @property
    def optional_costs(self) -> Mapping[Metric, CostFunction]:
        """Closed forms that a search has only if it is asked for them."""
        ...

    @property
    def whole(self) -> Mapping[str, str]: ...

    def checked(
        self,
        example_input: Any,
        *,
        keep_sets: int,
        known: Certificate | None = None,
        on_check: Callable[[int, int], None] | None = None,
    ) -> tuple[Method, Certificate | None]:
        """The method without the groups that fail a check on this network. Compares its costs with torch's counter.

        `known`: the certificate of an earlier session on the same structure, which is then not checked again.
        `on_check`: as in `amc.structure.certify`.
        A method that slices certifies `keep_sets` random keep sets (0: none) and locks the groups that fail (see
        `amc.structure.certify`); a method that masks has no certificate. Raises ModelError if nothing prunable is left
        or a cost differs.
        """
        ...

    def locked(self) -> list[dict[str, Any]]:
        """The entries of summary.json for `whole`: name, reason and, for channels, their number (`size`)."""
        ...

    def warnings(self) -> list[str]:
        """Warnings for the user before the search, one line each."""
        ...

    def calibrated(self) -> Mapping[str, Layer]:
        """The layers whose inputs the method needs a calibration of, by weight name."""
        ...

    def builder(
        self,
        calibration: Calibration | None,
        orders: Mapping[str, Order] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Builder:
        """The builder, ranked and factorised. Without a calibration it ranks by magnitude and does not refit.

        `orders`: the `Pruner.orders` of an earlier session. Masks are ranked by one sort, and ranked again.
        `on_step` hears how many steps are done, and of how many.
        """
        ...

    def finish_(self, slim: nn.Module, example_input: Any) -> None:
        """Update the sizes that a built network declares, in place; only slicing changes them."""
        ...

    def weights(self) -> tuple[str, ...]:
        """The weights that may be masked, by name."""
        ...


def problem_of(
    method: Method,
    budgets: tuple[Budget, ...],
    metric: Metric | None = None,
    *,
    decisions: tuple[Decision, ...] | None = None,
    measured: Mapping[Metric, CostFunction] | None = None,
) -> Problem:
    """The search problem. Raises BudgetError if nothing can be pruned or a budget cannot be reached.

    `metric`: without a budget, the cost in the reward, by which the agent also sees its progress. `decisions` replace
    the method's own. `measured`: costs besides the closed forms, such as the latency.
    """
    decisions = decisions or method.decisions
    if not decisions:  # a masked layer may have only the dense choice without being locked
        raise BudgetError(_nothing_to_prune(method))
    asked = {metric, *(budget.metric for budget in budgets)}
    optional = {name: cost for name, cost in method.optional_costs.items() if name in asked}
    for budget in budgets:
        if budget.metric is Metric.MEMORY and Metric.MEMORY not in optional:
            raise BudgetError(
                f"budget {budget}: method {method.name} sets weights to zero, which leaves every activation as it is; "
                "limit macs, params or size, or choose method channel"
            )
    costs = {**method.costs, **optional, **(measured or {})}
    first = {metric: costs[metric]} if metric is not None and metric in costs else {}
    return Problem(decisions, {**first, **costs}, budgets)


def _nothing_to_prune(method: Method) -> str:
    nothing = f"there is nothing to prune: method {method.name} leaves every layer as it is"
    if not method.structure.layers:
        return (
            f"{nothing}: no parameter is the weight of a convolution, a product or a recurrent layer; "
            "`amc inspect` lists what is locked and why"
        )
    if not method.whole:
        return f"{nothing}; raise max-sparsity or max-sparsity-linear"
    name, reason = next(iter(method.whole.items()))
    more = f", and {len(method.whole) - 1} more" if len(method.whole) > 1 else ""
    return f"{nothing}, {name} ({reason}){more}; choose another method, or change lock, only or max-sparsity"
