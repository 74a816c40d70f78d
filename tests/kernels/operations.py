"""One case -> how far each result is from a float64 reference.

The reference is the same operation in float64 and the default format, which torch computes without oneDNN; where
torch has only the one implementation, the answer is known beforehand. An error is the largest difference over the
largest entry of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kernels.cases import CONTIGUOUS, DOUBLE, LAST_WEIGHT, Case

Errors = dict[str, float]
Function = Callable[..., Tensor]
Backward = Callable[[], AbstractContextManager[Any]]

_CONVOLUTIONS = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "conv_transpose2d": F.conv_transpose2d}


def errors(case: Case, backward: Backward, repeats: int = 1) -> Errors:
    """Of the output and of the gradient of every floating-point argument, by name; infinite where one is not finite.

    The gradients are computed in the context that `backward` gives. Of several repeats the worst counts: what a faulty
    kernel reads and overwrites differs from time to time.
    """
    generator = torch.Generator().manual_seed(2018)
    if case.operation in DOUBLE:
        return _known(case, generator)
    function, values = _prepared(case, generator)
    arguments = {name: _typed(name, value, case) for name, value in values.items()}
    reference = {name: value.double() if value.is_floating_point() else value for name, value in arguments.items()}
    # One that varies, so that positions that are mixed up show, and with a mean, so that sums do not cancel.
    shape = function(*reference.values()).shape
    cotangent = (1 + torch.randn(shape, generator=generator, dtype=torch.float64)).to(getattr(torch, case.dtype))
    expected = _results(function, reference, cotangent.double(), backward)
    worst = dict.fromkeys(expected, 0.0)
    for _ in range(repeats):
        given = {name: _laid_out(name, value.clone(), case) for name, value in arguments.items()}
        results = _results(function, given, cotangent, backward)
        worst = {name: max(worst[name], _error(results[name], expected[name])) for name in expected}
    return worst


def _typed(name: str, value: Tensor, case: Case) -> Tensor:
    """`value` in the type of the case; batch norms have float32 parameters also where images are bfloat16."""
    if not value.is_floating_point():
        return value
    return value.to(torch.float32 if "batch_norm" in case.operation and name != "input" else getattr(torch, case.dtype))


def _results(
    function: Function, arguments: dict[str, Tensor], cotangent: Tensor, backward: Backward
) -> dict[str, Tensor]:
    """The output and the gradients."""
    leaves = {
        name: value.detach().requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }
    output = function(*leaves.values())
    with backward():
        output.backward(cotangent)
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
    return {"output": output.detach(), **{name: value for name, value in gradients.items() if value is not None}}


def _error(result: Tensor, expected: Tensor) -> float:
    if result.shape != expected.shape or not result.isfinite().all():
        return float("inf")
    largest = float(expected.abs().max())
    return float((result.double() - expected).abs().max()) / (largest or 1.0)


def _laid_out(name: str, value: Tensor, case: Case) -> Tensor:
    """`value` with the strides that the case asks for."""
    if case.layout == CONTIGUOUS or name != ("weight" if case.layout == LAST_WEIGHT else "input"):
        return value
    if value.dim() == 3:  # [N, C, L]: the view of a sequence [N, L, C]
        return value.transpose(1, 2).contiguous().transpose(1, 2)
    if value.dim() < 4:
        return value
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return torch.empty_like(value, memory_format=formats[value.dim()]).copy_(value)


def _prepared(case: Case, generator: torch.Generator) -> tuple[Function, dict[str, Tensor]]:
    """The operation, and its arguments in float64."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if case.operation in _CONVOLUTIONS:
        return _convolution(case, draw)
    n, c, m = case.batch, case.inputs, case.outputs
    image, matrix = draw(n, c, case.size, case.size), draw(n, c)
    scale, shift = draw(c), draw(c)
    simple: dict[str, tuple[Function, Sequence[Tensor]]] = {
        "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (image, scale, shift)),
        "batch_norm in eval mode": (
            lambda x, w, b: F.batch_norm(x, torch.zeros_like(w), torch.ones_like(w), w, b), (image, scale, shift)
        ),
        "group_norm": (lambda x, w, b: F.group_norm(x, 1, w, b), (image, scale, shift)),
        "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (image,)),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (image,)),
        "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 3), (image,)),
        "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (image,)),
        "pad": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), (image,)),
        "pointwise": (lambda x: F.silu(x) + F.gelu(x) * torch.sigmoid(x) + F.relu6(x), (image,)),
        "prelu": (F.prelu, (image, scale)),
        "squeeze and excitation": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), (image,)),
        "linear": (F.linear, (matrix, draw(m, c), draw(m))),
        "addmm": (torch.addmm, (draw(m), matrix, draw(c, m))),
        "bmm": (torch.bmm, (draw(n, 5, c), draw(n, c, m))),
        "layer_norm": (lambda x, w, b: F.layer_norm(x, (m,), w, b), (draw(n, 5, m), draw(m), draw(m))),
        "softmax": (lambda x: F.softmax(x, 1), (matrix,)),
        "cross_entropy": (F.cross_entropy, (matrix, torch.randint(c, (n,), generator=generator))),
        "attention": (F.scaled_dot_product_attention, [draw(n, 2, 7, c) for _ in range(3)]),
    }  # fmt: skip
    if case.operation in simple:
        function, arguments = simple[case.operation]
        names = ("input", *(f"argument {number}" for number in range(1, len(arguments))))
        return function, dict(zip(names, arguments, strict=True))
    return _recurrent(case, draw)


