"""What a processor's kernels can be trusted with: gradients, and bfloat16.

`docs/kernels.md` has the sweep that this follows from. Needs torch alone.
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
    """Context of a backward pass whose convolutions avoid oneDNN's broken kernel; the forward pass needs none.

    oneDNN 3.12 (in torch 2.13) computes the weight gradient of a strided 1x1 convolution in channels-last format with a
    workspace that is too small where the input has fewer channels than a vector: the gradient is wrong, or the process
    aborts. The kernel for the default format is right. So such a convolution's tensors are brought into the default
    format, whatever made them channels-last. All other convolutions, and other devices, are left alone.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`; for the backward of a strided 1x1 convolution, on tensors in the default format."""
        if func is _CONVOLUTION_BACKWARD:
            gradient, images, weight, bias_sizes, stride, *rest = args
            if images.device.type == "cpu" and _is_strided_pointwise(weight, stride):
                plain = map(_default_format, (gradient, images, weight))
                of_images, *of_parameters = func(*plain, bias_sizes, stride, *rest, **(kwargs or {}))
                # In the format of the images, as without this context: compiled networks rely on it.
                return (of_images if of_images is None else torch.empty_like(images).copy_(of_images), *of_parameters)
        return func(*args, **(kwargs or {}))


def _is_strided_pointwise(weight: Tensor, stride: Sequence[int]) -> bool:
    return all(size == 1 for size in weight.shape[2:]) and any(step > 1 for step in stride)


def _default_format(tensor: Tensor) -> Tensor:
    """The same values with the strides of the default format.

    `Tensor.contiguous` does not do it: dimensions of size 1 let a tensor be contiguous and channels-last at once, and
    torch then takes the channels-last kernel.
    """
    plain = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return tensor if tensor.stride() == plain.stride() else plain.copy_(tensor)


def slow_bfloat16(device: torch.device) -> str | None:
    """Why bfloat16 costs more time than float32 on `device`, as one line for the user; None where it does not.

    Heeds ONEDNN_MAX_CPU_ISA. GPUs are not looked at.
    """
    if device.type != "cpu" or _has_bfloat16():
        return None
    return (
        "bfloat16 is slower than float32 on this processor, up to 17 times: torch finds no bfloat16 instructions "
        "(AVX512-BF16 on x86); use float32"
    )


def _has_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 from torch here, and has instructions for it."""
    taken = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in builds without oneDNN
    if taken is None or not taken():
        return False
    # On x86 oneDNN also takes it where AVX-512 alone has to emulate it.
    return platform.machine().lower() not in _X86 or bool(torch.cpu._is_avx512_bf16_supported())
