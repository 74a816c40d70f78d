"""The proof, on the user's own model, that the structure is right: sliced equals masked, at the claimed cost.

Parameters are first given random values, so that no zero weight or saturated activation can hide a misaligned
channel, and the comparison runs in double precision. A group that fails is found by bisection and locked.

Groups that an average runs over are whole in this check. Each of them is sliced alone, with the network's own weights,
and the difference from the masked network is measured and kept.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from amc.errors import ModelError, brief, message_of
from amc.structure.channels import Lock
from amc.structure.copying import copy_model, plain, undisturbed
from amc.structure.count import count_params, example_on_meta, module_macs, on_meta
from amc.structure.slicing import mask_model, slice_model
from amc.structure.source import line_of_error
from amc.structure.structure import Mask, Structure, lock_groups
from amc.structure.trace import Example, inference

# Largest difference allowed, relative to the largest output, by the precision of the comparison. A forward that
# insists on single precision, or on the model's own (None), is compared in that.
APPROXIMATE_KEPT = 0.75  # of the channels of an approximate group, when its difference is measured
APPROXIMATE_LIMIT = 0.5  # of the largest output: with more, an approximate group is locked

TOLERANCES: dict[torch.dtype | None, float] = {torch.float64: 1e-6, torch.float32: 1e-3, None: 5e-2}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of the check. `certify` also returns the structure in which the `failed` groups are locked.

    >>> structure, certificate = amc.certify(net, amc.inspect(net, x), x)
    >>> certificate.passed, certificate.keep_sets, certificate.failed
    (True, 3, ())
    """

    keep_sets: int
    worst_error: float  # relative to the largest output, over the keep sets that passed
    failed: tuple[tuple[str, Lock], ...]
    approximate: tuple[tuple[str, float], ...] = ()  # the difference, likewise, with three quarters of this group kept

    def to_json(self) -> dict[str, Any]:
        """The form in summary.json and `amc inspect --json`; `locked` names the groups that failed."""
        record = {
            "keep_sets": self.keep_sets,
            "worst_error": self.worst_error,
            "passed": self.passed,
            "locked": [name for name, _ in self.failed],
        }
        return record | ({"approximate": dict(self.approximate)} if self.approximate else {})

    @property
    def passed(self) -> bool:
        return not self.failed

    def __repr__(self) -> str:
        failed = ", ".join(name for name, _ in self.failed)
        outcome = f"{len(self.failed)} failed: {failed}" if failed else "passed"
        more = f", {len(self.approximate)} approximate" if self.approximate else ""
        return brief(
            f"Certificate({self.keep_sets} keep sets, largest difference {self.worst_error:.0e}, {outcome}{more})"
        )


def certify(
    model: nn.Module,
    structure: Structure,
    example_input: Any,
    *,
    keep_sets: int = 3,
    seed: int = 0,
    on_check: Callable[[int, int], None] | None = None,
) -> tuple[Structure, Certificate]:
    """Check `keep_sets` random keep sets; lock the groups for which sliced and masked differ.

    `on_check` hears after each keep set that passed how many did, and of how many.

    A group whose channels are averaged is no part of these keep sets. It is locked if its slice does not run, or if the
    slice differs from the masked network by more than half of the largest output when a quarter of the group is gone.

    Returns the structure with these locks, and the certificate. Raises ModelError if a copy of the whole network does
    not reproduce its output, or if a cost of the network or of a slice differs from torch's count.

    >>> amc.certify(net, amc.inspect(net, x), x, keep_sets=5)
    (Structure(1 group of ...), Certificate(5 keep sets, largest difference ..., passed))
    """
    with undisturbed(model):
        return _certified(plain(model), structure, Example.of(example_input), keep_sets, seed, on_check)


def check_counts(model: nn.Module, structure: Structure, example_input: Any, mask: Mask | None = None) -> None:
    """Compare the closed forms with torch's counter: on the network itself, or on its slice by `mask`.

    Raises ModelError, with the module and the operators, if the two differ, or if nothing can be counted.
    """
    sliced = model if mask is None else slice_model(model, structure, mask)
    counts = structure.sizes if mask is None else _keep_counts(structure, mask)
    counted = module_macs(sliced, example_input)
    if sum(counted[""].values()) != structure.cost.macs(counts):
        raise ModelError(_difference(type(model).__name__, counted, structure.cost.module_macs(counts), mask))
    params = count_params(sliced)
    if params != structure.cost.params(counts):
        raise ModelError(
            f"{type(model).__name__} has {params:,} parameters{_of(mask)} and the closed form says "
            f"{structure.cost.params(counts):,}: budgets would not hold; please report this network"
        )


def _keep_counts(structure: Structure, mask: Mask) -> list[int]:
    return [int(mask[group.offset : group.offset + group.size].sum()) for group in structure.groups]


Counted = Mapping[str, Mapping[str, int]]  # multiply-accumulates by module path and operator


