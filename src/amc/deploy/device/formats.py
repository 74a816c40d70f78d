"""Checks a model's bytes before a device passes them to a runtime.

A device accepts only model files of the named runtime: no code, no pickles. For ONNX the check walks through the
protobuf's outer fields, and refuses a model that refers to other files on the device. For OpenVINO it refuses XML with
entities. For `.tflite`, `.pte` and `.param` it reads only the beginning. The runtime's own loader, in a process of its
own, makes the final decision. Pure; errors are `RefusedError` (422).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from amc.deploy.device.strict import RefusedError

# Suffixes of a model's files, in the order of transmission.
FILES: dict[str, tuple[str, ...]] = {
    "onnxruntime": (".onnx",),
    "openvino": (".xml", ".bin"),
    "executorch": (".pte",),
    "litert": (".tflite",),
    "ncnn": (".param", ".bin"),
}
_NO_FILE_FORMAT = {"eager": "its models are Python code, which a device never takes"}


def file_paths(runtime: str, index: int, folder: Path) -> list[Path]:
    """Paths of the files of model number `index` on a device; a client cannot choose them."""
    return [folder / f"model{index}{suffix}" for suffix in FILES[runtime]]


def check_runtime(runtime: str, file_counts: Sequence[int]) -> None:
    """`RefusedError` unless devices support this runtime, and its models have `file_counts` files each."""
    if runtime not in FILES:
        reason = _NO_FILE_FORMAT.get(runtime, f"runtimes with a file format: {', '.join(FILES)}")
        raise RefusedError(422, "runtime", f"runtime '{runtime}' cannot be measured on a device: {reason}")
    wanted = FILES[runtime]
    for given in file_counts:
        if given != len(wanted):
            raise RefusedError(422, "format", f"a model for {runtime} has {len(wanted)} file(s) ({', '.join(wanted)})")


def check_model(runtime: str, files: Sequence[bytes | memoryview]) -> None:
    """`RefusedError` unless the files look like one model of the runtime."""
    check_runtime(runtime, [len(files)])
    reason = _CHECKS[runtime](files)
    if reason is not None:
        raise RefusedError(422, "format", f"not a model for {runtime}: {reason}")


def check_model_files(runtime: str, paths: Sequence[Path]) -> None:
    """`check_model` for files on disk, which are memory-mapped."""
    with ExitStack() as stack:
        views: list[bytes | memoryview] = []
        for path in paths:
            file = stack.enter_context(path.open("rb"))
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            views.append(stack.enter_context(memoryview(mapped)))
        check_model(runtime, views)


def _flatbuffer(files: Sequence[bytes | memoryview], identifier: bytes, digits: int, name: str) -> str | None:
    """A flatbuffer carries its file identifier in bytes 4 to 8, after the offset of the root table."""
    head = bytes(files[0][:8])
    mark, version = head[4 : 8 - digits], head[8 - digits : 8]
    if len(head) < 8 or mark != identifier or not version.isdigit():
        return f"bytes 4 to 8 are not the identifier of {name}"
    if int.from_bytes(head[:4], "little") >= len(files[0]):
        return "the file is shorter than its first bytes say"
    return None


def _executorch(files: Sequence[bytes | memoryview]) -> str | None:
    return _flatbuffer(files, b"ET", 2, "an ExecuTorch program")


def _litert(files: Sequence[bytes | memoryview]) -> str | None:
    return _flatbuffer(files, b"TFL", 1, "a TFLite model")


_XML_BYTES = 64 << 20


def _openvino(files: Sequence[bytes | memoryview]) -> str | None:
    if len(files[0]) > _XML_BYTES:
        return f"the first file has more than {_XML_BYTES} bytes, which no network's XML has"
    text = bytes(files[0])
    if re.match(rb"\s*(<\?xml [^<>]*\?>)?\s*<net[ >]", text.removeprefix(b"\xef\xbb\xbf")) is None:
        return "the first file is not an OpenVINO network in XML"
    if b"<!" in text.replace(b"<!--", b""):
        return "the XML declares a document type or entities"
    return None


_NCNN_MAGIC = 7767517  # first line of a text .param file


def _ncnn(files: Sequence[bytes | memoryview]) -> str | None:
    lines = bytes(files[0][:200]).split(b"\n")
    if lines[0].strip() != str(_NCNN_MAGIC).encode():
        return f"the first line of the .param file is not {_NCNN_MAGIC}"
    counts = lines[1].split() if len(lines) > 1 else []
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        return "the second line of the .param file does not give the numbers of layers and blobs"
    return None


# ONNX messages: field number -> message in that field (onnx.proto3). Other fields are skipped.
_ONNX: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_ONNX_DEPTH = 64
_ONNX_FIELDS = 1_000_000  # real models have some thousands; limits the duration of a check
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor


class _DamagedError(ValueError):
    pass


def _onnx(files: Sequence[bytes | memoryview]) -> str | None:
    data = memoryview(files[0])
    try:
        fields = {number for number, _, _ in _fields(data, count(1))}
        if not {1, 7} <= fields <= {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}:
            return "its fields are not those of an ONNX model"
        if _names_files(data, "model", 0, count(1)):
            return "a tensor is stored in another file; save the model with its weights inside"
    except _DamagedError as error:
        return f"damaged protobuf: {error}"
    return None


def _names_files(data: memoryview, kind: str, depth: int, walked: Iterator[int]) -> bool:
    """Whether any tensor inside this message reads its values from a file."""
    if depth > _ONNX_DEPTH:
        raise _DamagedError("nested too deeply")
    inside = _ONNX[kind]
    for number, value, content in _fields(data, walked):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        if number in inside:
            if content is None:
                raise _DamagedError(f"field {number} of a {kind} is a number")
            if _names_files(content, inside[number], depth + 1, walked):
                return True
    return False


def _fields(data: memoryview, walked: Iterator[int]) -> Iterator[tuple[int, int, memoryview | None]]:
    """Every field of a protobuf message, as (number, value, content); `walked` counts the fields."""
    position = 0
    while position < len(data):
        if next(walked) > _ONNX_FIELDS:
            raise _DamagedError(f"more than {_ONNX_FIELDS} fields")
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        value, content = 0, None
        if wire == 0:
            value, position = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            content = data[position : position + length]
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise _DamagedError(f"wire type {wire}")
        if number == 0 or position > len(data):
            raise _DamagedError("a field reaches beyond the end" if number else "field 0")
        yield number, value, content


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _DamagedError("it ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamagedError("a number of more than 64 bits")


_CHECKS: dict[str, Callable[[Sequence[bytes | memoryview]], str | None]] = {
    "onnxruntime": _onnx,
    "openvino": _openvino,
    "executorch": _executorch,
    "litert": _litert,
    "ncnn": _ncnn,
}
