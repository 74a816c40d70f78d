"""Walk the traced graph once, carrying channel ids; walk again where a choice of axis turned out badly."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from amc.structure.channels import ChannelTable, Lock, Resolution
from amc.structure.context import Context, Dims, LayerUse, Operation, Result, Split, SplitKey, Term, Tracked
from amc.structure.count import operator_macs
from amc.structure.liveness import Buffer, Liveness, is_elementwise, liveness
from amc.structure.rules import apply_rule
from amc.structure.rules.own import own_rule
from amc.structure.rules.registry import locked, operator_name
from amc.structure.structure import Attribute, Bound
from amc.structure.trace import Trace

VIEWS = frozenset({  # through which a weight stays the same weight
    "permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint", "squeeze",
    "unsqueeze", "view", "reshape", "_unsafe_view", "flatten", "expand", "expand_as", "broadcast_to", "alias", "detach",
    "contiguous", "clone", "to", "_to_copy",
})  # fmt: skip
MAX_WALKS = 14  # enough for two nested splits of three candidate axes each, after all were moved together


@dataclass(frozen=True, slots=True)
class Propagation:
    """The outcome of the walk, with ids resolved to channels."""

    table: ChannelTable
    resolution: Resolution
    tensors: dict[str, Dims]  # ids of every parameter and buffer, in order of first use
    terms: list[Term]
    layers: list[LayerUse]
    attributes: list[Attribute]
    bound: list[Bound]
    used: dict[str, str]  # parameters that other operators than layers use, and which
    liveness: Liveness


def propagate(trace: Trace, *, approximate: bool = False) -> Propagation:
    """Carry ids through the graph; a split whose axis got locked tries its next axis.

    `approximate`: the axes are chosen as without it, so that heads go whole; then averages lock nothing.
    """
    choices: dict[SplitKey, int] = {}
    hopeless: set[SplitKey] = set()
    together = True
    count = functools.cache(operator_macs)
    for _ in range(MAX_WALKS):
        ctx, tensors, alive = _walk(trace, choices, count)
        resolution = ctx.table.resolve()
        failing = _failing(ctx.splits, resolution, hopeless)
        if not failing:
            break
        together = together and _advance_together_(choices, failing)
        if not together:
            _advance_(choices, hopeless, failing)
    if approximate:
        ctx, tensors, alive = _walk(trace, choices, count, approximate=True)
        resolution = ctx.table.resolve()
    return Propagation(
        ctx.table, resolution, tensors, ctx.terms, ctx.layers, ctx.attributes, ctx.bound, ctx.used, alive()
    )  # fmt: skip


@dataclass(slots=True)
class _Failing:
    """A split all of whose channels got locked."""

    axes: int
    channels: set[int] = field(default_factory=set)


def _failing(splits: list[Split], resolution: Resolution, hopeless: set[SplitKey]) -> dict[SplitKey, _Failing]:
    failing: dict[SplitKey, _Failing] = {}
    for split in splits:
        channels = set(np.unique(resolution.channel[split.ids]).tolist())
        if split.key not in hopeless and channels <= resolution.locks.keys():
            failing.setdefault(split.key, _Failing(split.axes)).channels.update(channels)
    return failing


def _advance_together_(choices: dict[SplitKey, int], failing: Mapping[SplitKey, _Failing]) -> bool:
    """Move all these splits on at once; False when none has an axis left: then all are back at their first.

    The heads of all blocks fail for one reason, and share channels where blocks share rotary embeddings: tried one by
    one, as digits, they would take as many walks as there are combinations.
    """
    movable = [key for key, split in failing.items() if choices.get(key, 0) + 1 < split.axes]
    for key in movable:
        choices[key] = choices.get(key, 0) + 1
    if not movable:
        choices.update(dict.fromkeys(failing, 0))
    return bool(movable)


def _advance_(choices: dict[SplitKey, int], hopeless: set[SplitKey], failing: Mapping[SplitKey, _Failing]) -> None:
    """Move these splits on; those that share channels like the digits of a number, the last one executed fastest."""
    moved: set[int] = set()
    wrapped: list[SplitKey] = []
    for key, split in reversed(list(failing.items())):
        if split.channels & moved:
            continue
        choice = choices.get(key, 0) + 1
        choices[key] = choice % split.axes
        if choice < split.axes:
            moved |= split.channels
        else:
            wrapped.append(key)
    hopeless |= {key for key in wrapped if not failing[key].channels & moved}


def _walk(
    trace: Trace, choices: dict[SplitKey, int], count: Callable[[Node], int | None], *, approximate: bool = False
) -> tuple[Context, dict[str, Dims], Callable[[], Liveness]]:
    parameters = {name: trace.shapes[name] for name in trace.parameters}
    ctx = Context(ChannelTable(), choices, trace.literals, trace.attributes, parameters, count, approximate)
    env: dict[Node, Any] = {}
    tensors: dict[str, Dims] = {}
    inputs: list[Buffer] = []
    outputs: list[Tracked] = []
    for node in trace.nodes:
        ctx.node, ctx.live = node, node in trace.live
        if node.op == "placeholder":
            env[node] = _placeholder(ctx, node, trace, tensors)
            if node.name in trace.inputs and isinstance(env[node], Tracked):
                inputs.append(Buffer(env[node], node.meta["val"].element_size()))
        elif node.op == "output":
            outputs = _tensors(_arguments(node.args, env))
            for tensor in outputs:
                for ids in tensor.ids:
                    ctx.lock(ids, "network output")
        else:
            env[node] = _value(ctx, node, env)
    _lock_unused(ctx, tensors)
    _tie_attributes(ctx)
    _lock_free(ctx, tensors)
    return ctx, tensors, functools.partial(liveness, ctx.operations, inputs, outputs)


def _placeholder(ctx: Context, node: Node, trace: Trace, tensors: dict[str, Dims]) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    name = trace.tensors.get(node.name)
    if name is None:
        return _tracked(value, (None,) * value.ndim)
    dims = tuple(ctx.table.fresh(size) if size > 1 else None for size in value.shape)
    tensors[name] = dims
    return Tracked(tuple(value.shape), dims, name, tuple(range(value.ndim)))


def _value(ctx: Context, node: Node, env: dict[Node, Any]) -> Any:
    if node.op == "call_function":
        return _call(ctx, node, env)
    value = node.meta.get("val")  # of a constant; without one it is the graph of a block
    if isinstance(value, torch.Tensor):
        return _tracked(value, (None,) * value.ndim)
    assert node.graph.owning_module is not None
    return getattr(node.graph.owning_module, str(node.target), None)


def _block(ctx: Context, graph: GraphModule, given: list[Any]) -> Any:
    """The result of a block under another gradient or autocast mode, which export keeps as a graph of its own."""
    env: dict[Node, Any] = {}
    inputs = iter(given)
    for node in graph.graph.nodes:
        ctx.node = node
        if node.op == "placeholder":
            env[node] = next(inputs)
        elif node.op == "output":
            return _arguments(node.args[0], env)
        else:
            env[node] = _value(ctx, node, env)
    return None


def _inputs_of(graph: GraphModule, given: list[Any]) -> list[Any] | None:
    """What a block is called with, if it is called once on just these; None for a loop or a choice of blocks."""
    given = [value for value in given if not isinstance(value, str)]
    wanted = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    if len(given) != len(wanted):
        return None
    fits = all(
        isinstance(a, Tracked) and a.shape == tuple(b.shape)
        for a, b in zip(given, wanted, strict=True)
        if isinstance(b, torch.Tensor)
    )
    return given if fits else None


def _call(ctx: Context, node: Node, env: dict[Node, Any]) -> Any:
    args, kwargs = _arguments(node.args, env), _arguments(node.kwargs, env)
    if node.target is operator.getitem:
        return args[0][args[1]]
    graphs = [place for place, argument in enumerate(args) if isinstance(argument, GraphModule)]
    if len(graphs) == 1:
        inputs = _inputs_of(args[graphs[0]], list(args[graphs[0] + 1 :]))
        if inputs is not None:
            return _block(ctx, args[graphs[0]], inputs)
    terms, layers, ctx.unruled, ctx.table.at = len(ctx.terms), len(ctx.layers), False, node
    result = apply_rule(ctx, node.target, args, kwargs)
    if operator_name(node.target) not in VIEWS and node.meta.get("val") is not None:
        _note_uses(ctx, _tensors((args, kwargs)), layers)
    if ctx.unruled or len(ctx.terms) > terms or own_rule(node.target):
        result = _reconciled(ctx, node, terms, layers, result, (args, kwargs))
    found = _results(node, result, args)
    if ctx.live:
        _note_operation(ctx, node, _tensors((args, kwargs)), found)
    return found


def _results(node: Node, result: Any, args: Any) -> Any:
    """What the operator returns, from the ids that its rule gives."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [_tracked(item, dims) for item, dims in zip(value, result, strict=True)]
    tracked = _tracked(value, result)
    source = args[0] if args else None
    if isinstance(tracked, Tracked) and isinstance(source, Tracked) and operator_name(node.target) in VIEWS:
        return _view(tracked, source)
    return tracked


