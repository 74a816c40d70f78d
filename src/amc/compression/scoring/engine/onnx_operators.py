"""The ATen operators that ONNX Runtime runs, each as ONNX nodes.

A converter gets the graph under construction and the operator's arguments by name, tensors as `Value`. It returns the
name of the output in the graph, and raises UnfitError for arguments that ONNX does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from amc.compression.scoring.engine.onnx_graph import Graph
from amc.compression.scoring.engine.program import Batch, UnfitError, Value

Converter = Callable[..., str | Sequence[str]]

CONVERTERS: dict[str, Converter] = {}


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Register the converter of ATen operators; an in-place variant is the same operator."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, function))
        return function

    return register


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise UnfitError(what)


# Layers


@converts("convolution")
def _convolution(
    g: Graph, input: Value, weight: Value, bias: Value | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> str:  # fmt: skip
    rank = len(g.shape(weight)) - 2
    _need(len(g.shape(input)) == rank + 2, "a convolution without a batch")
    strides, pads, dilations, more = (_each(part, rank) for part in (stride, padding, dilation, output_padding))
    shared = {"strides": strides, "pads": pads * 2, "dilations": dilations, "group": groups}
    operands = [input, weight, *([] if bias is None else [bias])]
    if transposed:
        return g.add("ConvTranspose", *operands, output_padding=more, **shared)
    return g.add("Conv", *operands, **shared)


def _each(numbers: list[int], rank: int) -> list[int]:
    """One number for each dimension."""
    return numbers * rank if len(numbers) == 1 else numbers


@converts("native_batch_norm")
def _batch_norm(
    g: Graph, input: Value, weight: Value | None, bias: Value | None, running_mean: Value | None,
    running_var: Value | None, training: bool, momentum: float, eps: float,
) -> str:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise UnfitError("a batch norm by the statistics of its batch")
    channels = g.shape(input)[1]
    scale = np.ones(channels, np.float32) if weight is None else weight
    shift = np.zeros(channels, np.float32) if bias is None else bias
    return g.add("BatchNormalization", input, scale, shift, running_mean, running_var, epsilon=eps)


@converts("native_layer_norm")
def _layer_norm(
    g: Graph, input: Value, normalized_shape: list[int], weight: Value | None, bias: Value | None, eps: float
) -> str:
    scale = np.ones(normalized_shape, np.float32) if weight is None else weight
    operands = [input, scale, *([] if bias is None else [bias])]
    return g.add("LayerNormalization", *operands, axis=-len(normalized_shape), epsilon=eps)


@converts("addmm")
def _addmm(g: Graph, self: Value, mat1: Value, mat2: Value, beta: float, alpha: float) -> str:
    return g.add("Gemm", mat1, mat2, self, alpha=float(alpha), beta=float(beta))


@converts("mm", "bmm")
def _matmul(g: Graph, self: Value, mat2: Value) -> str:
    return g.add("MatMul", self, mat2)


@converts("embedding")
def _embedding(
    g: Graph, weight: Value, indices: Value, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
) -> str:
    return g.add("Gather", weight, indices)


@converts("_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    g: Graph, query: Value, key: Value, value: Value, dropout_p: float, is_causal: bool, attn_mask: Value | None,
    scale: float | None,
) -> str:  # fmt: skip
    _need(not is_causal and dropout_p == 0, "a causal attention")
    factor = g.shape(query)[-1] ** -0.5 if scale is None else scale
    scores = g.add("MatMul", g.add("Mul", query, np.float32(factor)), g.add("Transpose", key, perm=[0, 1, 3, 2]))
    masked = scores if attn_mask is None else g.add("Add", scores, attn_mask)
    return g.add("MatMul", g.add("Softmax", masked, axis=-1), value)


# Pooling and resizing


@converts("max_pool2d_with_indices")
def _max_pool(
    g: Graph, self: Value, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int],
    ceil_mode: bool,
) -> str:  # fmt: skip
    _need(len(g.shape(self)) == 4, "a pooling without a batch")
    kernel = _each(kernel_size, 2)
    return g.add(
        "MaxPool", self, kernel_shape=kernel, strides=_each(stride, 2) or kernel, pads=_each(padding, 2) * 2,
        dilations=_each(dilation, 2), ceil_mode=int(ceil_mode),
    )  # fmt: skip


@converts("avg_pool2d")
def _average_pool(
    g: Graph, self: Value, kernel_size: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> str:  # fmt: skip
    _need(not ceil_mode and divisor_override is None and len(g.shape(self)) == 4, "a pooling of a rare kind")
    kernel = _each(kernel_size, 2)
    return g.add(
        "AveragePool", self, kernel_shape=kernel, strides=_each(stride, 2) or kernel, pads=_each(padding, 2) * 2,
        count_include_pad=int(count_include_pad),
    )  # fmt: skip


@converts("_adaptive_avg_pool2d")
def _adaptive_pool(g: Graph, self: Value, output_size: list[int]) -> str:
    shape = g.shape(self)
    fits = len(shape) == 4 and all(size % out == 0 for size, out in zip(shape[2:], output_size, strict=True))
    _need(fits, "an adaptive pooling with windows of several sizes")
    kernel = [size // out for size, out in zip(shape[2:], output_size, strict=True)]
    return g.add("AveragePool", self, kernel_shape=kernel, strides=kernel)


@converts("upsample_nearest2d")
def _nearest(g: Graph, self: Value, output_size: list[int]) -> str:
    return g.add(
        "Resize", self, "", _factors(g, self, output_size), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


@converts("upsample_bilinear2d")
def _bilinear(g: Graph, self: Value, output_size: list[int], align_corners: bool) -> str:
    way = "align_corners" if align_corners else "pytorch_half_pixel"
    factors = _factors(g, self, output_size)
    return g.add("Resize", self, "", factors, mode="linear", coordinate_transformation_mode=way)


def _factors(g: Graph, self: Value, output_size: list[int]) -> np.ndarray[Any, Any]:
    factors = [out / size for out, size in zip(output_size, g.shape(self)[2:], strict=True)]
    _need(all(factor.is_integer() for factor in factors), "an upsampling by a fraction")
    return np.array([1, 1, *factors], np.float32)


@converts("constant_pad_nd")
def _pad(g: Graph, self: Value, pad: list[int], value: float) -> str:
    before, after = [0] * len(g.shape(self)), [0] * len(g.shape(self))
    for dim in range(len(pad) // 2):  # the last dimension comes first
        before[-1 - dim], after[-1 - dim] = pad[2 * dim], pad[2 * dim + 1]
    return g.add("Pad", self, np.array(before + after), g.like(self, value))


# Element by element

_PLAIN = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
    "abs": "Abs", "reciprocal": "Reciprocal", "erf": "Erf", "clone": "Identity", "detach": "Identity",
    "alias": "Identity", "lift_fresh": "Identity", "sin": "Sin", "cos": "Cos", "floor": "Floor", "mish": "Mish",
}  # fmt: skip


def _plain(kind: str) -> Converter:
    return lambda g, self, **others: g.add(kind, self)


CONVERTERS.update({name: _plain(kind) for name, kind in _PLAIN.items()})


@converts("hardtanh", "clamp")
def _clamp(
    g: Graph, self: Value, min_val: float | None = None, max_val: float | None = None, min: float | None = None,
    max: float | None = None,
) -> str:  # fmt: skip
    least, most = (low if low is not None else other for low, other in ((min_val, min), (max_val, max)))
    return g.add("Clip", self, *("" if bound is None else g.like(self, bound) for bound in (least, most)))


@converts("silu")
def _silu(g: Graph, self: Value) -> str:
    return g.add("Mul", self, g.add("Sigmoid", self))


@converts("hardswish")
def _hardswish(g: Graph, self: Value) -> str:
    return g.add("HardSwish", self)


@converts("hardsigmoid")
def _hardsigmoid(g: Graph, self: Value) -> str:
    return g.add("HardSigmoid", self, alpha=1 / 6, beta=0.5)


@converts("leaky_relu")
def _leaky_relu(g: Graph, self: Value, negative_slope: float) -> str:
    return g.add("LeakyRelu", self, alpha=float(negative_slope))


@converts("elu")
def _elu(g: Graph, self: Value, alpha: float, scale: float, input_scale: float) -> str:
    _need(scale == input_scale == 1, "a scaled ELU")
    return g.add("Elu", self, alpha=float(alpha))


@converts("gelu")
def _gelu(g: Graph, self: Value, approximate: str) -> str:
    return g.add("Gelu", self, approximate=approximate)


@converts("_prelu_kernel")
def _prelu(g: Graph, self: Value, weight: Value) -> str:
    return g.add("PRelu", self, weight)


@converts("_softmax")
def _softmax(g: Graph, self: Value, dim: int, half_to_float: bool) -> str:
    return g.add("Softmax", self, axis=dim)


@converts("_log_softmax")
def _log_softmax(g: Graph, self: Value, dim: int, half_to_float: bool) -> str:
    return g.add("LogSoftmax", self, axis=dim)


@converts("rsqrt")
def _rsqrt(g: Graph, self: Value) -> str:
    return g.add("Reciprocal", g.add("Sqrt", self))


@converts("pow")
def _pow(g: Graph, self: Value, exponent: float | Value) -> str:
    return g.add("Pow", *g.pair(self, exponent))


@converts("add", "sub")
def _add(g: Graph, self: Value, other: Any, alpha: float, kind: str = "Add") -> str:
    one, two = g.pair(self, other)
    return g.add(kind, one, two if alpha == 1 else g.add("Mul", two, g.like(self, alpha)))


@converts("mul")
def _mul(g: Graph, self: Value, other: Any) -> str:
    return g.add("Mul", *g.pair(self, other))


@converts("div")
def _div(g: Graph, self: Value, other: Any, rounding_mode: str | None = None) -> str:
    _need(rounding_mode is None and g.dtype(self).is_floating_point, "a division of whole numbers")
    return g.add("Div", *g.pair(self, other))


CONVERTERS["sub"] = lambda g, self, other, alpha: _add(g, self, other, alpha, "Sub")
CONVERTERS["maximum"] = lambda g, self, other: g.add("Max", *g.pair(self, other))
CONVERTERS["minimum"] = lambda g, self, other: g.add("Min", *g.pair(self, other))


# Reductions


def _reduction(kind: str) -> Converter:
    def convert(g: Graph, self: Value, dim: list[int] | None, keepdim: bool, dtype: torch.dtype | None = None) -> str:
        _need(dtype in (None, g.dtype(self)) and g.dtype(self).is_floating_point, "a sum in another precision")
        return g.add(kind, self, np.array(dim if dim else range(len(g.shape(self)))), keepdims=int(keepdim))

    return convert


CONVERTERS.update({"mean": _reduction("ReduceMean"), "sum": _reduction("ReduceSum"), "amax": _reduction("ReduceMax")})


# Shapes


@converts("view", "_unsafe_view", "reshape")
def _view(g: Graph, self: Value, size: list[Any]) -> str:
    free = [place for place, each in enumerate(size) if isinstance(each, Batch)]
    _need(len(free) <= 1, "a reshape with the batch in two dimensions")
    whole = [g.result.shape[place] if each == -1 and free else each for place, each in enumerate(size)]
    return g.add("Reshape", self, np.array([-1 if isinstance(each, Batch) else each for each in whole]))


@converts("t")
def _t(g: Graph, self: Value) -> str:
    return g.add("Transpose", self, perm=list(range(len(g.shape(self))))[::-1])


@converts("transpose")
def _transpose(g: Graph, self: Value, dim0: int, dim1: int) -> str:
    order = list(range(len(g.shape(self))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return g.add("Transpose", self, perm=order)


@converts("permute")
def _permute(g: Graph, self: Value, dims: list[int]) -> str:
    return g.add("Transpose", self, perm=[dim % len(dims) for dim in dims])


@converts("unsqueeze")
def _unsqueeze(g: Graph, self: Value, dim: int) -> str:
    return g.add("Unsqueeze", self, np.array([dim]))


@converts("squeeze")
def _squeeze(g: Graph, self: Value, dim: int | list[int]) -> str:
    shape = g.shape(self)
    dims = [each for each in ([dim] if isinstance(dim, int) else dim) if shape[each] == 1]
    return g.add("Squeeze", self, np.array(dims)) if dims else g.add("Identity", self)


@converts("expand")
def _expand(g: Graph, self: Value, size: list[Any], implicit: bool = False) -> str:
    shape = (1,) * (len(size) - len(g.shape(self))) + g.shape(self)
    grows = [isinstance(each, Batch) and own == 1 for each, own in zip(size, shape, strict=True)]
    _need(not any(grows), "a tensor that is repeated for every image")
    return g.add("Expand", self, np.array([1 if isinstance(each, Batch) or each == -1 else each for each in size]))


@converts("slice")
def _slice(g: Graph, self: Value, dim: int, start: Any, end: Any, step: int) -> str:
    bounds = [0 if start is None else start, np.iinfo(np.int64).max if end is None else end]
    _need(not any(isinstance(each, Batch) for each in bounds), "a slice of the batch")
    return g.add("Slice", self, *(np.array([each]) for each in (*bounds, dim, step)))


@converts("select")
def _select(g: Graph, self: Value, dim: int, index: Any) -> str:
    _need(isinstance(index, int), "a slice of the batch")
    return g.add("Gather", self, np.array(index), axis=dim)


@converts("cat")
def _cat(g: Graph, tensors: list[Value], dim: int) -> str:
    _need(len({g.dtype(each) for each in tensors}) == 1, "tensors of several types")
    return g.add("Concat", *tensors, axis=dim)


@converts("split_with_sizes")
def _split_sizes(g: Graph, self: Value, split_sizes: list[int], dim: int) -> Sequence[str]:
    _need(all(isinstance(each, int) for each in split_sizes), "a slice of the batch")
    return g.add_several("Split", len(split_sizes), self, np.array(split_sizes), axis=dim)


@converts("split")
def _split(g: Graph, self: Value, split_size: int, dim: int) -> Sequence[str]:
    _need(isinstance(split_size, int), "a slice of the batch")
    whole = g.shape(self)[dim]
    sizes = [min(split_size, whole - begin) for begin in range(0, whole, split_size)]
    return _split_sizes(g, self, sizes, dim)


@converts("_to_copy")
def _to_copy(g: Graph, self: Value, dtype: torch.dtype | None, **others: Any) -> str:
    _need(dtype in (None, g.dtype(self)), "a conversion of types")
    return g.add("Identity", self)
