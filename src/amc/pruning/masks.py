"""Masks of one weight: which units may be removed, in which order, and the mask of every keep count.

A weight [O, I/groups, kernel...] is, per convolution group, a matrix of O/groups rows (outputs) and n columns, where
n = I/groups * kernel positions: [groups, O/groups, n]. That is the weight's own memory order (`reconstruction`
uses the transpose). A pattern divides its entries into units, which are kept or removed whole: the paper prunes single
weights, rows, columns and blocks (arXiv 1802.03494, section 3.1). Units are ranked once. So the masks of growing keep
counts are nested, and each mask is one comparison. Pure: tensors in, tensors out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.errors import AmcError
from amc.pruning.reconstruction import damp
from amc.run.settings import Ranking

Counts = npt.NDArray[np.int64]
CHOICES = 128  # most keep counts to choose from: a finer grid changes no layer by more than 0.8% of its weights


@dataclass(frozen=True, slots=True)
class NestedMasks:
    """The masks of one weight for all keep counts.

    `rank` [the weight's shape], int32: place of the unit that each weight belongs to, 0 = kept longest.
    `step`: how much one place adds to a keep count.
    """

    rank: Tensor
    step: int = 1

    def mask(self, keep_count: int) -> Tensor:
        """True where kept: [the weight's shape]. Every mask contains the masks of smaller keep counts."""
        return self.rank < keep_count // self.step


class Pattern(Protocol):
    """The weights that go together. `shape` is a weight's [O, I/groups, kernel...]; `groups` its convolution groups.

    Keep counts are in weights for single weights and N:M, in units for rows, columns and blocks.
    """

    @property
    def name(self) -> str:
        """The name that `parse_pattern` reads."""

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        """The keep count of the dense weight."""

    def obstacle(self, shape: Sequence[int], *, groups: int = 1) -> str:
        """Why this weight has only the dense choice; empty if it can be pruned."""

    def keep_choices(self, shape: Sequence[int], max_sparsity: float, *, groups: int = 1) -> tuple[int, ...]:
        """Keep counts to choose from: 1 or more, ascending to `units`. AmcError unless 0 <= max_sparsity < 1."""

    def weights_kept(self, shape: Sequence[int], keep_count: npt.ArrayLike, *, groups: int = 1) -> Counts:
        """Weights that the mask of each keep count keeps, exactly: [the shape of `keep_count`]."""

    def order(self, importance: Tensor, *, groups: int = 1) -> NestedMasks:
        """Rank units by the sum of their weights' importance [the weight's shape], once; ties keep their order."""


@dataclass(frozen=True, slots=True)
class FineGrained:
    """A unit is one weight."""

    name: str = "fine-grained"

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        return math.prod(shape)

    def obstacle(self, shape: Sequence[int], *, groups: int = 1) -> str:
        return ""

    def keep_choices(self, shape: Sequence[int], max_sparsity: float, *, groups: int = 1) -> tuple[int, ...]:
        return _grid(self.units(shape), max_sparsity)

    def weights_kept(self, shape: Sequence[int], keep_count: npt.ArrayLike, *, groups: int = 1) -> Counts:
        return np.asarray(keep_count, dtype=np.int64)

    def order(self, importance: Tensor, *, groups: int = 1) -> NestedMasks:
        return NestedMasks(_ranks(importance.flatten()).reshape(importance.shape))


@dataclass(frozen=True, slots=True)
class NM:
    """`n` of every `m` consecutive input channels stay at each kernel position; sparse tensor cores need 2:4.

    `n` None: the agent chooses 1 to m. `max_sparsity` does not bound a share that the name states. A weight stays dense
    if `m` does not divide its inputs per group.
    """

    n: int | None
    m: int

    def __post_init__(self) -> None:
        if self.m < 2:
            raise AmcError(f"pattern '{self.name}' takes groups of {self.m}; N:M needs M of at least 2, like 2:4")
        if self.n is not None and not 1 <= self.n < self.m:
            raise AmcError(f"pattern '{self.name}' keeps {self.n} of {self.m} weights; give 1 <= N < M, like 2:4")

    @property
    def name(self) -> str:
        return f"{'n' if self.n is None else self.n}:{self.m}"

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        return math.prod(shape)

    def obstacle(self, shape: Sequence[int], *, groups: int = 1) -> str:
        if shape[1] % self.m == 0:
            return ""
        return f"its {shape[1]} inputs per group are no multiple of {self.m}, so {self.name} cannot be laid out"

    def keep_choices(self, shape: Sequence[int], max_sparsity: float, *, groups: int = 1) -> tuple[int, ...]:
        most = _removable(self.m, max_sparsity)
        if self.obstacle(shape):
            return (self.units(shape),)
        shares = range(self.m - most, self.m + 1) if self.n is None else (self.n, self.m)
        return tuple(share * (self.units(shape) // self.m) for share in shares)

    def weights_kept(self, shape: Sequence[int], keep_count: npt.ArrayLike, *, groups: int = 1) -> Counts:
        return np.asarray(keep_count, dtype=np.int64)

    def order(self, importance: Tensor, *, groups: int = 1) -> NestedMasks:
        shape = importance.shape
        if self.obstacle(shape):
            return NestedMasks(torch.zeros(shape, dtype=torch.int32, device=importance.device), importance.numel())
        runs = importance.reshape(shape[0], shape[1] // self.m, self.m, -1)
        return NestedMasks(_ranks(runs, dim=2).reshape(shape), importance.numel() // self.m)


class _Coarse:
    """Units of several weights. Subclasses give `labels` and, where units differ in size, `sequence`."""

    def labels(self, shape: Sequence[int], groups: int) -> Tensor:
        """[the weight's shape], int64: the number of the unit that each weight belongs to."""
        raise NotImplementedError

    def sequence(self, shape: Sequence[int], groups: int) -> Counts | None:
        """[units]: size (in weights) of the unit at each place of the ranking; None if all are alike."""
        return None

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        raise NotImplementedError

    def obstacle(self, shape: Sequence[int], *, groups: int = 1) -> str:
        return "" if self.units(shape, groups=groups) > 1 else "it is a single unit of this pattern"

    def keep_choices(self, shape: Sequence[int], max_sparsity: float, *, groups: int = 1) -> tuple[int, ...]:
        return _grid(self.units(shape, groups=groups), max_sparsity)

    def weights_kept(self, shape: Sequence[int], keep_count: npt.ArrayLike, *, groups: int = 1) -> Counts:
        counts = np.asarray(keep_count, dtype=np.int64)
        sizes = self.sequence(shape, groups)
        if sizes is None:
            return np.asarray(counts * (math.prod(shape) // self.units(shape, groups=groups)), dtype=np.int64)
        return np.asarray(np.append(0, sizes.cumsum())[counts], dtype=np.int64)

    def order(self, importance: Tensor, *, groups: int = 1) -> NestedMasks:
        shape = importance.shape
        labels = self.labels(shape, groups).to(importance.device).expand(shape)
        total = torch.zeros(self.units(shape, groups=groups), dtype=torch.float64, device=importance.device)
        total.index_add_(0, labels.flatten(), importance.flatten().double())
        sizes = self.sequence(shape, groups)
        if sizes is None:
            return NestedMasks(_ranks(total)[labels])
        own = torch.bincount(labels.flatten(), minlength=total.numel())
        return NestedMasks(_ranks_by_size(total, own, torch.from_numpy(sizes).to(own.device))[labels])


@dataclass(frozen=True, slots=True)
class Rows(_Coarse):
    """A unit is one row of the matrix: all weights of one output."""

    name: str = "rows"

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        return shape[0]

    def labels(self, shape: Sequence[int], groups: int) -> Tensor:
        return torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))


@dataclass(frozen=True, slots=True)
class Columns(_Coarse):
    """A unit is one column of a group's matrix: one input at one kernel position, for all outputs of its group."""

    name: str = "columns"

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        return groups * math.prod(shape[1:])

    def labels(self, shape: Sequence[int], groups: int) -> Tensor:
        places = torch.arange(self.units(shape, groups=groups)).reshape(groups, *shape[1:])
        return places.repeat_interleave(shape[0] // groups, dim=0)


@dataclass(frozen=True, slots=True)
class Blocks(_Coarse):
    """A unit is `r` outputs by `c` inputs of one group, all kernel positions; units at the edges may be smaller.

    If sizes differ, each size is ranked alone and the rankings are merged in proportion: the keep count alone then
    gives the number of weights kept, and costs stay exact.
    """

    r: int
    c: int

    def __post_init__(self) -> None:
        if self.r < 1 or self.c < 1:
            raise AmcError(f"pattern '{self.name}' has an empty block; give at least 1x1, like blocks:4x4")

    @property
    def name(self) -> str:
        return f"blocks:{self.r}x{self.c}"

    def units(self, shape: Sequence[int], *, groups: int = 1) -> int:
        return groups * math.ceil(shape[0] // groups / self.r) * math.ceil(shape[1] / self.c)

    def labels(self, shape: Sequence[int], groups: int) -> Tensor:
        down, across = math.ceil(shape[0] // groups / self.r), math.ceil(shape[1] / self.c)
        rows = torch.arange(shape[0] // groups) // self.r
        of_output = (torch.arange(groups)[:, None] * down + rows).flatten() * across
        label = of_output[:, None] + torch.arange(shape[1]) // self.c
        return label.reshape(*label.shape, *[1] * (len(shape) - 2))

    def sequence(self, shape: Sequence[int], groups: int) -> Counts | None:
        kernel = math.prod(shape[2:])
        heights, widths = _parts(shape[0] // groups, self.r), _parts(shape[1], self.c)
        counts: dict[int, int] = {}
        for height, down in heights.items():
            for width, across in widths.items():
                size = height * width * kernel
                counts[size] = counts.get(size, 0) + groups * down * across
        if len(counts) == 1:
            return None
        sizes = np.repeat(list(counts), list(counts.values()))
        quantile = np.concatenate([(np.arange(count) + 0.5) / count for count in counts.values()])
        return np.asarray(sizes[np.argsort(quantile, kind="stable")], dtype=np.int64)


_FIXED_NAMES: dict[str, Pattern] = {pattern.name: pattern for pattern in (FineGrained(), Rows(), Columns())}


def parse_pattern(text: str) -> Pattern:
    """The pattern of a name: fine-grained, 2:4 (any N:M), n:8 (the agent chooses N), rows, columns or blocks:4x4."""
    name = text.strip().lower()
    if name in _FIXED_NAMES:
        return _FIXED_NAMES[name]
    if match := re.fullmatch(r"(n|\d{1,4}):(\d{1,4})", name):
        return NM(None if match[1] == "n" else int(match[1]), int(match[2]))
    if match := re.fullmatch(r"blocks:(\d{1,6})x(\d{1,6})", name):
        return Blocks(int(match[1]), int(match[2]))
    raise AmcError(f"unknown pattern '{text}'; choose fine-grained, rows, columns, blocks:4x4, or N:M like 2:4 or n:8")


def importance(weight: Tensor, gram: Tensor | None = None, ranking: Ranking = "magnitude") -> Tensor:
    """The importance of each weight, in double precision: [the shape of `weight`, O, I/groups, kernel...].

    "magnitude" is w². "elimination" is the rise of the layer's squared output error if only that weight is removed and
    the rest of its row compensates, w²/[G⁻¹]_jj (optimal brain surgeon, Hassibi and Stork, 1993, without the factor
    1/2), from the damped Gram matrices `gram` [groups, n, n]; without `gram` it is the magnitude.
    """
    squares = weight.detach().double().square()
    if ranking == "magnitude" or gram is None:
        return squares
    factor, info = torch.linalg.cholesky_ex(gram.double())
    if int(info.abs().max()):  # singular: the caller did not damp it
        factor = torch.linalg.cholesky(damp(gram.double()))
    diagonal = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).to(weight.device)  # [groups, n]
    parts = squares.reshape(gram.shape[0], -1, gram.shape[-1])
    return (parts / diagonal[:, None]).reshape(weight.shape)


def _removable(units: int, max_sparsity: float) -> int:
    """The most units that may be removed: a share of at most `max_sparsity`, exactly; one unit stays."""
    if not 0 <= max_sparsity < 1:
        raise AmcError(f"the largest sparsity must be in [0, 1), got {max_sparsity}; write 0.8 to keep at least 20%")
    share = Fraction(str(float(max_sparsity)))  # the decimal that was written, not its binary neighbour
    return max(0, min(units - 1, math.floor(units * share)))


def _grid(units: int, max_sparsity: float) -> tuple[int, ...]:
    """At most CHOICES keep counts, evenly spaced from the least allowed to all."""
    most = _removable(units, max_sparsity)
    gaps = max(1, min(CHOICES - 1, most))
    return tuple(sorted({units - most * step // gaps for step in range(gaps + 1)}))


def _ranks(values: Tensor, dim: int = 0) -> Tensor:
    """Place of each entry along `dim`, the largest first: int32, the inverse of the sorting permutation."""
    order = torch.argsort(values, dim=dim, descending=True, stable=True)
    places = torch.arange(values.shape[dim], dtype=torch.int32, device=values.device)
    places = places.reshape(-1, *[1] * (values.ndim - dim - 1)).expand(values.shape)
    return torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(dim, order, places.contiguous())


def _ranks_by_size(values: Tensor, own: Tensor, sizes: Tensor) -> Tensor:
    """Places such that the unit at place i has `sizes[i]` weights; `own` [units] is each unit's size."""
    ranks = torch.empty(values.numel(), dtype=torch.int32, device=values.device)
    for size in sorted(set(sizes.tolist())):
        places = torch.nonzero(sizes == size).flatten().int()
        members = torch.nonzero(own == size).flatten()
        ranks[members] = places[_ranks(values[members]).long()]
    return ranks


def _parts(total: int, size: int) -> dict[int, int]:
    """How many parts of each length `total` falls into."""
    parts = {size: total // size, total % size: 1}
    return {length: count for length, count in parts.items() if length and count}
