"""Copies of a network that share nothing with it: AMC never runs, changes or wraps the user's own network.

A copy is *plain*: without the wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel`, at any depth.
Hooks and patched methods are copied together with the objects that they refer to.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from amc.errors import ModelError, message_of
from amc.structure.functions import FunctionTwins
from amc.structure.source import is_users


def plain(model: nn.Module) -> nn.Module:
    """The network itself if nothing wraps it or a part of it, else a plain copy."""
    return copy_model(model) if any(_inside(module) is not None for module in model.modules()) else model


def copy_model(model: nn.Module) -> nn.Module:
    """A plain deep copy, with computed weights (weight norm, pruning masks). Raises ModelError if copying fails."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            kind = type(model).__name__
            raise ModelError(
                f"'{name}' of {kind} is lazy and has no size yet: run one example through the network first"
            )
    return with_tensors(model, {name: tensor.detach().clone() for name, tensor in tensors})


def with_tensors(model: nn.Module, replaced: Mapping[str, Tensor]) -> nn.Module:
    """A plain deep copy with these tensors in place of the old ones, which are never copied. Tied tensors stay tied."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = nn.Parameter(replaced[name], requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = replaced[name]
    try:
        with _ComputedTensors():
            for wrapper in reversed([*model.modules()]):  # the innermost first
                inner = _inside(wrapper)
                if inner is not None:
                    memo[id(wrapper)] = copy.deepcopy(inner, memo)
            copied: nn.Module = copy.deepcopy(model, memo)
            FunctionTwins(memo).replace_(copied)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({message_of(error)}): remove the attribute that cannot be "
            "copied, or give its class a __deepcopy__"
        ) from error
    return copied


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers around the whole network. Makes no copy."""
    inner = _inside(model)
    return model if inner is None else unwrapped(inner)


def _inside(module: nn.Module) -> nn.Module | None:
    """The network that this module only wraps; None for any other module."""
    inner: nn.Module
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # loaded if anything is compiled
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        inner = module._orig_mod
        return inner
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
        return inner
    return None


class _ComputedTensors(TorchFunctionMode):
    """Copies tensors that were computed from parameters: caches, or weights that a hook recomputes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore the random states and the attributes of the user's classes after the block.

    Compiled functions run uncompiled inside it: torch would compile the network again for every new size.
    """
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if _is_users_class(cls)}
    attributes = {cls: {name: (value, _contents(value)) for name, value in vars(cls).items()} for cls in classes}
    state = _random_state()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _set_random_state(state)
        for cls, before in attributes.items():
            _restore_attributes_(cls, before)


def _is_users_class(cls: type) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return cls.__module__ not in ("builtins", "abc", "typing") and (file is None or is_users(file))


def _contents(value: Any) -> Any:
    """A shallow copy of a container; None for anything else."""
    return copy.copy(value) if type(value) in (dict, list, set) else None


def _restore_attributes_(cls: type, before: Mapping[str, tuple[Any, Any]]) -> None:
    for name in vars(cls).keys() - before.keys():
        delattr(cls, name)
    for name, (value, contents) in before.items():
        if vars(cls).get(name) is not value:
            setattr(cls, name, value)
        if contents is not None and not _same_items(value, contents):
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(contents)


def _same_items(value: Any, contents: Any) -> bool:
    """Whether two containers of one kind hold the very same objects."""
    listed = [[*each.items()] if isinstance(each, dict) else [*each] for each in (value, contents)]
    flat = [[id(part) for item in items for part in (item if isinstance(item, tuple) else (item,))] for items in listed]
    return flat[0] == flat[1]


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_random_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
