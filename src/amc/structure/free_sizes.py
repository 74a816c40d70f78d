"""Sizes that depend on the data, such as how many rows `x[mask]` has: torch.export writes a symbol for each.

Costs and rules need numbers. They are taken from a run on the example input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map

from amc.errors import ModelError

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def settle_sizes_(program: ExportedProgram, args: Any) -> None:
    """Replace every symbol in the traced values by its number on `args`, the example's arguments, nested as given.

    Raises ModelError for a symbol that has none: it belongs to a branch or a loop that decides by the data.
    """
    if not any(_is_free(node.meta.get("val")) for node in _nodes(program.graph_module)):
        return
    run = _Sizes(program.graph_module)
    with torch.random.fork_rng(), torch.no_grad():
        run.run(*_inputs(program, tree_leaves(args)))
    for node in _nodes(program.graph_module):
        if _is_free(node.meta.get("val")):
            node.meta["val"] = tree_map(lambda value: _settled(value, run.numbers), node.meta["val"])


class _Sizes(Interpreter):
    """Runs a graph on tensors, and notes the number of every symbol."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.numbers: dict[Any, Any] = {}  # symbol -> number

    def run_node(self, node: Node) -> Any:
        found = super().run_node(node)
        if _is_free(node.meta.get("val")):
            for traced, value in zip(tree_leaves(node.meta["val"]), tree_leaves(found), strict=True):
                pairs = zip(traced.shape, value.shape, strict=True) if _is_tensor(traced) else [(traced, value)]
                self.numbers |= {
                    size.node.expr: number
                    for size, number in pairs
                    if isinstance(size, SYMBOLIC) and size.node.expr.is_Symbol
                }
        return found


def _inputs(program: ExportedProgram, given: list[Any]) -> Iterator[Any]:
    """What the placeholders of the graph stand for, in their order."""
    arguments = iter(given)
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            yield next(arguments)
        elif spec.target in program.state_dict:
            yield program.state_dict[spec.target]
        else:
            yield program.constants[str(spec.target)]


def _nodes(graph: GraphModule) -> Iterator[Node]:
    """The nodes of a graph and of the blocks in it."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_free(value: Any) -> bool:
    """Whether a traced value, or a size of it, is a symbol."""
    return any(
        isinstance(leaf, SYMBOLIC) or (_is_tensor(leaf) and any(isinstance(size, torch.SymInt) for size in leaf.shape))
        for leaf in tree_leaves(value)
    )


def _settled(value: Any, numbers: Mapping[Any, Any]) -> Any:
    if isinstance(value, SYMBOLIC):
        return _number(value, numbers)
    if not _is_tensor(value) or not _is_free(value):
        return value
    shape = [_number(size, numbers) for size in value.shape]
    strides = [_number(stride, numbers) for stride in value.stride()]
    return torch.empty_strided(shape, strides, dtype=value.dtype, device="meta")


def _number(size: Any, numbers: Mapping[Any, Any]) -> Any:
    if not isinstance(size, SYMBOLIC):
        return size
    found = size.node.expr.xreplace(numbers)
    if getattr(found, "free_symbols", None):  # a number has none
        raise ModelError(
            f"the forward decides by the data which of its blocks it runs, and the size {size} depends on it"
        )
    kind = {torch.SymBool: bool, torch.SymInt: int, torch.SymFloat: float}[type(size)]
    return kind(found)
