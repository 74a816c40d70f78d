"""Which operations are tried, in which shapes, layouts and types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, product
from typing import Any

CHANNELS = (*range(1, 18), 20, 24, 33)
KERNELS, STRIDES, BATCHES, DTYPES = (1, 3, 5), (1, 2), (1, 33, 64), ("float32", "bfloat16")
CONTIGUOUS, LAST, LAST_WEIGHT = "contiguous", "channels-last", "channels-last weight"
LAYOUTS = (CONTIGUOUS, LAST)
CONVOLUTION = "conv2d"


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one shape; an operation ignores the fields that mean nothing to it."""

    operation: str
    inputs: int  # channels, or features
    outputs: int = 0
    kernel: int = 1  # along every axis
    stride: int = 1
    groups: int = 1
    batch: int = 2
    size: int = 8  # pixels along every axis, or steps of a sequence
    layout: str = CONTIGUOUS  # of the input; of the weight with LAST_WEIGHT
    dtype: str = "float32"

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def is_strided_pointwise(self) -> bool:
        """A convolution that oneDNN reduces to unit stride."""
        return "conv" in self.operation and self.kernel == 1 and self.stride > 1

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Case:
        return cls(**record)


def convolutions() -> Iterator[Case]:
    """The full grid of 2-D convolutions: all channel counts, dense, in two groups where they divide, and depthwise."""
    for inputs, kernel, stride in product(CHANNELS, KERNELS, STRIDES):
        shapes = [(14, 1, BATCHES), (inputs, 1, (33,))]  # output channels, groups, batches
        shapes += [(2 * ((inputs + 3) // 2), 2, BATCHES)] if inputs % 2 == 0 and inputs > 2 else []
        shapes += [(inputs, inputs, BATCHES), (2 * inputs, inputs, (33,))] if inputs > 1 else []
        for (outputs, groups, batches), layout, dtype in product(shapes, LAYOUTS, DTYPES):
            for batch in batches:
                yield Case(CONVOLUTION, inputs, outputs, kernel, stride, groups, batch, layout=layout, dtype=dtype)


def large_images() -> Iterator[Case]:
    """Convolutions of 64 x 64 pixels: some faults need more room than a small image gives them."""
    for inputs, kernel, stride, layout in product(CHANNELS, (1, 3), STRIDES, LAYOUTS):
        yield Case(CONVOLUTION, inputs, 16, kernel, stride, 1, 32, 64, layout)


def odd_convolutions() -> Iterator[Case]:
    """1-D, 3-D and transposed convolutions, weights in channels-last, images of 1, 2 and 7 pixels."""
    for inputs, kernel, stride, layout in product((1, 3, 4, 7, 12, 17), KERNELS, STRIDES, LAYOUTS):
        for operation in ("conv1d", "conv3d", "conv_transpose2d"):
            yield Case(operation, inputs, 14, kernel, stride, 1, 33, 6, layout)
        yield Case(CONVOLUTION, inputs, 14, kernel, stride, 1, 33, 8, LAST_WEIGHT)
        for size in (1, 2, 7):
            yield Case(CONVOLUTION, inputs, 14, kernel, stride, 1, 33, size, layout)


# Those in both types; autocast computes the others in float32.
IMAGES = (
    "batch_norm", "batch_norm in eval mode", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "interpolate", "pad", "pointwise", "prelu", "squeeze and excitation",
)  # fmt: skip
VECTORS = ("linear", "addmm", "bmm", "attention", "lstm", "gru")
FLOAT32 = ("group_norm", "layer_norm", "softmax", "cross_entropy")
DOUBLE = ("gram", "cholesky", "cholesky_solve", "solve_triangular")  # of calibration and reconstruction


def other_operations() -> Iterator[Case]:
    """What else training, scoring and calibration use."""
    for operation, channels, batch, layout, dtype in product(IMAGES, CHANNELS, (1, 33), LAYOUTS, DTYPES):
        yield Case(operation, channels, channels, 3, batch=batch, layout=layout, dtype=dtype)
    for operation, features, batch, dtype in product(VECTORS, CHANNELS, (1, 33), DTYPES):
        yield Case(operation, features, features + 3, batch=batch, dtype=dtype)
    for operation, channels, batch, layout in product(FLOAT32, CHANNELS, (1, 33), LAYOUTS):
        yield Case(operation, channels, channels + 3, batch=batch, layout=layout)
    for operation, features in product(DOUBLE, (*CHANNELS, 130, 257)):
        yield Case(operation, features, features + 3, batch=50, dtype="float64")


def full_grid() -> Iterator[Case]:
    """Everything."""
    yield from convolutions()
    yield from large_images()
    yield from odd_convolutions()
    yield from other_operations()


def covering_grid() -> Iterator[Case]:
    """A part of the grid in which every channel count meets every kernel, stride and layout, and all the rest comes up.

    Strided 1x1 convolutions of large images are all in it: most of the faults that are known were there.
    """
    rest = cycle(product(BATCHES, DTYPES, (False, True)))
    for inputs, kernel, stride, layout in product(CHANNELS, KERNELS, STRIDES, LAYOUTS):
        batch, dtype, depthwise = next(rest)
        shape = (inputs, inputs) if depthwise and inputs > 1 else (14, 1)
        yield Case(CONVOLUTION, inputs, shape[0], kernel, stride, shape[1], batch, layout=layout, dtype=dtype)
    yield from (case for case in convolutions() if case.groups == 1 and _is_suspect(case))
    yield from (case for case in large_images() if _is_suspect(case))
    yield from thinned(odd_convolutions(), 5)
    yield from thinned(other_operations(), 11)


def thinned(cases: Iterable[Case], every: int) -> Iterator[Case]:
    """Every so-manieth case; a number that shares no factor with the grid's lengths takes something of everything."""
    return (case for number, case in enumerate(cases) if number % every == 0)


def _is_suspect(case: Case) -> bool:
    return case.is_strided_pointwise and case.layout == LAST and case.dtype == "float32" and case.batch > 1
