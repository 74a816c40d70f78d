"""Turns a converter's exception into one line that names the operator and its place in the network."""

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

# Converters' spellings of operators: aten::roll, aten.roll.default, torch.ops.aten.roll.default, 'prims.foo'.
_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?(aten|prims|torchvision|quantized)(?:::|\.)(\w+)")

# Converters' messages about an operator that they do not support.
_LACKING = re.compile(r"not support|unsupported|not found|no onnx function|missing out variant|not in core aten", re.I)


class ConversionError(ModelError):
    """A network cannot be written in a format."""


@contextmanager
def explained(format_name: str, module: nn.Module, inputs: Tensors) -> Iterator[None]:
    """Exceptions of the block become ConversionErrors; AmcError, OSError and MemoryError pass through."""
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
    """The first operator in a message, such as `aten.roll`; None if the message names no operator."""
    match = _OPERATOR.search(text)
    return f"{match[1]}.{match[2]}" if match else None


def _explanation(format_name: str, module: nn.Module, inputs: Tensors, error: Exception) -> str:
    text = str(error)
    operator = find_operator(text)
    if operator and _LACKING.search(text):
        return str(unsupported(format_name, module, inputs, operator))
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{type(module).__name__} cannot be written as {format_name}: {reason[:300]}"


def _module_of(module: nn.Module, inputs: Tensors, operator: str) -> str | None:
    """Path of the first submodule that calls the operator; None if torch.export cannot tell."""
    name = operator.partition(".")[2]
    try:
        with inference(module), silenced():
            graph = torch.export.export(module, inputs, strict=False).graph
    except Exception:  # the path is optional, and torch.export may be unable to trace the network
        return None
    for node in graph.nodes:
        target = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.op == "call_function" and target in (name, f"special_{name.removeprefix('bessel_')}"):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            return str(stack[-1][0]) if stack else None
    return None
