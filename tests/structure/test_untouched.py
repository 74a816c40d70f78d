"""What `inspect`, `certify` and `calibrate` leave behind in the user's network and around it: nothing."""

from __future__ import annotations

import functools
import random
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from amc.errors import ModelError
from amc.pruning import calibrate
from amc.structure import certify, count_macs, inspect, mask_model, slice_model

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()


class Grid(nn.Module):
    """Keeps a grid of the input's size, under class-level defaults."""

    shape: Any = None
    grid = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape[-2:]:
            self.shape = x.shape[-2:]
            self.grid = torch.arange(x.shape[-1]) * 1.0
        return self.body(x * self.grid)


class FirstUse(nn.Module):
    """Makes what it lacks at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "grid"):
            self.grid = torch.ones(x.shape[-1])
            self.seen = [x.mean(dim=1)]
        return self.body(x * self.grid)


class OfItsClass(nn.Module):
    """Keeps a grid for all networks of its class."""

    grids: ClassVar[dict[int, Tensor]] = {}
    last: ClassVar[Tensor | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        type(self).last = self.grids[x.shape[-1]] = torch.ones(x.shape[-1])
        return self.body(x * type(self).last)


@functools.lru_cache
def cached_grid(size: int) -> Tensor:
    return torch.arange(size) * 1.0


class Cached(nn.Module):
    """Takes its grid from a cached function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * cached_grid(x.shape[-1]))


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(2))


