"""Works around a wrong gradient kernel, and warns of slow bfloat16.

`docs/kernels.md` describes the sweep that found both. Needs only torch.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_X86 = ("x86_64", "amd64")
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


class RightGradients(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context for the backward pass that avoids a broken kernel of oneDNN. The forward pass needs no context.

    oneDNN 3.12 (in torch 2.13) computes a wrong weight gradient for a strided 1x1 convolution in channels-last format,
    or aborts the process, if the input has fewer channels than a vector register: its workspace is too small. The
    kernel for the default format is correct. So the context converts the tensors of such a convolution to the default
    format. Other convolutions and other devices are not changed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`. The backward of a strided 1x1 convolution gets tensors in the default format."""
        if func is _CONVOLUTION_BACKWARD:
            gradient, images, weight, bias_sizes, stride, *rest = args
            if images.device.type == "cpu" and _is_strided_pointwise(weight, stride):
                plain = map(_default_format, (gradient, images, weight))
                of_images, *of_parameters = func(*plain, bias_sizes, stride, *rest, **(kwargs or {}))
                # The gradient keeps the format of the images, because compiled networks rely on it.
                return (of_images if of_images is None else torch.empty_like(images).copy_(of_images), *of_parameters)
        return func(*args, **(kwargs or {}))


def _is_strided_pointwise(weight: Tensor, stride: Sequence[int]) -> bool:
    return all(size == 1 for size in weight.shape[2:]) and any(step > 1 for step in stride)


def _default_format(tensor: Tensor) -> Tensor:
    """The same values with the strides of the default format.

    `Tensor.contiguous` is not enough. With dimensions of size 1 a tensor can be contiguous and channels-last at once;
    torch then uses the channels-last kernel.
    """
    plain = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return tensor if tensor.stride() == plain.stride() else plain.copy_(tensor)


def slow_bfloat16(device: torch.device) -> str | None:
    """A warning, one line, if bfloat16 is slower than float32 on `device`; None otherwise and for GPUs.

    Respects ONEDNN_MAX_CPU_ISA.
    """
    if device.type != "cpu" or _has_bfloat16():
        return None
    return (
        "bfloat16 is slower than float32 on this processor, up to 17 times: torch finds no bfloat16 instructions "
        "(AVX512-BF16 on x86); use float32"
    )


def _has_bfloat16() -> bool:
    """Whether oneDNN supports bfloat16 here, with instructions of the processor."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in builds without oneDNN
    if supported is None or not supported():
        return False
    # On x86, oneDNN also supports bfloat16 if AVX-512 has to emulate it.
    return platform.machine().lower() not in _X86 or bool(torch.cpu._is_avx512_bf16_supported())
