"""Requests survive encoding and decoding; anything else is refused, without misreading and without a crash."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.deploy.device.protocol import (
    DTYPE_BYTES,
    MAGIC,
    DeviceInfo,
    Model,
    Request,
    TensorSpec,
    check_result,
    decode,
    decode_info,
    encode,
    encode_info,
    header_length,
    is_identifier,
)
from amc.deploy.device.strict import RefusedError, parse_object
from amc.deploy.measure import MeasureSettings
from tests.deploy.device.stubs import MACHINE

SPECS = st.builds(
    TensorSpec,
    shape=st.lists(st.integers(1, 12), max_size=8).map(tuple).filter(lambda shape: len(shape) < 6 or max(shape) < 6),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
)
MODELS = st.builds(
    lambda specs, sizes: Model("x", tuple(specs), tuple(sizes)),
    st.lists(SPECS, min_size=1, max_size=4),
    st.lists(st.integers(1, 1 << 40), min_size=1, max_size=2),
)
REQUESTS = st.builds(
    lambda models, **fields: Request(
        models=tuple(Model(f"m{index}", model.inputs, model.file_bytes) for index, model in enumerate(models)), **fields
    ),
    models=st.lists(MODELS, min_size=1, max_size=4),
    runtime=st.sampled_from(["onnxruntime", "litert", "ncnn"]),
    version=st.none() | st.just("1.31.1"),
    threads=st.integers(1, 256),
    half=st.booleans(),
    settings=st.builds(
        MeasureSettings,
        rounds=st.integers(3, 1000),
        warmup=st.integers(0, 100),
        precision=st.floats(0.001, 0.999),
        max_seconds=st.floats(0, 3600),
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GOOD = Request("litert", (Model("dense", (TensorSpec((1, 3, 32, 32)),), (100,)),))


def header_of(request: Request) -> bytes:
    data = encode(request)
    assert data[:4] == MAGIC
    assert header_length(data[:8]) == len(data) - 8
    return data[8:]


def record_of(request: Request) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(header_of(request))
    return record


@given(REQUESTS)
def test_request_survives_encoding_and_decoding(request: Request) -> None:
    assert decode(header_of(request)) == request


@given(st.data())
def test_header_with_one_thing_changed_is_refused_or_another_valid_request(data: st.DataObject) -> None:
    """It raises no other exception, and a different header never gives the same request."""
    record = record_of(GOOD)
    places: list[tuple[Any, Any]] = [(record, key) for key in record]
    places += [(record["settings"], key) for key in record["settings"]]
    places += [(record["models"][0], key) for key in record["models"][0]]
    places += [(record["models"][0]["inputs"][0], key) for key in ("shape", "dtype")]
    place, key = data.draw(st.sampled_from(places))
    before, place[key] = place[key], data.draw(JSON)
    same = json.dumps(place[key]) == json.dumps(before)
    try:
        read = decode(json.dumps(record).encode())
    except RefusedError:
        assert not same
    else:
        assert (asdict(read) == asdict(GOOD)) == (place[key] == before)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_as_a_header(data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        decode(data)
    assert caught.value.status == 400


@given(st.binary(max_size=12))
def test_only_a_frame_of_ours_has_a_header_length(prefix: bytes) -> None:
    with pytest.raises(RefusedError):
        header_length(prefix)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 2}', "gives a key twice"),
        (b'{"a": {"b": 1, "b": 1}}', "gives a key twice"),
        (b'{"a": NaN}', "holds NaN, which is not a JSON number"),
        (b'{"a": -Infinity}', "holds -Infinity, which is not a JSON number"),
        (b'{"a": [1e999]}', "holds the number '1e999', which is not finite"),
        (b'{"a": ["\\ud800"]}', "holds text that is not Unicode"),
        (b'{"\\udfff": 1}', "holds text that is not Unicode"),
        (b"[1]", "holds a list where an object is expected"),
        (b"{} {}", "is not valid JSON in line 1"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested deeper than 32 levels"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "holds a whole number of 10000 digits"),
        (b'{"a": 9223372036854775808}', "holds a whole number of 19 digits"),
    ],
)
def test_json_that_can_be_read_two_ways_or_not_at_all_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=f"^the record {words}") as caught:
        parse_object(text)
    assert (caught.value.status, caught.value.kind) == (400, "malformed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.pop("runtime"), "'runtime' is missing"),
        (lambda record: record.update(extra=1), "unknown key 'extra'"),
        (lambda record: record.update(protocol=2), "protocol 2; this server speaks 1"),
        (lambda record: record.update(threads=True), "'threads' must be a whole number from 1 to 256"),
        (lambda record: record.update(threads=0), "'threads' must be a whole number"),
        (lambda record: record.update(half=1), "'half' must be true or false"),
        (lambda record: record.update(runtime="../lite"), "'runtime' must be a text"),
        (lambda record: record["settings"].update(precision=0), r"precision must be in \(0, 1\)"),
        (lambda record: record["settings"].update(rounds=2), "rounds must be at least 3"),
        (lambda record: record["models"].append(record["models"][0]), "two models have the same name"),
        (lambda record: record["models"][0].update(name="a/b"), "'name' must be a text"),
        (lambda record: record["models"][0].update(files=[0]), "'files' must be a list of whole numbers from 1"),
        (lambda record: record["models"][0]["inputs"][0].update(dtype="object"), "'dtype' must be one of float32"),
        (lambda record: record["models"][0]["inputs"][0].update(shape=[1 << 20, 1 << 20]), "more than 268435456 elem"),
        (
            lambda record: record["models"][0]["inputs"][0].update(shape=[1 << 28], dtype="int64"),
            "more than 10737",
        ),
    ],
)
def test_refusal_names_the_key_and_the_rule(change: Any, words: str) -> None:
    record = record_of(GOOD)
    change(record)
    with pytest.raises(RefusedError, match=words):
        decode(json.dumps(record).encode())


def test_device_info_survives_encoding_and_decoding() -> None:
    info = DeviceInfo("0.1.0", MACHINE | {"python": "3.11.2"}, {"litert": "2.3.0"}, 1 << 29, 300.0)
    assert decode_info(json.loads(json.dumps(encode_info(info)))) == info
    with pytest.raises(RefusedError, match="speaks protocol 2"):
        decode_info(encode_info(info) | {"protocol": 2})
    with pytest.raises(RefusedError, match="map names to versions"):
        decode_info(encode_info(info) | {"runtimes": {"litert": 2}})


@pytest.mark.parametrize("key", list(MACHINE))
def test_machine_without_a_field_that_this_host_reads_is_refused(key: str) -> None:
    info = DeviceInfo("0.1.0", {name: value for name, value in MACHINE.items() if name != key}, {}, 1 << 29, 300.0)
    with pytest.raises(RefusedError, match=f"device.machine: '{key}' is missing"):
        decode_info(encode_info(info))


def result_of(request: Request) -> dict[str, Any]:
    """A device's result with only the required keys."""
    timing = {"file_bytes": 100, "latency_ms": 1.5, "typical_ms": 1.6, "spread": 0.01}
    compared = {"ratio": 1.0, "uncertainty": 0.02, "verdict": "undecided"}
    networks = {model.name: timing | (compared if index else {}) for index, model in enumerate(request.models)}
    return {
        "runtime": "litert", "runtime_version": "2.3.0", "threads": 1, "precision": "float32", "machine": MACHINE,
        "settings": {"precision": 0.03}, "busy": False, "steady": True, "seconds": 0.5, "networks": networks,
    }  # fmt: skip