class Graph(nn.Module):
    """Remembers activations with their graph, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.past = body(), []

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        self.past.append(out)
        return out


class SizesItself(nn.Module):
    """Makes a buffer of the input's size, and keeps a tensor of its own channels, at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.ones = body(), None
        self.register_buffer("grid", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.grid.shape[0] != x.shape[-1]:
            self.grid = torch.arange(x.shape[-1]) * 1.0
        if self.ones is None:
            self.ones = torch.ones(self.body[0].weight.shape[0], 1, 1)
        inner = self.body[0](x * self.grid) * self.ones
        return self.body[1:](inner)


def everything(model: nn.Module, x: Tensor) -> None:
    """All that runs a network before a search."""
    structure = inspect(model, x)
    structure, certificate = certify(model, structure, x, keep_sets=1)
    assert certificate.passed
    calibrate(model, structure, [x])
    assert count_macs(model, x) == structure.macs


def state(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module by name and identity, tensors with their values."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                found |= {f"{path}.{key}": (id(t), t.clone()) for key, t in value.items() if t is not None}
            else:
                found[f"{path}.{name}"] = (id(value), len(value) if hasattr(value, "__len__") else value)
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, (identity, value) in before.items():
        assert identity == after[name][0], name
        assert torch.equal(value, after[name][1]) if isinstance(value, Tensor) else value == after[name][1], name


@pytest.mark.parametrize("make", [Grid, FirstUse, OfItsClass, Cached, WritesItsInput, Graph, SizesItself])
def test_nothing_is_left_in_the_network(make: Callable[[], nn.Module]) -> None:
    model, x = make(), X.clone()
    before, shared = state(model), dict(vars(make))
    grids = dict(OfItsClass.grids)
    everything(model, x)
    assert_same(before, state(model))
    assert dict(vars(make)) == shared
    assert OfItsClass.grids.keys() == grids.keys()
    assert torch.equal(x, X)
    assert type(model(x.clone())) is Tensor
    assert not isinstance(cached_grid(8), FakeTensor)


@pytest.mark.parametrize("make", [Grid, FirstUse, OfItsClass, Cached, Graph])
def test_a_network_that_was_used_before_is_pruned_as_a_fresh_one(make: Callable[[], nn.Module]) -> None:
    model = make()
    model(X.clone())  # its caches are full, of tensors with a graph
    before = state(model)
    everything(model, X.clone())
    assert_same(before, state(model))
    assert inspect(model, X).macs == inspect(make(), X).macs


def test_random_states_are_kept() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x + torch.randn_like(x)
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            return self.body(x)

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    model = Noisy()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    everything(model, X)
    assert drawn() == expected


COLLECTED: list[Tensor] = []
CALLS = 0


def collecting(module: nn.Module, args: Any, out: Tensor) -> None:
    COLLECTED.append(out)


def counting(module: nn.Module, args: Any) -> None:
    global CALLS
    CALLS += 1


def test_hooks_fill_nothing_of_the_users() -> None:
    kept: dict[str, Tensor] = {}
    model = body()
    model[0].register_forward_hook(lambda module, args, out: kept.__setitem__("first", out))
    model[1].register_forward_hook(collecting)
    model[2].register_forward_pre_hook(counting)
    everything(model, X)
    assert (kept, COLLECTED, CALLS) == ({}, [], 0)
    model(X)
    assert (list(kept), len(COLLECTED), CALLS) == (["first"], 1, 1)
    COLLECTED.clear()


def test_hooks_that_change_an_activation_are_traced() -> None:
    factor = torch.tensor(2.0)
    model, bare = body(), body()
    model[0].register_forward_hook(lambda module, args, out: out * factor)
    structure = inspect(model, X)
    mask = np.ones(structure.channels, dtype=bool)
    torch.testing.assert_close(slice_model(model, structure, mask)(X), model(X))
    assert not torch.allclose(model(X), bare(X))


def patched_by_closure(model: nn.Module) -> None:
    inner = model.forward
    model.forward = lambda x: inner(x) * 2


def patched_by_method(model: nn.Module) -> None:
    inner = model.forward
    model.forward = types.MethodType(lambda self, x: inner(x) * 2, model)


def patched_by_partial(model: nn.Module) -> None:
    model.forward = functools.partial(lambda factor, inner, x: inner(x) * factor, 2, model.forward)


def patched_by_decorator(model: nn.Module) -> None:
    inner = torch.no_grad()(model.forward)
    model.forward = lambda x: inner(x) * 2


def patched_by_compiler(model: nn.Module) -> None:
    inner = torch.compile(model.forward)
    model.forward = lambda x: inner(x) * 2


def patched_by_cache(model: nn.Module) -> None:
    model.scale = functools.lru_cache(types.MethodType(lambda self: self[4].bias.sum(), model))
    inner = model.forward
    model.forward = lambda x: inner(x) * model.scale()


def patched_by_reference(model: nn.Module) -> None:
    model.me = weakref.ref(model)
    model.forward = types.MethodType(lambda self, x: nn.Sequential.forward(self.me(), x), model)


@pytest.mark.parametrize(
    "patch",
    [
        patched_by_closure,
        patched_by_method,
        patched_by_partial,
        patched_by_decorator,
        patched_by_compiler,
        patched_by_cache,
        patched_by_reference,
    ],
)
def test_patched_methods_run_the_copy_and_not_the_users_network(patch: Callable[[nn.Module], None]) -> None:
    model = body()
    patch(model)
    structure = inspect(model, X)
    mask = structure.mask({"0": [0, 2], "2": [1]})
    slim, masked = slice_model(model, structure, mask), mask_model(model, structure, mask)
    assert slim[0].weight.shape == (2, 3, 3, 3)
    with torch.no_grad():  # with the user's weights gone, only a copy of them can give this
        expected = masked(X)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(slim(X), expected)
    assert float(expected.abs().max()) > 0


class Wrapped(nn.Module):
    """A part of it is wrapped."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.features, self.head = wrap(body()[:3]), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.features(x)).flatten(1))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda net: torch.compile(nn.DataParallel(net)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_taken_off_wherever_they_are(wrap: Callable[[nn.Module], nn.Module]) -> None:
    bare = inspect(body(), X)
    outer, inner = wrap(body()), Wrapped(wrap)
    everything(outer, X)
    everything(inner, X)
    structure = inspect(outer, X)
    assert [(g.name, g.size) for g in structure.groups] == [(g.name, g.size) for g in bare.groups]
    slim = slice_model(outer, structure, structure.mask({"0": [0, 2]}))
    assert type(slim) is nn.Sequential
    assert slim[0].weight.shape == (2, 3, 3, 3)
    assert [g.name for g in inspect(inner, X).groups] == ["features.0", "features.2"]
    assert "features.0.weight" in dict(
        slice_model(inner, inspect(inner, X), np.ones(10, dtype=bool)).named_parameters()
    )


def test_a_network_compiled_in_place_is_copied_uncompiled() -> None:
    model = body()
    model.compile()
    everything(model, X)
    assert model._compiled_call_impl is not None


def test_a_lazy_network_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="run one example through the network first"):
        inspect(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), X)


def test_a_network_that_cannot_be_copied_is_refused_in_one_line() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.lines = body(), (line for line in ("a", "b"))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    with pytest.raises(ModelError, match=r"Holder cannot be copied .*generator"):
        inspect(Holder(), X)