def _note_operation(ctx: Context, node: Node, given: list[Tracked], found: Any) -> None:
    """Remember what the operator reads and writes, and which results share an input's memory."""
    values = node.meta.get("val")
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    found = found if isinstance(found, list) else [found]
    memory = {
        _memory(value): tensor
        for value, tensor in zip(_values(node), given, strict=False)
        if isinstance(value, torch.Tensor)
    }
    results = tuple(
        Result(tensor, value.element_size(), memory.get(_memory(value)))
        for value, tensor in zip(values, found, strict=True)
        if isinstance(tensor, Tracked)
    )
    ctx.operations.append(Operation(tuple(given), results, is_elementwise(node, operator_name(node.target))))


def _values(node: Node) -> list[Any]:
    """The traced tensors among an operator's arguments, in the order of `_tensors`."""
    values: list[Any] = []
    torch.fx.map_arg((node.args, node.kwargs), lambda each: values.append(each.meta.get("val")))
    return [value for value in values if isinstance(value, torch.Tensor)]


def _memory(value: torch.Tensor) -> int:
    """What tensors of the trace that share their memory have in common."""
    return int(value.untyped_storage()._cdata)


def _note_uses(ctx: Context, given: list[Tracked], first: int) -> None:
    """Parameters that this operator uses, and not as the weight of a layer."""
    weights = {layer.weight for layer in ctx.layers[first:]}
    for tensor in given:
        if tensor.name in ctx.parameters and tensor.name not in weights:
            ctx.used.setdefault(str(tensor.name), ctx.operator)


