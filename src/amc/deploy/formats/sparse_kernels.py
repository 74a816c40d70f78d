"""Predicts whether XNNPACK runs a `.tflite` file with its sparse kernels on Arm, and if not, why.

The kernels need tensors in channels-first layout (NCHW); TFLite stores channels last. Therefore XNNPACK converts a
whole stretch of the network or nothing. A stretch begins with a first layer that changes the layout to NCHW. It ends
with a spatial mean that changes the layout back. XNNPACK must support every operator between them in NCHW. More than
two thirds of all weights of the stretch's 1x1 convolutions must be zero; in some graphs a linear layer right after the
mean counts too. The rules follow XNNPACK's `xnn_subgraph_rewrite_for_nchw`; docs/sparse.md says how they were checked
against ai-edge-litert 2.3.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from amc.deploy.formats.tflite_graph import (
    constant,
    consumers,
    fold_transposed_means_,
    load_schema,
    operator_code,
    producers,
    read_model,
    shape_of,
)

_LEAST_ZEROS = (2, 3)  # two thirds: a larger share of the weights must be zero
_UNARY = (
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RELU", "RELU6",
    "RELU_0_TO_1", "RELU_N1_TO_1", "ROUND", "RSQRT", "SIN", "COS", "SQRT", "SQUARE", "TANH",
)  # fmt: skip
_BINARY = ("ADD", "MUL")
_PADDED = ("CONV_2D", "DEPTHWISE_CONV_2D")
_FIRST = "the first layer must be a 3x3 convolution of stride 2, padding 1 and 3 input channels"


@dataclass(frozen=True, slots=True)
class SparseKernels:
    """How XNNPACK runs a file on Arm if its weights are stored sparse."""

    used: bool  # whether XNNPACK uses its sparse kernels
    wrong: bool  # XNNPACK may run a part of the network with sparse kernels and leave its result in the wrong layout
    reason: str  # why the kernels are not used; "" if they are used
    layers: int  # number of 1x1 convolutions, and of classifiers if they reduce the share of zeros
    zeros: int  # number of zero weights in these layers
    weights: int  # number of all weights in these layers


def sparse_kernels(data: bytes) -> SparseKernels:
    """The verdict on a `.tflite`, stored sparse or dense; a dense file is judged as if it were stored sparse.

    Only the first graph of a file is judged, because only the first graph runs. Raises RunError if `data` is not a
    TFLite file.
    """
    schema, model = load_schema(), read_model(data)
    fold_transposed_means_(schema, model, model.subgraphs[0])  # `sparsify_tflite` does the same
    return judge(schema, model, model.subgraphs[0])


def judge(schema: Any, model: Any, graph: Any) -> SparseKernels:
    """See `sparse_kernels`."""
    view = _View(schema, model, graph)
    exits = [operator for operator in view.operators if view.leaves(operator)]
    stretch = view.before(exits)
    reason = "" if exits else "the network has no mean over height and width, where they would end"
    reason = reason or next(filter(None, map(view.obstacle, stretch)), "") or view.side_exit(stretch)
    # XNNPACK checks the producers of a part's inputs, but not the readers of its result. After such a first layer, a
    # 1x1 convolution can therefore get the new layout although its reader expects the old one.
    wrong = bool(reason) and any(map(view.enters, view.operators))
    pointwise = [operator for operator in stretch if view.is_pointwise(operator)]
    # XNNPACK counts a linear layer after the mean in some graphs only (docs/sparse.md), so both counts must suffice.
    ways = [pointwise, pointwise + view.linear_after(exits)]
    layers = min(ways, key=view.sparsity)
    zeros, weights = view.zeros(layers)
    least, of = _LEAST_ZEROS
    if not reason and zeros * of <= weights * least:
        kinds = "1x1 convolutions" if layers is ways[0] else "1x1 convolutions and classifier"
        reason = f"{view.sparsity(layers):.1%} of the weights of its {kinds} are zero, not more than two thirds"
    return SparseKernels(not reason, wrong, reason, len(layers), zeros, weights)


class _View:
    """The graph as XNNPACK's delegate receives it: unpacking and padding are part of the operator after them."""

    def __init__(self, schema: Any, model: Any, graph: Any) -> None:
        self._schema, self._model, self._graph = schema, model, graph
        self._names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self._makers = producers(graph)
        self._fixed = {  # tensors that do not depend on the input
            index
            for index, tensor in enumerate(graph.tensors)
            if tensor.sparsity is not None or constant(schema, model, tensor).size
        }
        for operator in graph.operators:  # in order of execution
            if set(map(int, operator.inputs)) <= self._fixed:
                self._fixed.update(map(int, operator.outputs))
        self.operators = [operator for operator in graph.operators if not set(operator.outputs) <= self._fixed]

    def name(self, operator: Any) -> str:
        """The operator's name in the schema, such as CONV_2D."""
        return str(self._names[operator_code(self._model, operator)])

    def leaves(self, operator: Any) -> bool:
        """Whether the operator changes the layout back: a mean over height and width, or DEPTH_TO_SPACE."""
        if self.name(operator) != "MEAN":
            return self.name(operator) == "DEPTH_TO_SPACE"
        axes = {int(axis) % 4 for axis in self._values(operator.inputs[1])}
        return len(self._shape(operator.inputs[0])) == 4 and axes == {1, 2}

    def enters(self, operator: Any) -> bool:
        """Whether the operator is a first layer, which changes the layout to NCHW."""
        if self.name(operator) != "CONV_2D":
            return False
        options = operator.builtinOptions
        strides = (options.strideH, options.strideW)
        return self._shape(operator.inputs[1])[1:] == (3, 3, 3) and strides == (2, 2) and self._padding(operator) == 1

    def before(self, exits: Iterable[Any]) -> list[Any]:
        """The stretch that ends with `exits`, in execution order; it begins with first layers or unfit operators."""
        stretch: list[Any] = []
        waiting = list(exits)
        while waiting:
            operator = waiting.pop()
            if operator in stretch:
                continue
            stretch.append(operator)
            if self._fits(operator) and not self.enters(operator):
                waiting.extend(filter(None, map(self._makers.get, self._data(operator))))
        return [operator for operator in self.operators if operator in stretch]

    def obstacle(self, operator: Any) -> str:
        """Why an operator cannot be part of the stretch; "" if it can."""
        if self.enters(operator):
            return ""
        if self._fits(operator):
            starts = any(self._makers.get(index) is None for index in self._data(operator))
            return f"the input goes straight to {self._described(operator)}; {_FIRST}" if starts else ""
        if self.name(operator) == "CONV_2D":
            return f"{self._described(operator)} has no sparse kernel, as 1x1 of stride 1 has; also {_FIRST}"
        return f"{self._described(operator)} does not run in the layout that sparse kernels need"

    def side_exit(self, stretch: Sequence[Any]) -> str:
        """The first result inside the stretch that is read outside of it or is an output, as a reason; "" if none."""
        for operator in stretch:
            if self.leaves(operator):
                continue
            for reader in self._readers(operator):
                if reader is None or reader not in stretch:
                    outside = "an output" if reader is None else self.name(reader)
                    return f"the result of {self._described(operator)} also goes to {outside}, outside of the stretch"
        return ""

    def linear_after(self, exits: Iterable[Any]) -> list[Any]:
        """Linear layers that read the result of an exit."""
        readers = (reader for operator in exits for reader in self._readers(operator) if reader is not None)
        return [reader for reader in readers if self.name(reader) == "FULLY_CONNECTED"]

    def is_pointwise(self, operator: Any) -> bool:
        """Whether the operator is a 1x1 convolution: its weights count in every graph."""
        return self.name(operator) == "CONV_2D" and self._shape(operator.inputs[1])[1:3] == (1, 1)

    def sparsity(self, layers: Sequence[Any]) -> float:
        """Share of zeros among the weights of `layers`, in [0, 1]; 0 if there are no weights."""
        zeros, weights = self.zeros(layers)
        return zeros / max(weights, 1)

    def zeros(self, layers: Sequence[Any]) -> tuple[int, int]:
        """Zero weights, all weights."""
        kept = sum(self._weights(operator)[0] for operator in layers)
        weights = sum(self._weights(operator)[1] for operator in layers)
        return weights - kept, weights

    def _weights(self, operator: Any) -> tuple[int, int]:
        """Nonzero weights, all weights."""
        index = int(operator.inputs[1])
        while index in self._makers:  # DENSIFY and DEQUANTIZE
            index = int(self._makers[index].inputs[0])
        tensor = self._graph.tensors[index]
        total = 1
        for size in shape_of(tensor):
            total *= size
        if tensor.sparsity is None:
            return int((constant(self._schema, self._model, tensor) != 0).sum()), total
        width = 2 if tensor.type == self._schema.TensorType.FLOAT16 else 4
        return len(self._model.buffers[tensor.buffer].data) // width, total

    def _fits(self, operator: Any) -> bool:
        name = self.name(operator)
        if name == "CONV_2D":
            return self._pointwise_fits(operator)
        if name == "DEPTHWISE_CONV_2D":
            return self._depthwise_fits(operator)
        if name in _BINARY:
            shapes = [self._shape(index) for index in operator.inputs]
            fixed = [self._shape(index) for index in operator.inputs if int(index) in self._fixed]
            return all(len(shape) == 4 for shape in shapes) and all(sum(n != 1 for n in shape) <= 1 for shape in fixed)
        if name == "RESIZE_BILINEAR":
            return min(self._shape(operator.inputs[0])[1:3]) > 1
        return self.leaves(operator) or (name in _UNARY and len(self._shape(operator.inputs[0])) == 4)

    def _pointwise_fits(self, operator: Any) -> bool:
        options, (_, height, width, channels) = operator.builtinOptions, self._shape(operator.inputs[1])
        return (
            height == width == options.strideH == options.strideW == 1
            and channels == self._shape(operator.inputs[0])[3]  # one group
            and self._padding(operator) == 0
        )

    def _depthwise_fits(self, operator: Any) -> bool:
        options, (_, height, width, channels) = operator.builtinOptions, self._shape(operator.inputs[1])
        return (
            height == width
            and height in (3, 5)
            and options.strideH == options.strideW <= 2
            and options.dilationHFactor == options.dilationWFactor == 1
            and channels == self._shape(operator.inputs[0])[3]
            and self._padding(operator) == height // 2
        )

    def _padding(self, operator: Any) -> int | None:
        """Padding in pixels, equal on all sides; None if the sides differ."""
        options = operator.builtinOptions
        size = self._shape(operator.inputs[1])[1]
        if options.padding == self._schema.Padding.SAME:
            return size // 2 if options.strideH == 1 else None  # with stride 2 the sides differ
        pad = self._pad_of(operator)
        if pad is None:
            return 0
        amounts = self._values(pad.inputs[1])
        return amounts[2] if amounts == [0, 0] + [amounts[2]] * 4 + [0, 0] else None

    def _pad_of(self, operator: Any) -> Any | None:
        """The PAD that becomes part of the convolution after it, which has no padding itself; None if there is none."""
        if self.name(operator) not in _PADDED or operator.builtinOptions.padding == self._schema.Padding.SAME:
            return None
        pad = self._makers.get(int(operator.inputs[0]))
        if pad is None or self.name(pad) != "PAD" or len(consumers(self._graph, int(pad.outputs[0]))) != 1:
            return None
        return pad

    def _data(self, operator: Any) -> list[int]:
        """The operator's inputs that depend on the network's input; a merged PAD is replaced by its own inputs."""
        pad = self._pad_of(operator)
        source = operator if pad is None else pad
        return [int(index) for index in source.inputs if index >= 0 and int(index) not in self._fixed]

    def _readers(self, operator: Any) -> list[Any | None]:
        """Operators that read the result; a merged PAD is replaced by its reader. None stands for a network output."""
        readers: list[Any | None] = []
        for output in map(int, operator.outputs):
            readers += [None] if output in self._graph.outputs else []
            for reader in consumers(self._graph, output):
                after = consumers(self._graph, int(reader.outputs[0]))
                merged = self.name(reader) == "PAD" and len(after) == 1 and self._pad_of(after[0]) is reader
                readers.append(after[0] if merged else reader)
        return readers

    def _values(self, index: int) -> list[int]:
        tensor = self._graph.tensors[int(index)]
        return [int(value) for value in constant(self._schema, self._model, tensor).reshape(-1)]

    def _shape(self, index: int) -> tuple[int, ...]:
        return shape_of(self._graph.tensors[int(index)])

    def _described(self, operator: Any) -> str:
        name = self.name(operator)
        if name not in _PADDED:
            return name
        _, height, width, _ = self._shape(operator.inputs[1])
        return f"{name} {height}x{width} of stride {operator.builtinOptions.strideH}"