TWO = replace(GOOD, models=(*GOOD.models, replace(GOOD.models[0], name="slim")))
PLACES = [(), ("machine",), ("settings",), ("networks", "dense"), ("networks", "slim")]


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (place, key)
        for place in PLACES
        for key in functools.reduce(lambda inner, part: inner[part], place, result_of(TWO))
    ],
)
def test_result_without_a_field_that_this_host_reads_is_refused(place: tuple[str, ...], key: str) -> None:
    result = copy.deepcopy(result_of(TWO))
    check_result(TWO, result)
    record = functools.reduce(lambda inner, part: inner[part], place, result)
    del record[key]
    with pytest.raises(RefusedError, match=r"is missing|not one of these models"):
        check_result(TWO, result)
    record[key] = [None]
    with pytest.raises(RefusedError, match=r"must be|not one of these models"):
        check_result(TWO, result)


@pytest.mark.parametrize(
    "change",
    [{"networks": {}}, {"networks": {"other": {}}}, {"networks": {"dense": {"latency_ms": 0}}}, {"threads": 2},
     {"precision": "float16"}, {"runtime": "ncnn"}],
)  # fmt: skip
def test_result_of_another_request_is_refused(change: dict[str, Any]) -> None:
    check_result(GOOD, result_of(GOOD))
    with pytest.raises(RefusedError):
        check_result(GOOD, result_of(GOOD) | change)
    backwards = dict(reversed(result_of(TWO)["networks"].items()))
    with pytest.raises(RefusedError, match="not one of these models"):
        check_result(TWO, result_of(TWO) | {"networks": backwards})


def test_identifier_is_32_hexadecimal_digits() -> None:
    assert is_identifier("0123456789abcdef" * 2)
    for text in ("", "0" * 31, "0" * 33, "0" * 31 + "\n", "0" * 32 + "\n", "A" * 32, "g" * 32, "٠" * 32):
        assert not is_identifier(text)
