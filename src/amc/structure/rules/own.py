"""Rules that users register for operators of their own. What such a rule returns is checked at each use."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from amc.errors import ModelError, ResourceError, explained
from amc.structure.context import Context, Dims, Rule

_RULES: dict[str, Rule] = {}
_NAME = re.compile(r"\w+::\w+")


def operator_rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operator `name`, such as "mylib::scaled_relu": how channels pass through it.

    The decorated function gets a context and the operator's arguments, in which each tensor has `shape` and `ids`: for
    each dimension the ids of its channels [size], or None for a dimension of fixed size. It returns the ids of each
    dimension of the output; for several outputs, a list of those. It may call

    `ctx.tie(a, b)`: the channels of both live or die together, position by position; returns the ids of the result.
    `ctx.lock(ids, reason)`: these channels must stay.
    `ctx.cost(sizes, ids)`: multiply-accumulates, the product of the sizes; a size shrinks with the ids at its place
        (or None). They count only if torch's counter agrees: see `torch.utils.flop_counter.register_flop_formula`.

    A rule holds for all overloads of that one name. It precedes a rule of amc, and a later one for the same name takes
    its place. The certificate locks the groups for which a rule is wrong. A rule that raises, or that returns other
    dimensions than the output has, is a ModelError in `inspect`.

    >>> @torch.library.custom_op("docs::scaled_relu", mutates_args=())
    ... def scaled_relu(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    ...     return x.relu() * scale
    >>> @scaled_relu.register_fake
    ... def _(x, scale):
    ...     return torch.empty_like(x)
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.scale, self.b = nn.Linear(4, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 2)
    ...     def forward(self, x):
    ...         return self.b(scaled_relu(self.a(x), self.scale))
    >>> amc.inspect(Net(), torch.zeros(1, 4)).locked[0]
    Locked(a: 6 channels, operator docs.scaled_relu.default has no rule; register one with amc.operator_rule)
    >>> @amc.operator_rule("docs::scaled_relu")
    ... def scaled_relu_rule(ctx, x, scale):
    ...     return (x.ids[0], ctx.tie(x.ids[1], scale.ids[0]))
    >>> amc.inspect(Net(), torch.zeros(1, 4)).groups
    (Group(a: 6 channels),)
    """
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no full name of an operator; write its namespace, as in 'mylib::scaled_relu'")

    def register(function: Rule) -> Rule:
        _RULES[name] = function
        return function

    return register


def remove_rule(name: str) -> None:
    """Forget the rule that `operator_rule` registered for `name`, if there is one."""
    _RULES.pop(name, None)


def own_rule(target: Any) -> Rule | None:
    """The user's rule for an operator of a traced graph, with its result checked; None if there is none."""
    function = _RULES.get(target._schema.name) if isinstance(target, torch._ops.OpOverload) else None
    return None if function is None else partial(_checked, function)


def _checked(function: Rule, ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """The result of a user's rule. Raises ModelError, naming the operator, if it fails or its result does not fit."""
    assert ctx.node is not None
    subject = f"the rule {getattr(function, '__name__', 'given')!r} of operator {ctx.operator}"
    with explained(ModelError, f"{subject} fails", "correct it", passing=ResourceError):
        result = function(ctx, *args, **kwargs)
    value = ctx.node.meta.get("val")
    if not isinstance(value, (list, tuple)):
        return _dims(subject, value, result, ctx.table.size)
    if not isinstance(result, (list, tuple)) or len(result) != len(value):
        raise ModelError(f"{subject} must return a list of {len(value)} outputs, each with its dimensions")
    return [_dims(subject, *pair, ctx.table.size) for pair in zip(value, result, strict=True)]


def _dims(subject: str, value: Any, result: Any, count: int) -> Dims:
    """The ids of one output, checked; `count` is the number of ids there are."""
    if not isinstance(value, torch.Tensor):
        return ()
    shape = tuple(value.shape)
    if not isinstance(result, (list, tuple)) or len(result) != len(shape):
        given = f"{len(result)} dimensions" if isinstance(result, (list, tuple)) else f"a {type(result).__name__}"
        raise ModelError(f"{subject} must return the ids of the output's {len(shape)} dimensions {shape}, got {given}")
    for place, (ids, size) in enumerate(zip(result, shape, strict=True)):
        if ids is not None and not _are_ids(ids, size, count):
            raise ModelError(f"{subject} must return {size} ids of channels for dimension {place} of {shape}, or None")
    return tuple(result)


def _are_ids(ids: Any, size: int, count: int) -> bool:
    """Whether this is an array [size] of ids from 0 to `count` - 1."""
    if not isinstance(ids, np.ndarray) or ids.shape != (size,) or not np.issubdtype(ids.dtype, np.integer):
        return False
    return size == 0 or bool(ids.min() >= 0 and ids.max() < count)
