"""The protocol between a host and a device server: its records, and strict parsing.

A request body is one frame: the four bytes `AMCD`, the length of a JSON header (4 bytes, little-endian), the header,
and the bytes of every file in the header's order with nothing between or after them. The header contains the runtime,
the settings of the measurement and, for every model, its name, its inputs and the sizes of its files. Replies are JSON
objects. Nothing else is sent: no code, no pickles, no paths.

Pure: converts bytes and dictionaries to records. Invalid input raises `RefusedError`, which has the HTTP status.
Unknown keys, repeated keys, NaN and numbers out of range are all refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from amc.deploy.device.strict import Fields, malformed, parse_object
from amc.deploy.measure import MeasureSettings
from amc.errors import AmcError

VERSION = 1
MAGIC = b"AMCD"
TOKEN_VARIABLE = "AMC_DEVICE_TOKEN"
HEADER_BYTES = 1 << 20  # largest header; ours are much smaller
REPLY_BYTES = 4 << 20
MAX_MODELS = 256
MAX_THREADS = 256
MAX_INPUTS = 32
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 28  # of one input
MAX_INPUT_BYTES = 1 << 30  # of all inputs of one model
MAX_FILE_BYTES = 1 << 40
MAX_RUN_SECONDS = 1_000_000

# Bytes per element of every input type that a runtime may take.
DTYPE_BYTES = {
    "float32": 4, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

_IDENTIFIER = re.compile(r"[0-9a-f]{32}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:=%+@,#()\[\]-]{0,99}\Z")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_LINE = re.compile(r"[^\x00-\x1f\x7f]{0,300}\Z")  # text that is safe to print on a terminal
_MOST_MS = 1e9


class DeviceError(AmcError):
    """A device cannot be reached, does not answer, or could not measure a model."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of a model; the device chooses its values."""

    shape: tuple[int, ...]  # each at least 1, the batch first
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes of the input in memory."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a request: its name in the result, its inputs, and the size of each file."""

    name: str
    inputs: tuple[TensorSpec, ...]
    file_bytes: tuple[int, ...]  # in the order of `amc.deploy.device.formats.FILES` for the runtime


@dataclass(frozen=True, slots=True)
class Request:
    """Models to be timed in alternation on one runtime."""

    runtime: str
    models: tuple[Model, ...]
    version: str | None = None  # version of the runtime that the device must have; None: any
    threads: int = 1
    half: bool = False  # the runtime may compute in 16 bits
    settings: MeasureSettings = field(default_factory=MeasureSettings)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for model in self.models for size in model.file_bytes)

    @property
    def body_bytes(self) -> int:
        """Bytes of the whole request."""
        return len(encode(self)) + self.payload_bytes


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device's description of itself."""

    amc_version: str
    machine: Mapping[str, Any]
    runtimes: Mapping[str, str]  # name to version
    body_bytes: int  # largest request that it accepts
    run_seconds: float  # longest measurement that it allows


