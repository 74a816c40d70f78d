"""The table of rules, and the rules every operator falls back on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tag

from amc.structure.context import Context, Dims, Rule, Tracked
from amc.structure.rules.own import own_rule

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators of these names (in-place variants included)."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def apply_rule(ctx: Context, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Ids of the operator's output: Dims, or a list of them for several outputs."""
    chosen = own_rule(target) or _RULES.get(operator_name(target))
    if chosen is None:
        chosen = pointwise if _is_pointwise(target) else no_rule
    return chosen(ctx, *args, **kwargs)


def _is_pointwise(target: Any) -> bool:
    """By torch's own tag; an in-place variant often lacks the tag that its functional form has."""
    if Tag.pointwise in getattr(target, "tags", ()):
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name.partition("::")[2].rstrip("_")
    functional = getattr(getattr(torch.ops, target.namespace), name, None)
    return functional is not None and any(
        Tag.pointwise in getattr(functional, overload).tags for overload in functional.overloads()
    )


def operator_name(target: Any) -> str:
    """`conv2d` of `aten.conv2d.default`, `relu` of `aten.relu_.default`, `mylib::conv2d` of `mylib.conv2d.default`."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name: str = schema.name.removeprefix("aten::")
    if "::" in name:
        return name
    return name if name.startswith("_") and name.endswith("__") else name.rstrip("_")


def tensors_in(value: Any) -> Iterator[Tracked]:
    """Every tensor in nested arguments."""
    if isinstance(value, Tracked):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def fixed_output(ctx: Context) -> Any:
    """An output (or several) whose dimensions all have a fixed size."""
    assert ctx.node is not None
    value = ctx.node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [_fixed(item) for item in value]
    return _fixed(value)


def _fixed(value: Any) -> Dims:
    return (None,) * (value.ndim if isinstance(value, torch.Tensor) else 0)


@rule(
    "hardswish", "log_sigmoid", "copy", "floor_divide", "subtract", "multiply", "divide", "negative", "absolute",
    "greater", "greater_equal", "less", "less_equal", "not_equal", "__and__", "__or__", "__xor__", "pow"
)  # fmt: skip
def pointwise(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """Broadcast: positions that meet are tied; a dimension of size one stretches."""
    assert ctx.node is not None
    tensors, value = list(tensors_in([args, kwargs])), ctx.node.meta["val"]
    if isinstance(value, torch.Tensor):
        return broadcast(ctx, tensors, ctx.output_shape)
    if operator_name(ctx.node.target) == "where":  # tagged like its other forms, but its outputs are positions
        return locked(ctx, args, kwargs, f"{ctx.operator} returns the positions of what is not zero")
    return [broadcast(ctx, tensors, tuple(output.shape)) for output in value]


def no_rule(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """Lock everything that reaches an operator we know nothing about; its cost is what torch counts."""
    ctx.unruled = True
    return locked(ctx, args, kwargs, f"operator {ctx.operator} has no rule; register one with amc.operator_rule")


def locked(ctx: Context, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
    """Lock all channels that reach the operator. Returns its output, whose dimensions have a fixed size."""
    for tensor in tensors_in([args, kwargs]):
        for ids in tensor.ids:
            ctx.lock(ids, reason)
    return fixed_output(ctx)


def broadcast(ctx: Context, tensors: list[Tracked], shape: tuple[int, ...]) -> Dims:
    """Ids of tensors broadcast together to `shape`, aligned at the last dimension."""
    out: list[Any] = []
    for position in range(1, len(shape) + 1):
        size = shape[-position]
        meeting = []
        for tensor in tensors:
            if position > tensor.rank:
                continue
            ids = tensor.ids[-position]
            if tensor.shape[-position] == size:
                meeting.append(ids)
            else:
                ctx.lock(ids, f"{ctx.operator} broadcasts it")
        result = meeting[0] if meeting else None
        for ids in meeting[1:]:
            result = ctx.tie(result, ids)
        out.append(result)
    return tuple(reversed(out))
