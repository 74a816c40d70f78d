"""Whatever a converter raised -> one line that names the operator and where in the network it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors
from amc.errors import AmcError, ModelError
from amc.structure.trace import inference

# How converters write operators: aten::roll, aten.roll.default, torch.ops.aten.roll.default, 'prims.foo'.
_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?(aten|prims|torchvision|quantized)(?:::|\.)(\w+)")

# What they say of one that they do not have.
_LACKING = re.compile(r"not support|unsupported|not found|no onnx function|missing out variant|not in core aten", re.I)


class ConversionError(ModelError):
    """A network cannot be written in a format."""


@contextmanager
def explained(format_name: str, module: nn.Module, inputs: Tensors) -> Iterator[None]:
    """Anything that the block raises becomes a ConversionError; the user's own mistakes pass through."""
    try:
        yield
    except (AmcError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ConversionError(_explanation(format_name, module, inputs, error)) from error


def unsupported(format_name: str, module: nn.Module, inputs: Tensors, operator: str) -> ConversionError:
    """The error for an operator that the format does not have."""
    place = _module_of(module, inputs, operator)
    where = f" (in module '{place}')" if place else ""
    return ConversionError(
        f"format {format_name} cannot express operator {operator}{where}; "
        "write that part of the network with other operators, or choose another format"
    )


def find_operator(text: str) -> str | None:
    """The first operator that a message names, as `aten.roll`; None where it names none."""
    match = _OPERATOR.search(text)
    return f"{match[1]}.{match[2]}" if match else None


def _explanation(format_name: str, module: nn.Module, inputs: Tensors, error: Exception) -> str:
    text = str(error)
    found = find_operator(text)
    if found and _LACKING.search(text):
        return str(unsupported(format_name, module, inputs, found))
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{type(module).__name__} cannot be written as {format_name}: {reason[:300]}"


def _module_of(module: nn.Module, inputs: Tensors, operator: str) -> str | None:
    """Path of the submodule that calls the operator first; None where torch.export cannot say."""
    name = operator.partition(".")[2]
    try:
        with inference(module), silenced():
            graph = torch.export.export(module, inputs, strict=False).graph
    except Exception:  # only for the message: the network may be one that nothing can trace
        return None
    for node in graph.nodes:
        target = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.op == "call_function" and target in (name, f"special_{name.removeprefix('bessel_')}"):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            return str(stack[-1][0]) if stack else None
    return None
