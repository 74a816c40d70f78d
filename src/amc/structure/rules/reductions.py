"""Operators that mix positions: pooling and reductions, and those that keep every position in its place."""

from __future__ import annotations

from typing import Any

from amc.structure.context import Context, Dims, Tracked
from amc.structure.rules.registry import fixed_output, operator_name, pointwise, rule


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "clone", "contiguous",
    "to", "_to_copy", "detach", "alias", "lift_fresh_copy", "type_as", "float", "half", "relu6", "zeros_like",
    "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "hardtanh", "bernoulli",
    "_assert_tensor_metadata", "fake_quantize_per_tensor_affine", "fill", "zero", "rrelu", "triu", "tril"
)  # fmt: skip
def same_place(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """Every position stays where it is."""
    return x.ids if ctx.node is not None and ctx.node.meta.get("val") is not None else ()


@rule(
    "arange", "ones", "zeros", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full", "linspace",
    "rand", "randn", "eye", "tril_indices", "triu_indices", "new_empty", "_assert_async", "sym_constrain_range"
)  # fmt: skip
def constant(ctx: Context, *_: Any, **__: Any) -> Any:
    """A tensor made by the operator itself: its sizes are literal."""
    return fixed_output(ctx)


def _spatial(ctx: Context, x: Tracked, count: int) -> Dims:
    """The last `count` dimensions are slid over, the others untouched."""
    for ids in x.ids[-count:]:
        ctx.lock(ids, f"{ctx.operator} slides over it")
    return (*x.ids[:-count], *(None,) * count)


@rule(
    "avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "upsample_nearest1d",
    "upsample_linear1d", "max_pool1d_with_indices", "_upsample_nearest_exact1d"
)  # fmt: skip
def pool1d(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Any:
    return _one_or_pair(ctx, _spatial(ctx, x, 1))


@rule(
    "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "lp_pool2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "max_pool2d_with_indices", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "fractional_max_pool2d"
)  # fmt: skip
def pool2d(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Any:
    return _one_or_pair(ctx, _spatial(ctx, x, 2))


@rule(
    "avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d",
    "upsample_trilinear3d", "max_pool3d_with_indices", "_upsample_nearest_exact3d"
)  # fmt: skip
def pool3d(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Any:
    return _one_or_pair(ctx, _spatial(ctx, x, 3))


def _one_or_pair(ctx: Context, dims: Dims) -> Any:
    """Pooling with indices returns two tensors of one shape."""
    assert ctx.node is not None
    value = ctx.node.meta["val"]
    return [dims for _ in value] if isinstance(value, (list, tuple)) else dims


AVERAGES = ("mean", "std", "var", "var_mean", "std_mean", "norm", "linalg_vector_norm")  # close to those of a part


def _axes(dim: Any, rank: int) -> set[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return set(range(rank))
    return {d % rank for d in (dim if isinstance(dim, (list, tuple)) else (dim,))} if rank else set()


@rule(
    "mean", "sum", "amax", "amin", "prod", "logsumexp", "std", "var", "norm", "linalg_vector_norm", "all", "any",
    "max", "min", "argmax", "argmin", "var_mean", "std_mean", "median", "nansum"
)  # fmt: skip
def reduction(ctx: Context, x: Tracked, *args: Any, **kwargs: Any) -> Any:
    """Reduced dimensions must have a fixed size; the others pass."""
    if any(isinstance(argument, Tracked) for argument in args):  # max and min of two tensors
        return pointwise(ctx, x, *args, **kwargs)
    axes = _axes(ctx.argument("dim"), x.rank)
    hold = ctx.average if operator_name(ctx.node.target) in AVERAGES else ctx.lock  # type: ignore[union-attr]
    for axis in axes if ctx.live else ():  # attention computes a mean over heads even if nothing reads it
        hold(x.ids[axis], f"{ctx.operator} reduces over these channels")
    assert ctx.node is not None
    value = ctx.node.meta["val"]
    first = value[0] if isinstance(value, (list, tuple)) else value
    keepdim = first.ndim == x.rank
    dims: Dims = tuple(None if d in axes else ids for d, ids in enumerate(x.ids) if keepdim or d not in axes)
    return [dims for _ in value] if isinstance(value, (list, tuple)) else dims


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "softmin", "logcumsumexp")
def along(ctx: Context, x: Tracked, dim: Any, *_: Any, **__: Any) -> Dims:
    """The operator mixes the positions of one dimension: its size must stay."""
    axis = dim % x.rank
    ctx.lock(x.ids[axis], f"{ctx.operator} runs over these channels")
    return x.ids


@rule("topk", "sort")
def ordered(ctx: Context, x: Tracked, *args: Any, **__: Any) -> Any:
    """Sorting moves positions along one dimension: every dimension stays fixed."""
    for ids in x.ids:
        ctx.lock(ids, f"{ctx.operator} reorders it")
    return fixed_output(ctx)