def _convolution(case: Case, draw: Callable[..., Tensor]) -> tuple[Function, dict[str, Tensor]]:
    convolve = _CONVOLUTIONS[case.operation]
    axes = int(case.operation[-2])
    first, second = case.outputs, case.inputs // case.groups
    if "transpose" in case.operation:
        first, second = case.inputs, case.outputs // case.groups
    values = {
        "input": draw(case.batch, case.inputs, *[case.size] * axes),
        "weight": draw(first, second, *[case.kernel] * axes),
        "bias": draw(case.outputs),
    }
    options = {"stride": case.stride, "padding": case.kernel // 2, "groups": case.groups}
    return lambda x, weight, bias: convolve(x, weight, bias, **options), values


def _recurrent(case: Case, draw: Callable[..., Tensor]) -> tuple[Function, dict[str, Tensor]]:
    """Both directions of an LSTM or a GRU."""
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[case.operation]
    layer = kind(case.inputs, case.outputs, batch_first=True, bidirectional=True).double()
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        layer.to(x.dtype)
        output: Tensor = torch.func.functional_call(layer, dict(zip(shapes, weights, strict=True)), (x,))[0]
        return output

    values = {"input": draw(case.batch, case.size, case.inputs)}
    return function, values | {name: draw(*shape) * 0.3 for name, shape in shapes.items()}


def _known(case: Case, generator: torch.Generator) -> Errors:
    """Linear algebra in float64, built so that the answer is known and well conditioned."""
    n = case.inputs
    lower = torch.randn(n, n, generator=generator, dtype=torch.float64).tril(-1) / n + torch.eye(n).double()
    answer = torch.randn(n, case.outputs, generator=generator, dtype=torch.float64)
    gram = lower @ lower.T
    if case.operation == "gram":
        samples = torch.randn(case.batch, n, generator=generator, dtype=torch.float64)
        by_hand = (samples.unsqueeze(2) * samples.unsqueeze(1)).sum(0)
        return {"output": _error(samples.T @ samples, by_hand)}
    if case.operation == "cholesky":
        return {"output": _error(torch.linalg.cholesky(gram), lower)}
    if case.operation == "cholesky_solve":
        return {"output": _error(torch.cholesky_solve(gram @ answer, torch.linalg.cholesky(gram)), answer)}
    return {"output": _error(torch.linalg.solve_triangular(lower, lower @ answer, upper=False), answer)}
