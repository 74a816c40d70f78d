"""What every way of compressing a network has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from amc.errors import BudgetError
from amc.pruning import Calibration, Policy
from amc.run.settings import MAX_SPARSITY, MAX_SPARSITY_LINEAR, Ranking
from amc.search import Budget, CostFunction, Decision, Metric, Problem
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
    """Keep counts to networks, once everything that can be computed beforehand has been."""

    def policy(self, keep_counts: Sequence[int]) -> Policy:
        """What is kept, decision by decision."""
        ...

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """The compressed network: a new module, in eval mode."""
        ...


class Method(Protocol):
    """A way of compressing one network: what the agent decides, what that costs, and how it is built.

    `whole`: what stays as it is, by name, with the reason: locked by the user's patterns or by the network itself.
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
    def whole(self) -> Mapping[str, str]: ...

    def checked(self, example_input: Any, *, keep_sets: int) -> tuple[Method, Certificate | None]:
        """The method on what holds on this network, after its costs were compared with torch's counter.

        A method that slices certifies `keep_sets` random keep sets (0: none) and locks the groups that fail (see
        `amc.structure.certify`); another has no certificate. Raises ModelError where nothing prunable is left, or
        where a cost differs.
        """
        ...

    def locked(self) -> list[dict[str, Any]]:
        """What stays whole, as summary.json lists it: its name, the reason, and of channels their number (`size`)."""
        ...

    def warnings(self) -> list[str]:
        """What the user should know before the search, a line each."""
        ...

    def calibrated(self) -> Mapping[str, Layer]:
        """The layers whose inputs the method wants to know, by weight name."""
        ...

    def builder(self, calibration: Calibration | None) -> Builder:
        """Rank, factorise, and be ready to build; without a calibration by magnitude and without refitting."""
        ...

    def finish_(self, slim: nn.Module, example_input: Any) -> None:
        """Bring what a built network declares of its own sizes in line, in place; only slicing changes any."""
        ...

    def masks(self, slim: nn.Module) -> dict[str, Tensor]:
        """For training: by parameter name, bool of its shape, True = kept; empty where every weight may change."""
        ...

    def stored(self, model: nn.Module) -> bytes:
        """A network of this method as the bytes of its file."""
        ...

    def recount(self, model: nn.Module, example_input: Any) -> dict[str, int]:
        """The costs of a built network, counted on the network itself: macs, params, size (bytes of its file)."""
        ...


def problem_of(
    method: Method,
    budgets: tuple[Budget, ...],
    metric: Metric | None = None,
    *,
    decisions: tuple[Decision, ...] | None = None,
    measured: Mapping[Metric, CostFunction] | None = None,
) -> Problem:
    """The search problem. BudgetError where nothing can be pruned or a budget cannot be reached.

    `metric`: without a budget, the cost that the reward is about, in which the agent then sees its progress.
    `decisions`: in place of the method's own. `measured`: costs beside its closed forms, such as the latency.
    """
    decisions = decisions or method.decisions
    if not decisions:  # a masked layer may be left alone without being locked
        raise BudgetError(_nothing_to_prune(method))
    costs = {**method.costs, **(measured or {})}
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