def _difference(name: str, counted: Counted, claimed: Counted, mask: Mask | None) -> str:
    """The innermost module in which the two counts differ, in one line."""
    inside: dict[str, dict[str, int]] = {}  # like torch's counter: each module includes the modules inside it
    for path, operators in claimed.items():
        parts = path.split(".") if path else []
        for depth in range(len(parts) + 1):
            total = inside.setdefault(".".join(parts[:depth]), {})
            for operator, macs in operators.items():
                total[operator] = total.get(operator, 0) + macs
    differing = [
        path
        for path in {**counted, **inside}
        if sum(counted.get(path, {}).values()) != sum(inside.get(path, {}).values())
    ]
    where = max(differing, key=lambda path: path.count(".") + bool(path))
    theirs, ours = counted.get(where, {}), inside.get(where, {})
    return (
        f"torch counts {sum(theirs.values()):,} MACs in {repr(where) if where else name}{_of(mask)} "
        f"({_listed(theirs)}) and the closed form {sum(ours.values()):,} ({_listed(ours)}): budgets would not hold; "
        "does its forward do something else at every call? If not, please report this network"
    )


def _of(mask: Mask | None) -> str:
    return "" if mask is None else " after pruning"


def _listed(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{operator} {macs:,}" for operator, macs in operators.items()) or "nothing"


def _certified(
    model: nn.Module,
    structure: Structure,
    example: Example,
    keep_sets: int,
    seed: int,
    on_check: Callable[[int, int], None] | None,
) -> tuple[Structure, Certificate]:
    check_counts(model, structure, example)
    check = _Check(model, structure, example, seed)
    rng = np.random.default_rng(seed)
    failed: dict[str, Lock] = {}
    measured = _measured(model, structure, check, rng)
    failed |= {name: found for name, found in measured.items() if isinstance(found, Lock)}
    approximate = tuple((name, found) for name, found in measured.items() if not isinstance(found, Lock))
    worst, passed = 0.0, 0
    while passed < keep_sets:
        mask = random_mask(structure, rng)
        for name in failed.keys() | measured.keys():
            _keep_all(structure, mask, name)
        error = check.difference(mask)
        if isinstance(error, float):
            check.count(mask)
            worst, passed = max(worst, error), passed + 1
            if on_check is not None:
                on_check(passed, keep_sets)
            continue
        names = _offenders(structure, check, mask, _exact(structure, failed))
        if not names:  # the failure does not repeat
            raise ModelError(
                f"{type(model).__name__} cannot be certified: its forward is random in eval mode; fix its random state"
            )
        failed |= names
    return lock_groups(structure, failed), Certificate(keep_sets, worst, tuple(failed.items()), approximate)


def _exact(structure: Structure, failed: Mapping[str, Lock]) -> list[str]:
    return [group.name for group in structure.groups if group.name not in failed and group.averaged is None]


def _measured(
    model: nn.Module, structure: Structure, check: _Check, rng: np.random.Generator
) -> dict[str, float | Lock]:
    """The difference of each approximate group on the network's own weights, or why it is locked."""
    groups = [group for group in structure.groups if group.averaged is not None]
    if not groups:
        return {}
    own, found = check.of_own_weights(model), dict[str, float | Lock]()
    for group in groups:
        mask = np.ones(structure.channels, dtype=bool)
        gone = max(1, round((1 - APPROXIMATE_KEPT) * group.size))
        mask[group.offset + rng.choice(group.size, gone, replace=False)] = False
        found[group.name] = own.difference(mask, APPROXIMATE_LIMIT)
        if not isinstance(found[group.name], Lock):
            check.count(mask)
    return found


def random_mask(structure: Structure, rng: np.random.Generator) -> Mask:
    """Every group keeps a random non-empty set. The sizes differ, so that a literal size fails."""
    mask = np.zeros(structure.channels, dtype=bool)
    for group in structure.groups:
        count = int(rng.integers(1, group.size)) if group.size > 1 else 1
        mask[group.offset + rng.choice(group.size, count, replace=False)] = True
    return mask


def _keep_all(structure: Structure, mask: Mask, name: str) -> None:
    group = structure.group(name)
    mask[group.offset : group.offset + group.size] = True


def _offenders(structure: Structure, check: _Check, mask: Mask, names: Sequence[str]) -> dict[str, Lock]:
    """Groups that fail alone, by bisection. If only a combination fails: all groups in it."""
    by_size = check.obstacle(mask) is not None  # then the sizes show the failure, without arithmetic

    def outcome(subset: Sequence[str]) -> Lock | None:
        trial = np.ones_like(mask)
        for name in subset:
            group = structure.group(name)
            part = slice(group.offset, group.offset + group.size)
            trial[part] = mask[part]
        result = check.obstacle(trial) if by_size else check.difference(trial)
        return result if isinstance(result, Lock) else None

    whole = outcome([])
    if whole is not None:
        raise ModelError(
            f"{type(check.model).__name__} does not reproduce itself when copied ({whole}): if its forward is random "
            "in eval mode, fix its random state; if it reads objects outside the network, let it read copies"
        )

    def search(subset: Sequence[str], lock: Lock) -> dict[str, Lock]:
        if len(subset) == 1:
            return {subset[0]: lock}
        offenders: dict[str, Lock] = {}
        half = len(subset) // 2
        for part in (subset[:half], subset[half:]):
            result = outcome(part)
            if result is not None:
                offenders |= search(part, result)
        return offenders or dict.fromkeys(subset, lock)

    first = outcome(names)
    return search(names, first) if first is not None else {}


class _Check:
    """Compares sliced and masked networks on the example input."""

    def __init__(self, model: nn.Module, structure: Structure, example: Example, seed: int) -> None:
        self.structure = structure
        self.generator = torch.Generator().manual_seed(seed)
        self.model, self.example, self.tolerance = self._prepared(model, example)
        self.sizes = self._sizes()

    def of_own_weights(self, model: nn.Module) -> _Check:
        """The same check of the network as it is, in this precision."""
        found = copy.copy(self)
        found.model = copy_model(model)
        precision = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        found.model = found.model if precision is None else found.model.to(precision)
        return found

    def difference(self, mask: Mask, limit: float | None = None) -> float | Lock:
        """Largest difference relative to the largest output, or the reason why they differ.

        `limit`: of the difference; by default, what rounding may do.
        """
        limit = self.tolerance if limit is None else limit
        obstacle = self.obstacle(mask)
        if obstacle is not None:
            return obstacle
        try:
            sliced = self._run(slice_model(self.model, self.structure, mask))
        except Exception as error:  # the user's forward may raise anything on a size it did not expect
            return _literal_size(error)
        masked = self._run(mask_model(self.model, self.structure, mask))
        errors = [0.0]
        for a, b in zip(sliced, masked, strict=True):
            if a.shape != b.shape:
                return Lock("slicing it changes the shape of the output")
            if b.numel():
                errors.append(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30))
        if not all(error <= limit for error in errors):  # NaN included
            return Lock(f"the sliced network differs from the masked one by {max(errors):.1e} of its output")
        return max(errors)

    def count(self, mask: Mask) -> None:
        """Raise ModelError if a cost of the sliced network differs from torch's count."""
        model, example = self.sizes or (self.model, self.example)
        check_counts(model, self.structure, example, mask)

    def obstacle(self, mask: Mask) -> Lock | None:
        """Why the sliced network does not run, judged by its sizes alone, without arithmetic."""
        if self.sizes is None:
            return None
        model, example = self.sizes
        try:
            with torch.device("meta"):
                self._outputs(slice_model(model, self.structure, mask), example)
        except Exception as error:  # as above
            return _literal_size(error)
        return None

    def _sizes(self) -> tuple[nn.Module, Example] | None:
        """Model and example without storage; None for a forward that needs values."""
        model, example = on_meta(self.model), example_on_meta(self.example)
        try:
            with torch.device("meta"):
                self._outputs(on_meta(model), example)
        except Exception:  # a network that cannot run there is judged by a full run
            return None
        return model, example

    def _prepared(self, model: nn.Module, example: Example) -> tuple[nn.Module, Example, float]:
        """The model in the highest precision that its forward accepts, if possible with random parameters.

        Where random parameters overflow it keeps its own: NaN cannot be compared with NaN.
        """
        for dtype, tolerance in TOLERANCES.items():
            cast = functools.partial(_cast, dtype=dtype)
            inputs = Example(tree_map(cast, example.args), tree_map(cast, dict(example.kwargs)))
            for candidate in (_randomised(model, self.generator), copy_model(model)):
                candidate = candidate.to(dtype) if dtype is not None else candidate
                try:
                    outputs = self._outputs(copy_model(candidate), inputs)  # the model to slice must not have run
                except (RuntimeError, TypeError):  # mixed precisions in the forward
                    break
                if all(bool(out.isfinite().all()) for out in outputs) and any(bool(out.any()) for out in outputs):
                    return candidate, inputs, tolerance
        raise ModelError(
            f"{type(model).__name__} cannot be certified: on the example input it returns nothing but zeros, NaN or "
            "infinite values; check the weights and the example input"
        )

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        return self._outputs(model, self.example)

    @staticmethod
    def _outputs(model: nn.Module, example: Example) -> list[torch.Tensor]:
        example = example.cloned()
        with inference(model):
            out = model(*example.args, **example.kwargs)
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _literal_size(error: Exception) -> Lock:
    return Lock(f"the forward insists on a literal size: {message_of(error)[:120]}", source=line_of_error(error))


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and dtype is not None else value


def _randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random parameters and statistics of ordinary size."""
    copied = copy_model(model)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return (torch.rand(tensor.shape, generator=generator) * (high - low) + low).to(tensor)

    with torch.no_grad():
        for parameter in copied.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim < 2:
                parameter.copy_(uniform(parameter, 0.5, 1.5))
            else:
                bound = (3 / max(1, parameter[0].numel())) ** 0.5
                parameter.copy_(uniform(parameter, -bound, bound))
        for name, buffer in copied.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(uniform(buffer, 0.5, 1.5))
            elif name.endswith("running_mean"):
                buffer.copy_(uniform(buffer, -0.5, 0.5))
    return copied