class Device(Protocol):
    """A machine that times models: a server over HTTP, or a phone over adb."""

    def describe(self) -> DeviceInfo:
        """The device's description; `DeviceError` if it cannot be reached."""
        ...

    def measure(self, request: Request, files: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        """Time the models; `files` contains every model's files. Returns the record of `amc.deploy.timing`.

        `DeviceError` if the models cannot be timed.
        """
        ...


def is_identifier(text: str) -> bool:
    """Whether `text` can name a measurement: 32 lower-case hexadecimal digits."""
    return _IDENTIFIER.match(text) is not None


def check_threads(threads: int) -> None:
    """`DeviceError` for more threads than a device allows."""
    if threads > MAX_THREADS:
        raise DeviceError(f"a device runs models on at most {MAX_THREADS} threads, got {threads}; ask for fewer")


def encode(request: Request) -> bytes:
    """The frame of a request up to the first file; the files' bytes follow."""
    record = asdict(request)
    for model in record["models"]:
        model["files"] = model.pop("file_bytes")
    header = json.dumps({"protocol": VERSION} | record, allow_nan=False, separators=(",", ":")).encode()
    return MAGIC + len(header).to_bytes(4, "little") + header


def header_length(prefix: bytes) -> int:
    """Length of the JSON header, from the first eight bytes of a frame."""
    if len(prefix) != 8 or prefix[:4] != MAGIC:
        raise malformed("the body does not begin with AMCD; send a frame as docs/device.md describes")
    length = int.from_bytes(prefix[4:], "little")
    if not 2 <= length <= HEADER_BYTES:
        raise malformed(f"a header of {length} bytes; it may have 2 to {HEADER_BYTES}")
    return length


def decode(header: bytes) -> Request:
    """The request that a header describes; `RefusedError` if the header is invalid."""
    fields = Fields(parse_object(header), "header")
    protocol = fields.integer("protocol", 1, 1 << 16)
    if protocol != VERSION:
        raise malformed(f"protocol {protocol}; this server speaks {VERSION}: install the same amc on both sides")
    runtime = fields.text("runtime", _VERSION)
    version = fields.optional_text("version", _VERSION)
    threads, half = fields.integer("threads", 1, MAX_THREADS), fields.boolean("half")
    settings = _settings(fields.object("settings"))
    models = tuple(_model(item) for item in fields.objects("models", 1, MAX_MODELS))
    fields.done()
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise malformed("two models have the same name; give each its own")
    return Request(runtime, models, version, threads, half, settings)


def _settings(fields: Fields) -> MeasureSettings:
    read = {
        "rounds": fields.integer("rounds", 1, 10_000),
        "warmup": fields.integer("warmup", 0, 10_000),
        "round_seconds": fields.number("round_seconds", 0.0, 3600.0),
        "precision": fields.number("precision", 0.0, 1.0),
        "max_seconds": fields.number("max_seconds", 0.0, 86_400.0),
    }
    fields.done()
    try:
        return MeasureSettings(**read)  # type: ignore[arg-type]  # int and float values, each for its field
    except AmcError as error:
        raise malformed(f"header.settings: {error}") from None


def _model(fields: Fields) -> Model:
    name = fields.text("name", _NAME)
    inputs = tuple(_input(item) for item in fields.objects("inputs", 1, MAX_INPUTS))
    if sum(spec.nbytes for spec in inputs) > MAX_INPUT_BYTES:
        raise malformed(f"the inputs of model '{name}' take more than {MAX_INPUT_BYTES} bytes")
    sizes = fields.integers("files", 1, 8, least=1, most=MAX_FILE_BYTES)
    fields.done()
    return Model(name=name, inputs=inputs, file_bytes=sizes)


def _input(fields: Fields) -> TensorSpec:
    spec = TensorSpec(
        shape=fields.integers("shape", 0, MAX_DIMENSIONS, least=1, most=MAX_ELEMENTS),
        dtype=fields.choice("dtype", tuple(DTYPE_BYTES)),
    )
    fields.done()
    if math.prod(spec.shape) > MAX_ELEMENTS:
        raise malformed(f"an input of shape {list(spec.shape)} has more than {MAX_ELEMENTS} elements")
    return spec


def decode_info(record: dict[str, Any]) -> DeviceInfo:
    """Parse the reply to `GET /v1/device`; `RefusedError` if it is invalid."""
    fields = Fields(record, "device")
    protocol = fields.integer("protocol", 1, 1 << 16)
    if protocol != VERSION:
        raise malformed(f"it speaks protocol {protocol}, this host {VERSION}: install the same amc on both sides")
    runtimes = fields.mapping("runtimes")
    if not all(isinstance(value, str) for value in runtimes.values()):
        raise malformed("device: 'runtimes' must map names to versions")
    machine = fields.mapping("machine")
    _check_machine(Fields(machine, "device.machine"))
    info = DeviceInfo(
        amc_version=fields.text("amc_version", _VERSION),
        machine=machine,
        runtimes=runtimes,
        body_bytes=fields.integer("body_bytes", 1, MAX_FILE_BYTES),
        run_seconds=fields.number("run_seconds", 0.0, MAX_RUN_SECONDS),
    )
    fields.done()
    return info


def check_result(request: Request, result: Mapping[str, Any]) -> None:
    """`RefusedError` unless a result answers the request and has all fields that this host reads; it may have more.

    The models must be in the order of the request, because the first one is the reference of the others.
    """
    fields = Fields(dict(result), "result")
    fields.choice("runtime", (request.runtime,))
    fields.text("runtime_version", _VERSION)
    fields.integer("threads", request.threads, request.threads)
    fields.choice("precision", ("float16" if request.half else "float32",))
    _check_machine(fields.object("machine"))
    fields.object("settings").number("precision", 0.0, 1.0)
    fields.boolean("busy")
    fields.boolean("steady")
    fields.number("seconds", 0.0, MAX_RUN_SECONDS)
    networks = fields.mapping("networks")
    if list(networks) != [model.name for model in request.models]:
        raise malformed("the result is not one of these models")
    entries = Fields(networks, "result.networks")
    for index, model in enumerate(request.models):
        _check_network(entries.object(model.name), compared=index > 0)


def _check_network(fields: Fields, *, compared: bool) -> None:
    fields.integer("file_bytes", 0, 8 * MAX_FILE_BYTES)
    for key in ("latency_ms", "typical_ms"):
        fields.number(key, 1 / _MOST_MS, _MOST_MS)
    fields.number("spread", 0.0, _MOST_MS)
    if compared:
        fields.number("ratio", 0.0, _MOST_MS)
        fields.number("uncertainty", 0.0, _MOST_MS)
        fields.choice("verdict", ("faster", "slower", "undecided"))


def _check_machine(fields: Fields) -> None:
    for key in ("cpu", "architecture", "system"):
        fields.text(key, _LINE)
    fields.integer("cores", 0, 1 << 20)  # 0: unknown
    fields.number("load", 0.0, 1e6)


def encode_info(info: DeviceInfo) -> dict[str, Any]:
    """The reply to `GET /v1/device`."""
    return {"protocol": VERSION} | asdict(info)
