"""Small `.tflite` files, written with the schema alone."""

from types import SimpleNamespace

import numpy as np


class Toy:
    """A chain of operators from one input [1, height, width, channels]; `write` gives the file's bytes."""

    def __init__(self, shape=(1, 8, 8, 3), seed=0):
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.random = schema, np.random.default_rng(seed)
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.description = 3, "toy"
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], [self.graph]
        self.graph.tensors, self.graph.operators = [], []
        self.last = self.tensor(shape)
        self.graph.inputs = [self.last]
        self.sparsity = 0.0  # share of zero weights in the operators added from now on

    def tensor(self, shape, data=None):
        tensor = self.schema.TensorT()
        tensor.shape, tensor.name, tensor.hasRank = np.array(shape, np.int32), f"t{len(self.graph.tensors)}", True
        tensor.type = self.schema.TensorType.FLOAT32
        tensor.buffer = 0
        if data is not None:
            kinds = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32"}
            tensor.type = getattr(self.schema.TensorType, kinds[str(data.dtype)])
            buffer = self.schema.BufferT()
            buffer.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def weight(self, shape):
        """Exactly round(sparsity * numel) zeros."""
        values = self.random.standard_normal(shape).astype(np.float32) + 3.0
        flat = values.reshape(-1)
        flat[self.random.permutation(flat.size)[: round(self.sparsity * flat.size)]] = 0
        return values

    def operator(self, name, inputs, shape, options=None, **fields):
        schema = self.schema
        number = getattr(schema.BuiltinOperator, name)
        codes = [code.builtinCode for code in self.model.operatorCodes]
        if number not in codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
            self.model.operatorCodes.append(code)
            codes.append(number)
        operator = schema.OperatorT()
        operator.opcodeIndex = codes.index(number)
        operator.inputs = list(inputs)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
            for key, value in fields.items():
                setattr(operator.builtinOptions, key, value)
        self.last = self.tensor(shape)
        operator.outputs = [self.last]
        self.graph.operators.append(operator)
        return self

    def shape(self):
        return tuple(int(n) for n in self.graph.tensors[self.last].shape)

    def pad(self, amount=1):
        n, height, width, channels = self.shape()
        amounts = np.array([[0, 0], [amount, amount], [amount, amount], [0, 0]], np.int32)
        shape = (n, height + 2 * amount, width + 2 * amount, channels)
        return self.operator("PAD", [self.last, self.tensor((4, 2), amounts)], shape, "PadOptions")

    def conv(self, outputs, kernel=1, stride=1, same=True, half=False):
        n, height, width, channels = self.shape()
        values = self.weight((outputs, kernel, kernel, channels))
        bias = self.tensor((outputs,), self.random.standard_normal(outputs).astype(np.float32))
        data = self.last
        if half:
            stored = self.tensor(values.shape, values.astype(np.float16))
            self.operator("DEQUANTIZE", [stored], values.shape)
            weight = self.last
        else:
            weight = self.tensor(values.shape, values)
        lost = 0 if same else kernel - 1
        shape = (n, -(-(height - lost) // stride), -(-(width - lost) // stride), outputs)
        return self.operator(
            "CONV_2D", [data, weight, bias], shape, "Conv2DOptions", strideH=stride, strideW=stride,
            padding=self.schema.Padding.SAME if same else self.schema.Padding.VALID, dilationHFactor=1,
            dilationWFactor=1,
        )  # fmt: skip

    def depthwise(self, kernel=3):
        n, height, width, channels = self.shape()
        weight = self.tensor((1, kernel, kernel, channels), self.weight((1, kernel, kernel, channels)))
        bias = self.tensor((channels,), np.zeros(channels, np.float32))
        return self.operator(
            "DEPTHWISE_CONV_2D", [self.last, weight, bias], (n, height, width, channels), "DepthwiseConv2DOptions",
            strideH=1, strideW=1, depthMultiplier=1, padding=self.schema.Padding.SAME, dilationHFactor=1,
            dilationWFactor=1,
        )  # fmt: skip

    def add(self, other):
        return self.operator("ADD", [self.last, other], self.shape(), "AddOptions")

    def pool(self):
        n, height, width, channels = self.shape()
        same = self.schema.Padding.SAME
        return self.operator(
            "MAX_POOL_2D", [self.last], (n, height // 2, width // 2, channels), "Pool2DOptions", strideH=2, strideW=2,
            filterHeight=2, filterWidth=2, padding=same,
        )  # fmt: skip

    def transpose(self, order):
        shape = tuple(self.shape()[source] for source in order)
        return self.operator("TRANSPOSE", [self.last, self.tensor((4,), np.array(order, np.int32))], shape)

    def mean(self, axes=(1, 2)):
        shape = tuple(size for axis, size in enumerate(self.shape()) if axis not in {a % 4 for a in axes})
        axes = self.tensor((len(axes),), np.array(axes, np.int32))
        return self.operator("MEAN", [self.last, axes], shape, "ReducerOptions", keepDims=False)

    def linear(self, outputs):
        weight = self.tensor((outputs, self.shape()[-1]), self.weight((outputs, self.shape()[-1])))
        shape = (self.shape()[0], outputs)
        return self.operator("FULLY_CONNECTED", [self.last, weight, -1], shape, "FullyConnectedOptions")

    def write(self):
        from amc.deploy.formats.tflite_graph import write_model

        self.graph.outputs = [self.last]
        return write_model(self.schema, self.model)


def mobile(sparsity=0.9, *, stem_stride=2, classifier=None, middle=lambda toy: toy, seed=0):
    """Stem, depthwise and 1x1 convolutions with a shortcut, mean, classifier: what XNNPACK's sparse kernels take."""
    toy = Toy((1, 16, 16, 3), seed).pad().conv(16, 3, stem_stride, same=False)
    toy.sparsity = sparsity
    toy.conv(64)
    toy.sparsity = 0.0
    shortcut = toy.depthwise().last
    toy.sparsity = sparsity
    middle(toy.conv(64).add(shortcut))
    toy.conv(64).mean()
    toy.sparsity = sparsity if classifier is None else classifier
    return toy.linear(32).write()


def outputs(data, *, reference=False, seed=0):
    """Outputs of the interpreter on random input, with XNNPACK or with TFLite's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    values = np.random.default_rng(seed).standard_normal(entry["shape"]).astype(np.float32)
    interpreter.set_tensor(entry["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def unpacked(data):
    """Name -> a sparse tensor's dense values, unpacked entry by entry, with its index arrays and metadata."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    tensors = {}
    for tensor in model.subgraphs[0].tensors:
        if tensor.sparsity is None:
            continue
        last = tensor.sparsity.dimMetadata[-1]
        kind = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}[tensor.type]
        values = model.buffers[tensor.buffer].data.view(kind)
        rows = np.zeros((int(np.prod(tensor.shape[:-1])), tensor.shape[-1]), kind)
        segments, indices = last.arraySegments.values, last.arrayIndices.values
        for row in range(len(rows)):
            for position in range(segments[row], segments[row + 1]):
                rows[row, indices[position]] = values[position]
        tensors[tensor.name.decode()] = SimpleNamespace(
            dense=rows.reshape(tensor.shape), segments=segments, indices=indices,
            sizes=[entry.denseSize for entry in tensor.sparsity.dimMetadata[:-1]],
            order=list(tensor.sparsity.traversalOrder),
        )  # fmt: skip
    return tensors
