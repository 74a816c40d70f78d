"""A device takes files of the named runtime only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from amc.deploy.device.formats import FILES, check_model, check_model_files, check_runtime
from amc.deploy.device.strict import RefusedError
from amc.deploy.formats import FORMATS, get_format
from amc.deploy.runtimes import RUNTIMES, get_runtime

XML = b'<?xml version="1.0"?>\n<net name="main" version="11"><layers/></net>'
PARAM = b"7767517\n2 2\nInput in0 0 1 in0\nReLU r 1 1 in0 out0\n"
PTE = (48).to_bytes(4, "little") + b"ET12" + bytes(64)
TFLITE = (28).to_bytes(4, "little") + b"TFL3" + bytes(64)


def onnx_model(weight: TensorProto | None = None, *, nested: bool = False) -> onnx.ModelProto:
    """y = x + w; with `nested`, both branches of an If hold the weight."""
    tensor = weight or numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    if nested:
        branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["z"])], "b", [], [y], [tensor])
        condition = numpy_helper.from_array(np.array(True), "c")
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", [x], [y], [condition])
    else:
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def external(place: str = "/etc/passwd") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    return tensor


def test_files_are_those_of_the_export() -> None:
    """Every runtime whose files contain no code, with the suffixes that its format writes."""
    safe = [get_runtime(name) for name in RUNTIMES if not get_runtime(name).trusted_only]
    assert {engine.name: get_format(engine.format).suffixes for engine in safe} == FILES
    assert len(FORMATS) == len(FILES) + 1


@pytest.mark.parametrize(
    ("runtime", "files"),
    [
        ("onnxruntime", [onnx_model().SerializeToString()]),
        ("onnxruntime", [onnx_model(nested=True).SerializeToString()]),
        ("openvino", [XML, b"\0" * 8]),
        ("openvino", [b"\xef\xbb\xbf" + XML, b"\0"]),
        ("executorch", [PTE]),
        ("litert", [TFLITE]),
        ("ncnn", [PARAM, b"\0" * 8]),
    ],
)
def test_models_of_the_runtime_pass(runtime: str, files: list[bytes], tmp_path: Path) -> None:
    check_model(runtime, files)
    paths = [tmp_path / str(index) for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    check_model_files(runtime, paths)


@pytest.mark.parametrize("runtime", list(FILES))
@given(data=st.binary(min_size=1, max_size=300))
def test_random_bytes_are_no_model(runtime: str, data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        check_model(runtime, [data] * len(FILES[runtime]))
    assert caught.value.status == 422


CODE = [b"\x80\x04\x95pickle.", b"PK\x03\x04model.pt", b"#!/bin/sh\n", b"\x7fELF", b"import os"]


@pytest.mark.parametrize("runtime", list(FILES))
@pytest.mark.parametrize("data", CODE)
def test_code_is_no_model(runtime: str, data: bytes) -> None:
    with pytest.raises(RefusedError, match="not a model for"):
        check_model(runtime, [data + bytes(100)] * len(FILES[runtime]))


@pytest.mark.parametrize("runtime", ["eager", "torch", "", "../onnxruntime"])
def test_other_runtimes_are_refused(runtime: str) -> None:
    with pytest.raises(RefusedError, match="cannot be measured on a device"):
        check_runtime(runtime, [1])


def test_wrong_number_of_files_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"has 2 file\(s\) \(\.xml, \.bin\)"):
        check_runtime("openvino", [1])


@pytest.mark.parametrize("nested", [False, True])
def test_onnx_that_reads_other_files_of_the_device_is_refused(nested: bool) -> None:
    with pytest.raises(RefusedError, match="is stored in another file"):
        check_model("onnxruntime", [onnx_model(external(), nested=nested).SerializeToString()])


def test_onnx_constants_and_functions_are_searched_too() -> None:
    model = onnx_model()
    constant = helper.make_node("Constant", [], ["c"], value=external())
    model.functions.append(helper.make_function("own", "F", [], ["c"], [constant], []))
    with pytest.raises(RefusedError, match="is stored in another file"):
        check_model("onnxruntime", [model.SerializeToString()])


@given(st.data())
def test_damaged_onnx_is_refused_or_holds_no_outside_tensor(data: st.DataObject) -> None:
    """A file cut or changed anywhere raises no other exception; an accepted file must not refer to other files."""
    good = bytearray(onnx_model(external(), nested=True).SerializeToString())
    if data.draw(st.booleans()):
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_model("onnxruntime", [bytes(good)])
    except RefusedError:
        return
    assert not names_files(bytes(good))


def names_files(data: bytes) -> bool:
    """The same check with onnx's own parser."""
    try:
        graph = onnx.load_from_string(data).graph
    except DecodeError:
        return False
    inner = [attribute.g for node in graph.node for attribute in node.attribute]
    tensors = [tensor for part in (graph, *inner) for tensor in part.initializer]
    return any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors)


def test_endless_onnx_is_cut_short() -> None:
    with pytest.raises(RefusedError, match="more than 1000000 fields"):
        check_model("onnxruntime", [b"\x08\x01" * 1_000_001])


def test_xml_with_entities_is_refused() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa">]><net></net>'
    for text in (bomb, XML.replace(b"<layers/>", b'<!ENTITY a "b">'), b"<html></html>", b"<network/>"):
        with pytest.raises(RefusedError):
            check_model("openvino", [text, b"\0"])
