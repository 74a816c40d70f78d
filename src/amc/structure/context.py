"""What an operator rule sees and may do.

A rule receives the operator's arguments with every tensor replaced by a `Tracked` one and returns the ids of
the output's dimensions. A dimension without ids (`None`) has a fixed size: whatever is tied to it is locked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.fx import Node

from amc.structure.calls import MARK
from amc.structure.channels import ChannelTable, Ids, Lock
from amc.structure.literals import Literal
from amc.structure.source import line_of_node
from amc.structure.structure import Attribute, Bound, WeightUse
from amc.structure.trace import module_path

Dims = tuple[Ids | None, ...]
Rule = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Tracked:
    """A tensor as the rules see it: its shape and, per dimension, its channel ids or None.

    `name` is set for parameters and buffers of the model, and for views that only permute, add or drop dimensions
    of size one, or repeat one. `axes` then gives the tensor's own dimension behind each dimension of the view (None
    for a new one).
    """

    shape: tuple[int, ...]
    ids: Dims
    name: str | None = None
    axes: tuple[int | None, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class Term:
    """Part of the multiply-accumulates: `factor` times the kept positions of each dimension.

    `vanishing` [dims]: if this dimension has one position left, torch multiplies instead of contracting and counts
    nothing.
    """

    layer: int | None  # index of the layer, None for an operator without one
    factor: int
    dims: tuple[Ids, ...]
    vanishing: tuple[bool, ...]
    module: str  # path of the module that calls the operator
    operator: str

    @property
    def dense(self) -> int:
        """Multiply-accumulates of the dense network."""
        return self.factor * math.prod(ids.size for ids in self.dims)


@dataclass(frozen=True, slots=True)
class LayerUse(WeightUse):
    """A layer whose channels are still ids. It becomes an `amc.structure.Layer` when they are resolved.

    `input_ids` and `output_ids`: the ids of all input and output channels. If several dimensions of the weight make up
    the channels, each dimension with ids has one entry, over all channels.
    """

    module: str
    input_ids: tuple[Ids, ...]
    output_ids: tuple[Ids, ...]
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor that an operator returns."""

    tensor: Tracked
    itemsize: int  # bytes of an element
    viewed: Tracked | None  # the input whose memory it shares, if it does


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator as the memory sees it."""

    inputs: tuple[Tracked, ...]
    results: tuple[Result, ...]
    elementwise: bool


SplitKey = tuple[str, tuple[int, ...]]  # module path and shape: queries, keys and values are split alike


@dataclass(frozen=True, slots=True)
class Split:
    """One dimension that a reshape spreads over several, where more than one could stay prunable."""

    key: SplitKey
    ids: Ids
    axes: int  # how many candidate axes


@dataclass(slots=True)
class Context:
    """The state of one walk over the graph."""

    table: ChannelTable
    choices: Mapping[SplitKey, int]  # how many candidate axes of a split to pass over
    literals: tuple[Literal, ...] = ()
    attributes_known: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by module path
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes by name
    count: Callable[[Node], int | None] = lambda _: None  # torch's count of an operator
    approximate: bool = False  # whether channels may go whose absence changes what averages over them
    node: Node | None = None
    live: bool = True  # whether anything the network returns depends on the operator
    unruled: bool = False  # whether the operator was locked because it has no rule
    terms: list[Term] = field(default_factory=list)
    layers: list[LayerUse] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)  # those that the network's outputs need, as they run
    free: list[Ids] = field(default_factory=list)  # dimensions that repeat one value
    repeats: set[tuple[str, str]] = field(
        default_factory=set
    )  # attributes, by module, that such a dimension had as size
    used: dict[str, str] = field(default_factory=dict)  # parameter -> the operator, not a layer, that uses it

    @property
    def output_shape(self) -> tuple[int, ...]:
        assert self.node is not None
        return tuple(self.node.meta["val"].shape)

    @property
    def operator(self) -> str:
        assert self.node is not None
        return str(self.node.target)

    def argument(self, name: str) -> Any:
        """An argument of the operator by the name its schema gives it, or its default; None if it has none."""
        assert self.node is not None
        for position, argument in enumerate(self.node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name:
                given = self.node.args[position] if position < len(self.node.args) else argument.default_value
                return self.node.kwargs.get(name, given)
        return None

    @property
    def call(self) -> str:
        """The name of the call in the forward that made the operator, see `amc.structure.calls`; "" if it has none."""
        assert self.node is not None
        return str((self.node.meta.get("custom") or {}).get(MARK, ""))

    @property
    def module(self) -> str:
        assert self.node is not None
        return module_path(self.node)

    def at(self, node: Node) -> Context:
        """The same walk seen from another operator."""
        return replace(self, node=node)

    def because(self, reason: str) -> Lock:
        assert self.node is not None
        return Lock(reason, module_path(self.node), line_of_node(self.node))

    def lock(self, ids: Ids | None, reason: str) -> None:
        if ids is not None:
            self.table.lock(ids, self.because(reason))

    def average(self, ids: Ids | None, reason: str) -> None:
        """An average runs over these ids: without some of them it changes. Locked, unless `approximate`."""
        if ids is None:
            return
        if self.approximate:
            self.table.averages.append((ids.ravel(), self.because(reason)))
        else:
            self.lock(ids, reason)

    def stretched(self, size: int, *, place: int | None = None) -> Ids:
        """Ids of a dimension that repeats one value; those that no parameter is tied to are locked in the end.

        `place`: of the size among the numbers of the call, from the end.
        """
        ids = self.table.fresh(size)
        self.free.append(ids)
        self.repeats |= {
            (each.module, each.name) for each in self._literals() if (each.size, each.place) == (size, place)
        }
        return ids

    def is_stretched(self, ids: Ids | None) -> bool:
        return any(ids is free for free in self.free)

    def tie(self, a: Ids | None, b: Ids | None) -> Ids | None:
        """Tie two dimensions of one size; returns the ids of the result."""
        if a is None or b is None:
            self.lock(a if b is None else b, f"{self.operator} ties it to a dimension of fixed size")
            return None
        self.table.tie(a, b)
        return a

    def tie_across(self, ids: Ids | None, parts: int, *, outer: bool) -> Ids | None:
        """Tie a dimension seen as [parts, size/parts]: whole parts (`outer`), or equal places of all parts.

        Returns one id a part, or one id a place.
        """
        if ids is None:
            return None
        grid = ids.reshape(parts, -1)
        return self.table.tie_rows(grid if outer else grid.T)

    def counted(self, ids: Ids | None, size: int, *, place: int | None = None, name: str = "") -> bool:
        """Record the attribute that holds `size`, a number in the forward that counts these ids: a slice updates it.

        `place`: position of the number among those of the call, from the end. `name`: the attribute of the operator's
        own module that holds it, if known. Returns whether an attribute was found. Otherwise the number comes from a
        tensor's shape or is literal; only the certificate can tell which.
        """
        if ids is None:
            return True
        if name and self.attributes_known.get(self.module, {}).get(name) == size:
            self.attributes.append(Attribute(self.module, name, ids, size))
            return True
        found = [each for each in self._literals() if each.size == size and place in (None, each.place)]
        whole = [each for each in found if each.length == size]
        parts = (
            [whole]
            if whole
            else [[each for each in found if each.begin == at] for at in {each.begin for each in found}]
        )
        chosen = [self._counting(part, ids) for part in parts]
        if not chosen or None in chosen:
            return False
        for literal in chosen:
            assert literal is not None
            counted = ids[literal.begin : literal.begin + literal.length]
            self.attributes.append(Attribute(literal.module, literal.name, counted, literal.value))
        return True

    def bind(self, sizes: Sequence[tuple[int, Ids | None, int]]) -> None:
        """Record sizes of this call that may have to be bound: the place, the ids and the number of each."""
        if self.call:
            self.bound += [Bound(self.module, self.call, place, ids, size) for place, ids, size in sizes]

    def _counting(self, literals: Sequence[Literal], ids: Ids) -> Literal | None:
        """The factor of a product that counts channels; of several that could, one that another call gives alone."""
        found = [each for each in literals if not self._repeats_each(each, ids[each.begin : each.begin + each.length])]
        known = {(each.module, each.name) for each in self.attributes}
        return next((each for each in found if (each.module, each.name) in known), found[0] if found else None)

    def _repeats_each(self, literal: Literal, ids: Ids) -> bool:
        """Whether a product in a call counts channels of which each occurs in a run as long as the attribute says.

        Then the other factor counts the channels. It could be either if there are as many channels as a run is long.
        """
        if literal.length == literal.value or len(ids) % literal.value:
            return False
        runs = ids.reshape(-1, literal.value)
        if not _constant_along(runs, 1) or (runs[1:, 0] == runs[:-1, 0]).any():
            return False  # not runs, or longer ones: then it is the other factor that repeats
        return len(runs) != literal.value or (literal.module, literal.name) in self.repeats

    def counted_in_list(self, parts: Sequence[Ids | None], sizes: Sequence[int]) -> bool:
        """Record the entries of a list attribute that give the sizes of these parts; whether there is such a list.

        Each entry follows its own part, so that the parts need not shrink together.
        """
        known = {(literal.place, literal.size): literal for literal in self._literals() if "[" in literal.name}
        for after in (1, 0):  # numbers of the call that follow the sizes: the dimension, or none
            places = range(-len(sizes) - after, -after)
            found = [known.get(place) for place in zip(places, sizes, strict=True)]
            if None not in found and len({literal.name for literal in found if literal}) == len(sizes):
                for literal, ids in zip(found, parts, strict=True):
                    if literal is not None and ids is not None:
                        self.attributes.append(Attribute(literal.module, literal.name, ids, literal.value))
                return True
        return False

    def _literals(self) -> list[Literal]:
        """Attributes of this module or one around it that reach this call, the innermost first.

        A call without a name is known by its line. If no function around the operator is named forward, torch.export
        keeps no line; then every line of the module itself counts.
        """
        assert self.node is not None
        call, line, inside = self.call, line_of_node(self.node), f"{self.module}."
        here = [
            literal
            for literal in self.literals
            if (literal.call == call if call and literal.call else literal.line == line or not line)
            and (literal.module == self.module or ((call or line) and inside.startswith(_prefix(literal.module))))
        ]
        return sorted(here, key=lambda literal: -len(literal.module))

    def cost(
        self,
        sizes: Sequence[int],
        dims: Sequence[Ids | None],
        *,
        layer: int | None = None,
        vanishing: Ids | None = None,
    ) -> None:
        """Add multiply-accumulates: the product of these sizes. A size with ids shrinks with its channels.

        `vanishing`: the ids of a dimension; torch counts nothing once its size is one.
        """
        fixed = math.prod(size for size, ids in zip(sizes, dims, strict=True) if ids is None)
        shrinking = tuple(ids for ids in dims if ids is not None)
        flags = tuple(ids is vanishing for ids in shrinking)
        self.terms.append(Term(layer, fixed, shrinking, flags, self.module, self.operator))

    def split(self, ids: Ids, shape: Sequence[int]) -> Dims:
        """Ids of one dimension spread over several: one axis stays prunable, the others are tied across.

        If the ids vary along one axis only, that axis stays. Otherwise several are possible (whole heads, or the same
        feature of every head): the innermost is tried first, and the next outer one if a later operator locks it.
        """
        assert self.node is not None
        grid = ids.reshape(tuple(shape))
        wide = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
        if not wide:
            return tuple(grid.reshape(-1) if axis == 0 else None for axis in range(len(shape)))
        varying = [axis for axis in wide if not _constant_along(grid, axis)]
        if len(varying) <= 1:
            axis = varying[0] if varying else wide[0]
        else:
            key = (self.module, tuple(shape))
            axis = varying[min(self.choices.get(key, 0), len(varying) - 1)]
            self.splits.append(Split(key, ids, len(varying)))
        rows = np.moveaxis(grid, axis, 0).reshape(shape[axis], -1)
        kept = self.table.tie_rows(rows)
        return tuple(kept if d == axis else None for d in range(len(shape)))


def _prefix(module: str) -> str:
    return f"{module}." if module else ""


def _constant_along(grid: Ids, axis: int) -> bool:
    return bool((np.diff(grid, axis=axis) == 0).all())
