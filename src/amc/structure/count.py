"""Multiply-accumulates and parameters as torch itself counts them: the reference for every claimed cost."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from amc.errors import ModelError, message_of
from amc.structure.copying import copy_model, undisturbed, with_tensors
from amc.structure.source import line_of_error
from amc.structure.trace import Example, inference


def count_macs(model: nn.Module, example_input: Any) -> int:
    """Multiply-accumulates of one forward pass on `example_input`, by torch's FlopCounterMode.

    Runs on the meta device, without arithmetic; a model that cannot run there runs on its own device. Basic operators
    replace the kernels that the counter cannot see into (attention, recurrent layers). Raises ModelError if the model
    does not run under the counter at all.

    >>> amc.count_macs(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 6, 6))  # 8 * 3 * 3 * 3 at 4 * 4 places
    3456
    """
    return sum(module_macs(model, example_input)[""].values())


def module_macs(model: nn.Module, example_input: Any) -> dict[str, dict[str, int]]:
    """As `count_macs`, by module path and operator. A module includes those inside it; "" is the whole network."""
    example = Example.of(example_input).cloned()
    with undisturbed(model):
        return _counted(model, example)


def _counted(model: nn.Module, example: Example) -> dict[str, dict[str, int]]:
    try:
        with torch.device("meta"):
            return _count(on_meta(model), example_on_meta(example))
    except Exception:  # constants on another device, or a forward that needs values, fail in many ways
        pass
    try:
        return _count(copy_model(model).requires_grad_(False), example)
    except Exception as error:
        raise ModelError(
            f"the operations of {type(model).__name__} cannot be counted: torch's counter (torch.utils.flop_counter) "
            f"fails on the example input{_at(line_of_error(error))} ({message_of(error)[:200]}); "
            "write that line with operators that it knows"
        ) from error


def _at(line: str) -> str:
    return f" at {line}" if line else ""


def count_params(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once.

    >>> amc.count_params(nn.Conv2d(3, 8, 3))  # 8 * 3 * 3 * 3 and 8 biases
    224
    """
    return sum(parameter.numel() for parameter in model.parameters())


def operator_macs(node: Node) -> int | None:
    """The count of one operator of a traced graph; None if the operator cannot run without values.

    Blocks with parameters of their own run on torch.export's tensors only.
    """
    assert callable(node.target)
    for convert, device in ((_sized, torch.device("meta")), (_unchanged, contextlib.nullcontext())):
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), functools.partial(_traced_value, convert=convert))
        try:
            with device, torch.no_grad(), _visible(), FlopCounterMode(display=False) as counter:
                node.target(*args, **kwargs)
            return int(counter.get_total_flops()) // 2
        except Exception:  # as above
            continue
    return None


def _traced_value(node: Node, convert: Callable[[Any], Any]) -> Any:
    """A node's value, converted; the graph of a block, unchanged."""
    if node.op == "get_attr" and "val" not in node.meta and node.graph.owning_module is not None:
        block = getattr(node.graph.owning_module, str(node.target), None)
        if isinstance(block, GraphModule):
            return block
    return tree_map(convert, node.meta.get("val"))


def _unchanged(value: Any) -> Any:
    return value


def _sized(value: Any) -> Any:
    """A tensor of torch.export as an ordinary tensor without storage."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _count(model: nn.Module, example: Example) -> dict[str, dict[str, int]]:
    with inference(model), _visible(), FlopCounterMode(display=False) as counter:
        model(*example.args, **example.kwargs)
    root = type(model).__name__
    by_module = {
        name.removeprefix(root).removeprefix("."): {str(operator): int(flops) // 2 for operator, flops in each.items()}
        for name, each in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    total = {str(operator): int(flops) // 2 for operator, flops in counter.get_flop_counts().get("Global", {}).items()}
    return {**by_module, "": total}


@contextlib.contextmanager
def _visible() -> Iterator[None]:
    """Disable fused kernels, which the counter does not know."""
    mkldnn, *_ = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=mkldnn, _fp32_precision=None)  # type: ignore[no-untyped-call]


def example_on_meta(example: Example) -> Example:
    """The same arguments without storage."""
    return Example(tree_map(_to_meta, example.args), tree_map(_to_meta, dict(example.kwargs)))


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without storage."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    copied = with_tensors(model, {name: tensor.detach().to("meta") for name, tensor in tensors})
    return copied.requires_grad_(False)  # the counter's hooks fail on views of parameters that require gradients