def _reconciled(
    ctx: Context, node: Node, first: int, layers: int, result: Any, given: tuple[Any, dict[str, Any]]
) -> Any:
    """The operator's cost as torch's counter has it.

    The counter knows some products (of a vector, say) by no cost at all: they have none here either. Any other
    difference is a way of calling the operator that its rule does not foresee; then its channels are locked and it
    costs what the counter says.
    """
    counted = ctx.count(node)
    ours = sum(term.dense for term in ctx.terms[first:])
    if counted is None or counted == ours:
        return result
    del ctx.terms[first:]
    if counted == 0:
        return result
    if not ctx.unruled:
        result = locked(ctx, *given, f"torch counts {counted:,} MACs of operator {ctx.operator}, and its rule {ours:,}")
    ctx.cost((counted,), (None,), layer=layers if len(ctx.layers) == layers + 1 else None)
    return result


def _view(tracked: Tracked, source: Tracked) -> Tracked:
    """A tensor of the model, seen with its dimensions permuted, repeated or of size one: its name goes with it."""
    if source.name is None:
        return tracked
    axes: list[int | None] = []
    left = {place: ids for place, ids in enumerate(source.ids) if ids is not None}
    for ids in tracked.ids:
        found = [place for place, mine in left.items() if ids is not None and np.array_equal(ids, mine)]
        for place in found:
            del left[place]
        axes.append(source.axes[found[0]] if found else None)
    if left:
        return tracked  # merged, split or cut
    return replace(tracked, name=source.name, axes=tuple(axes))


def _tracked(value: Any, dims: Dims) -> Any:
    """The output as later rules see it; a rule that miscounts dimensions is a fault of ours."""
    if not isinstance(value, torch.Tensor):
        return None
    shape = tuple(value.shape)
    assert len(dims) == len(shape), (dims, shape)
    assert all(ids is None or ids.size == size for ids, size in zip(dims, shape, strict=True)), (dims, shape)
    return Tracked(shape, dims)


def _arguments(value: Any, env: dict[Node, Any]) -> Any:
    if isinstance(value, Node):
        return env[value]
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_arguments(item, env) for item in value)
            if type(value) in (list, tuple)
            else [_arguments(item, env) for item in value]
        )
    if isinstance(value, dict):
        return {key: _arguments(item, env) for key, item in value.items()}
    return value


def _tensors(value: Any) -> list[Tracked]:
    if isinstance(value, Tracked):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [tensor for item in value.values() for tensor in _tensors(item)] if isinstance(value, dict) else []


def _lock_unused(ctx: Context, tensors: dict[str, Dims]) -> None:
    """Parameters that the forward never uses stay as they are."""
    touched = ctx.table.touched()
    for dims in tensors.values():
        for ids in dims:
            if ids is not None:
                ctx.lock(ids[~touched[ids]], "the forward does not use it")


def _tie_attributes(ctx: Context) -> None:
    """One attribute that counts several dimensions has one value: they shrink together."""
    first: dict[tuple[str, str], Attribute] = {}
    ctx.table.at = None
    for each in ctx.attributes:
        other = first.setdefault((each.module, each.name), each)
        if other.counted.size == each.counted.size:
            ctx.table.tie(other.counted, each.counted)


def _lock_free(ctx: Context, tensors: dict[str, Dims]) -> None:
    """Stretched dimensions that no parameter is tied to, such as a batch, have a fixed size."""
    if not ctx.free:
        return
    channel = ctx.table.resolve().channel
    held = np.zeros(channel.max(initial=-1) + 1, dtype=bool)
    for dims in tensors.values():
        for ids in dims:
            if ids is not None:
                held[channel[ids]] = True
    for ids in ctx.free:
        ctx.table.lock(ids[~held[channel[ids]]], Lock("it repeats one value a fixed number of times"))
