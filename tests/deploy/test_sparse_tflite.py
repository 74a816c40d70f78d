"""Networks stored sparse compute the same outputs and have the expected size; unsuitable networks are refused."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from amc.deploy.formats.sparse_tflite import compress, sparsify_tflite
from amc.deploy.formats.tflite_graph import constant
from amc.errors import AmcError, RunError
from tests.deploy.tflite_toys import Toy, mobile, outputs, unpacked

litert = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert")
converter = pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="needs litert-torch")


def model_of(data):
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(data, 0), schema


def operators(data):
    model, schema = model_of(data)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return [names[model.operatorCodes[entry.opcodeIndex].builtinCode] for entry in model.subgraphs[0].operators]


def close(got, want):
    return np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float16]), arrays.array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.5, -2.0, float("nan")]),
    )
)  # fmt: skip
def test_compressed_rows_hold_every_nonzero_entry_in_its_place(weight):
    packed = compress(weight)
    rows = np.zeros((weight.size // weight.shape[-1], weight.shape[-1]), weight.dtype)
    for row in range(len(rows)):
        part = slice(packed.segments[row], packed.segments[row + 1])
        assert (np.diff(packed.indices[part].astype(int)) > 0).all()
        rows[row, packed.indices[part]] = packed.values[part]
    np.testing.assert_array_equal(rows.reshape(weight.shape), weight)  # -0.0 counts as 0.0
    assert len(packed.values) == max(1, np.count_nonzero(weight))
    assert packed.segments[-1] == len(packed.indices) == len(packed.values)


def test_positions_take_the_narrowest_integers():
    def kinds(columns, kept):
        weight = np.zeros((2, columns), np.float32)
        weight[1, columns - kept :] = 1
        packed = compress(weight)
        return packed.segments.dtype, packed.indices.dtype

    assert kinds(256, 255) == (np.uint8, np.uint8)  # last position 255, 255 entries
    assert kinds(256, 256) == (np.uint16, np.uint8)
    assert kinds(257, 1) == (np.uint8, np.uint16)
    assert kinds(65537, 1) == (np.uint8, np.int32)
    assert kinds(65536, 65536) == (np.int32, np.uint16)


def test_bytes_of_a_compressed_weight_match_a_hand_count():
    weight = np.zeros((64, 1, 1, 128), np.float32)
    weight[:, 0, 0, ::10] = 1  # 13 of 128 in each row
    assert compress(weight).bytes == 64 * 13 * 4 + 64 * 13 * 1 + 65 * 2


@litert
@pytest.mark.parametrize("reference", [False, True])
def test_outputs_are_those_of_the_dense_file(reference):
    dense = mobile(0.9)
    assert close(outputs(sparsify_tflite(dense), reference=reference), outputs(dense, reference=reference))


@litert
def test_sparse_weights_are_the_dense_ones():
    dense = mobile(0.9)
    model, _ = model_of(dense)
    weights = {t.name.decode(): (t, model.buffers[t.buffer].data) for t in model.subgraphs[0].tensors}
    sparse = unpacked(sparsify_tflite(dense))
    assert len(sparse) == 4  # three 1x1 convolutions and the classifier; the first and the depthwise layer are dense
    for name, entry in sparse.items():
        tensor, data = weights[name.removesuffix("/sparse")]
        np.testing.assert_array_equal(entry.dense, data.view(np.float32).reshape(tensor.shape))
        assert entry.order == list(range(len(tensor.shape)))
        assert entry.sizes == list(tensor.shape[:-1])


@litert
def test_every_sparse_weight_is_unpacked_once_just_before_its_layer():
    assert operators(mobile(0.9)) == (
        ["PAD", "CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    )
    assert operators(sparsify_tflite(mobile(0.9))) == [
        "PAD", "CONV_2D", "DENSIFY", "CONV_2D", "DEPTHWISE_CONV_2D", "DENSIFY", "CONV_2D", "ADD", "DENSIFY", "CONV_2D",
        "MEAN", "DENSIFY", "FULLY_CONNECTED",
    ]  # fmt: skip


@litert
def test_size_falls_by_what_the_weights_save():
    toy = Toy((1, 4, 4, 256))
    toy.sparsity = 0.9
    dense = toy.conv(256).write()
    weights, kept = 256 * 256, round(0.1 * 256 * 256)
    saved = 4 * weights - (5 * kept + 2 * 257)  # values and one byte of position each; 257 row starts in two bytes
    assert 0 < saved - (len(dense) - len(sparsify_tflite(dense))) < 512  # tables of the sparsity and of the operator


@litert
def test_contents_are_aligned_as_the_schema_asks():
    data = sparsify_tflite(mobile(0.9))
    _, schema = model_of(data)
    model = schema.Model.GetRootAsModel(data, 0)
    starts = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            starts.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert starts
    assert {start % 16 for start in starts} == {0}


@litert
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.7, 0.95]), st.sampled_from([1, 3]), st.integers(20, 70))
def test_any_kernel_and_width_keeps_its_outputs(seed, sparsity, kernel, channels):
    toy = Toy((1, 5, 6, channels), seed)
    toy.sparsity = sparsity
    dense = toy.conv(64, kernel).write()
    sparse = sparsify_tflite(dense)
    assert len(sparse) < len(dense)
    assert close(outputs(sparse, seed=seed), outputs(dense, seed=seed))


@litert
def test_a_layer_that_lost_all_its_weights_gives_its_bias():
    toy = Toy((1, 4, 4, 32))
    toy.sparsity = 1.0
    dense = toy.conv(32).write()
    (bias,) = {tuple(row) for row in outputs(dense).reshape(-1, 32)}
    np.testing.assert_array_equal(outputs(sparsify_tflite(dense)), np.broadcast_to(bias, (1, 4, 4, 32)))


@litert
def test_weights_in_16_bits_stay_in_16_bits():
    toy = Toy((1, 4, 4, 128))
    toy.sparsity = 0.9
    dense = toy.conv(128, half=True).write()
    sparse = sparsify_tflite(dense)
    assert operators(sparse) == ["DENSIFY", "DEQUANTIZE", "CONV_2D"]
    assert [entry.dense.dtype for entry in unpacked(sparse).values()] == [np.float16]
    assert len(sparse) < 0.45 * len(dense)  # 10% of the values, and a byte of position with each
    assert close(outputs(sparse), outputs(dense))


@litert
def test_weights_after_the_tables_are_moved_into_them():
    toy = Toy((1, 4, 4, 64))
    toy.sparsity = 0.9
    inside = toy.conv(64).write()
    offset = -(-(len(inside) + 64) // 16) * 16
    largest = max(toy.model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    contents, largest.data = largest.data.tobytes(), None
    largest.offset, largest.size = offset, len(contents)
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(toy.model.Pack(builder), file_identifier=b"TFL3")
    outside = bytes(builder.Output()).ljust(offset, b"\0") + contents
    assert sparsify_tflite(outside) == sparsify_tflite(inside)
    with pytest.raises(RunError, match="damaged"):
        sparsify_tflite(outside[:-1])


@litert
def test_contents_shared_with_another_tensor_are_kept():
    toy = Toy((1, 4, 4, 64))
    toy.sparsity = 0.9
    toy.conv(64)
    shared = toy.graph.tensors[toy.graph.operators[0].inputs[1]].buffer
    toy.conv(64)
    second = toy.graph.tensors[toy.graph.operators[1].inputs[1]]
    second.buffer = shared
    other = toy.tensor(toy.shape())
    toy.graph.tensors[other].buffer, toy.graph.tensors[other].shape = shared, np.array([64, 64], np.int32)
    dense = toy.write()
    assert close(outputs(sparsify_tflite(dense)), outputs(dense))
    model, _ = model_of(sparsify_tflite(dense))
    assert len(model.buffers[model.subgraphs[0].tensors[other].buffer].data) == 4 * 64 * 64


@litert
def test_a_weight_of_two_layers_is_unpacked_once():
    toy = Toy((1, 4, 4, 64))
    toy.sparsity = 0.9
    toy.conv(64).conv(64)
    first, second = toy.graph.operators
    second.inputs[1] = first.inputs[1]
    dense = toy.write()
    sparse = sparsify_tflite(dense)
    assert operators(sparse) == ["DENSIFY", "CONV_2D", "CONV_2D"]
    assert close(outputs(sparse), outputs(dense))


@litert
def test_a_mean_over_a_transposed_tensor_becomes_a_mean_over_the_tensor():
    def ending(toy):
        toy.sparsity = 0.9
        return toy.conv(64)

    dense = ending(Toy((1, 4, 6, 64))).transpose((0, 3, 1, 2)).mean((2, 3)).write()
    sparse = sparsify_tflite(dense)
    assert operators(sparse) == ["DENSIFY", "CONV_2D", "MEAN"]
    assert close(outputs(sparse), outputs(dense))
    # a mean over the height only changes the order of the axes, so it must not be replaced
    dense = ending(Toy((1, 4, 6, 64))).transpose((0, 3, 1, 2)).mean((2,)).write()
    sparse = sparsify_tflite(dense)
    assert operators(sparse) == ["DENSIFY", "CONV_2D", "TRANSPOSE", "MEAN"]
    assert close(outputs(sparse), outputs(dense))


@litert
def test_only_weights_with_enough_zeros_are_stored_sparse():
    toy = Toy((1, 4, 4, 64))
    toy.sparsity = 0.6
    toy.conv(64)
    toy.sparsity = 0.8
    dense = toy.conv(64).write()
    assert [np.count_nonzero(e.dense) for e in unpacked(sparsify_tflite(dense, 0.7)).values()] == [round(0.2 * 64 * 64)]
    assert len(unpacked(sparsify_tflite(dense, 0.5))) == 2
    assert unpacked(sparsify_tflite(dense, 0.8)).keys() == unpacked(sparsify_tflite(dense, 0.7)).keys()


@litert
def test_what_cannot_be_stored_sparse_is_refused_with_the_reason():
    with pytest.raises(AmcError, match=r"no weight has 50% zeros .* \(most has 't\d+' with 20%\); prune with"):
        sparsify_tflite(mobile(0.2))
    with pytest.raises(AmcError, match="sparse already"):
        sparsify_tflite(sparsify_tflite(mobile(0.9)))
    with pytest.raises(AmcError, match="no float weights"):
        sparsify_tflite(Toy((1, 4, 4, 8)).pool().write())
    with pytest.raises(AmcError, match=r"min_sparsity is 1\.5"):
        sparsify_tflite(mobile(0.9), 1.5)


@litert
def test_a_network_with_wrong_results_in_xnnpack_is_refused():
    with pytest.raises(AmcError, match=r"may give wrong results on Arm.*MAX_POOL_2D"):
        sparsify_tflite(mobile(0.9, middle=lambda toy: toy.pool()))


@litert
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_raises_a_clear_error_or_none(data):
    whole = mobile(0.9)
    cut = data.draw(st.integers(0, len(whole)))
    damaged = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 4096) - 1))] = data.draw(st.integers(0, 255))
    message = "fine"
    try:
        assert sparsify_tflite(bytes(damaged))[4:8] == b"TFL3"
    except AmcError as error:
        message = str(error)
    assert message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("buffer", "shape", "words"),
    [
        (1, (2, 2), "list index out of range"),  # the file has one buffer
        (0, (3, 3), "cannot reshape array of size 4 into shape"),
        (None, (2, 2), "list indices must be integers"),
    ],
)
def test_a_damaged_constant_raises_a_clear_error(buffer, shape, words):
    types = SimpleNamespace(FLOAT32=0, FLOAT16=1, INT32=2, INT64=4)
    schema = SimpleNamespace(TensorType=types)
    model = SimpleNamespace(buffers=[SimpleNamespace(data=np.arange(4, dtype=np.float32).view(np.uint8))])
    whole = SimpleNamespace(buffer=0, shape=(2, 2), type=types.FLOAT32, sparsity=None, name=b"weight")
    assert constant(schema, model, whole).tolist() == [[0, 1], [2, 3]]
    damaged = SimpleNamespace(**{**vars(whole), "buffer": buffer, "shape": shape})
    with pytest.raises(RunError, match=f"^tensor 'weight' of this TFLite file is damaged \\({words}.*export it again$"):
        constant(schema, model, damaged)


@litert
def test_a_file_that_is_not_tflite_is_refused():
    for data in (b"", b"TFL3", b"PK\x03\x04" + bytes(100)):
        with pytest.raises(RunError, match="no TFLite file"):
            sparsify_tflite(data)


@pytest.mark.slow
@converter
@litert
@pytest.mark.parametrize("half", [False, True])
def test_a_converted_torch_network_keeps_its_outputs(tmp_path, half):
    import torch
    from torch import nn

    from amc.deploy.formats.litert import LiteRT
    from amc.deploy.formats.sparse_kernels import sparse_kernels

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.Conv2d(16, 96, 1), nn.ReLU6(), nn.Conv2d(96, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(96, 64),
    ).eval()  # fmt: skip
    for module in net:
        if getattr(module, "kernel_size", None) == (1, 1) or isinstance(module, nn.Linear):
            module.weight.data[torch.rand_like(module.weight) < 0.9] = 0
    LiteRT().write(net, (torch.zeros(1, 3, 16, 16),), [tmp_path / "net.tflite"], dynamic=False, half=half)
    dense = (tmp_path / "net.tflite").read_bytes()
    sparse = sparsify_tflite(dense)
    assert close(outputs(sparse), outputs(dense))
    verdict = sparse_kernels(sparse)
    zeros = [int((net[i].weight == 0).sum()) for i in (4, 6, 9)]
    assert verdict.used
    assert verdict.zeros == sum(zeros[: verdict.layers])
    assert len(sparse) < 0.65 * len(dense)
