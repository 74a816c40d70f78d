"""A model as a graph of ATen operators: torch.export, once, with clear errors.

The trace keeps the module path and source line of every operator, for messages and for finding layers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_map

from amc.errors import ModelError, message_of
from amc.structure.advice import advice_on_example, advice_on_network, advice_on_recurrence
from amc.structure.free_sizes import settle_sizes_
from amc.structure.literals import Literal, watching_
from amc.structure.modes import evaluating
from amc.structure.source import line_of_error

_DOCUMENTED = "see `torch.export` in PyTorch's documentation"


class ExampleError(ModelError):
    """The network does not take the example input."""


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments for one forward pass: what the user calls the model with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example_input: Any) -> Example:
        """A tuple holds the positional arguments, a dict the keyword ones; any other value is the only argument."""
        if isinstance(example_input, cls):
            return example_input
        if isinstance(example_input, tuple):
            return cls(example_input, {})
        if isinstance(example_input, dict):
            return cls((), example_input)
        return cls((example_input,), {})

    def cloned(self) -> Example:
        """A copy with its own tensors: a forward pass may write into its input."""
        return Example(cloned(self.args), cloned(dict(self.kwargs)))


def cloned(value: Any) -> Any:
    """Nested values, with a copy of every tensor."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value)


@dataclass(frozen=True, slots=True)
class Trace:
    """The exported graph and what its placeholders stand for."""

    nodes: tuple[Node, ...]
    live: frozenset[Node]  # those whose result reaches an output or changes a tensor in place
    tensors: Mapping[str, str]  # placeholder name -> name of a parameter or buffer of the model
    shapes: Mapping[str, tuple[int, ...]]  # every parameter and buffer of the model
    parameters: tuple[str, ...]  # names of the parameters, tied ones once
    attributes: Mapping[str, Mapping[str, int]]  # per module path: its integer attributes, such as groups; `_integers`
    inputs: frozenset[str]  # placeholders of the network's own arguments
    literals: tuple[Literal, ...]  # integer attributes that reach an operator


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; attention by its plain formula, which every tool here can follow."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def dry_run(model: nn.Module, example: Example) -> None:
    """Run one forward pass on real tensors. Raises ExampleError with the cause if the network refuses the example.

    Call it before `trace`: functions of the user's with a cache (`functools.lru_cache`) then keep real tensors, not the
    trace's tensors, which hold no values.
    """
    try:
        with inference(model), _quiet():
            model(*example.args, **example.kwargs)
    except Exception as error:  # the user's forward may raise anything
        advice = advice_on_network(model) or advice_on_example(model, (example.args, dict(example.kwargs)))
        raise ExampleError(
            f"{type(model).__name__} does not take the example input: {_cause(error)}{f'; {advice}' if advice else ''}"
        ) from error


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """A module's integer attributes, and the entries of its tuples, such as `normalized_shape[0]`."""
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, value
        elif type(value) is tuple:
            yield from ((f"{name}[{place}]", entry) for place, entry in enumerate(value) if type(entry) is int)


def trace(model: nn.Module, example: Example) -> Trace:
    """Export `model` on `example`. Raises ModelError with the cause if torch.export cannot trace it.

    Give a copy: afterwards the network's attributes belong to the trace, and it cannot be used.
    """
    attributes = {path: dict(_integers(module)) for path, module in model.named_modules()}
    shapes = {name: tuple(value.shape) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    parameters = tuple(name for name, _ in model.named_parameters())
    canonical = _canonical_names(model)
    try:
        with inference(model), _quiet():
            with watching_(model) as seen, preserve_node_meta():  # of which call an operator is
                program = torch.export.export(model, example.args, dict(example.kwargs), strict=False)
            settle_sizes_(program, (example.args, dict(example.kwargs)))
    except Exception as error:  # torch.export raises whatever the user's forward does
        raise ModelError(
            f"torch.export cannot trace {type(model).__name__}: {_cause(error)}; "
            f"{advice_on_network(model) or advice_on_recurrence(model) or _DOCUMENTED}"
        ) from error
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    tensors = {
        spec.arg.name: canonical[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target is not None
    }
    given = frozenset(
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    )
    nodes = tuple(program.graph.nodes)
    return Trace(nodes, _live(nodes), tensors, shapes, parameters, attributes, given, seen())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings, logs and prints of torch.export: AMC reports an error in one line of its own."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _live(nodes: tuple[Node, ...]) -> frozenset[Node]:
    live: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or node.is_impure() or not live.isdisjoint(node.users):
            live.add(node)
    return frozenset(live)


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> its first name: tied tensors have several."""
    first: dict[int, str] = {}
    names = {}
    everything = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, value in everything:
        names[name] = first.setdefault(id(value), name)
    return names


def _cause(error: Exception) -> str:
    where = line_of_error(error)
    return f"{message_of(error)}{f' (at {where})' if where else ''}"


def module_path(node: Node) -> str:
    """Path of the innermost module whose forward calls the operator, such as `layer1.0.conv1`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return re.sub(r"@\d+$", "", paths[-1]) if paths else ""
