"""What a search prepares before its first episode, in its run until it has ended: resuming need not compute it again.

That is the certificate, the Gram matrices of the calibration, and the channels' rankings. Each comes with a key, a
digest of all that it was computed from; under another key it is computed again, as it is where the file is missing or
damaged. The rest is computed in every session: the structure, because only a new trace shows that the network's code is
still the same, and the scores of the dense network, because only they show that data, `evaluate` and machine are.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from amc.errors import RunError
from amc.pruning import Calibration
from amc.pruning.calibration import Gram
from amc.pruning.ranking import Order
from amc.run import records
from amc.run.lines import atomic_write_bytes
from amc.run.weights import digest
from amc.structure import Certificate
from amc.structure.channels import Lock

LARGEST = 512 << 20  # bytes of a calibration; a larger one is not kept

_KEY, _VERSION = "amc_prepared", 1
_GRAM, _ORDER = "gram:", "order:"


@dataclass(frozen=True)
class Prepared:
    """The content of the file, with the key of each part (`key_of`); empty keys fit nothing."""

    structure_key: str = ""
    certificate: Certificate | None = None
    calibration_key: str = ""
    calibration: Calibration = field(default_factory=lambda: Calibration({}))
    orders: Mapping[str, Order] = field(default_factory=dict)  # by group; empty for a method that masks

    @property
    def nbytes(self) -> int:
        """The size of the Gram matrices."""
        return sum(gram.matrix.nbytes for gram in self.calibration.grams.values())


def key_of(**parts: Any) -> str:
    """A digest of dataclasses, mappings, sequences, arrays and plain values: their types, names and contents."""
    sha256 = hashlib.sha256()
    for part in _encoded(parts):
        sha256.update(part)
    return sha256.hexdigest()


def write(path: Path, prepared: Prepared) -> None:
    """Write the file. If it is too large, or the disk fails, resuming computes everything again."""
    if prepared.nbytes > LARGEST:
        return
    calibration, certificate = prepared.calibration, prepared.certificate
    tensors = {_GRAM + name: gram.matrix for name, gram in calibration.grams.items()}
    tensors |= {_ORDER + name: torch.from_numpy(order) for name, order in prepared.orders.items()}
    header = {
        "version": _VERSION,
        "structure_key": prepared.structure_key,
        "calibration_key": prepared.calibration_key,
        "certificate": None if certificate is None else _written(certificate),
        "samples": {name: gram.samples for name, gram in calibration.grams.items()},
        "skipped": dict(calibration.skipped),
        "tensors": digest(tensors),
    }
    with suppress(RunError):
        text = records.json_bytes(header).decode()
        atomic_write_bytes(path, safetensors.torch.save(tensors, {_KEY: text}))


def read(path: Path) -> Prepared:
    """The content of the file; empty if there is none. Raises RunError, in one line, if it is damaged."""
    if not path.exists():
        return Prepared()
    records.check_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        header = records.parse_object(text.encode(errors="surrogatepass"))
        records.unsealed(header)
        _HEADER(header, "")
        if header["version"] != _VERSION:
            return Prepared()
        if header["tensors"] != digest(tensors):
            raise records.DamagedError("holds other matrices than those that were written")
        return _content(header, tensors)
    except records.DamagedError as error:
        raise RunError(f"'{path}' {error}") from None
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise RunError(f"'{path}' cannot be read ({str(error).splitlines()[0]})") from None


def _content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prepared:
    """Raises DamagedError if the tensors do not fit the header."""
    grams = {name.removeprefix(_GRAM): tensor for name, tensor in tensors.items() if name.startswith(_GRAM)}
    orders = {name.removeprefix(_ORDER): tensor for name, tensor in tensors.items() if name.startswith(_ORDER)}
    if grams.keys() != header["samples"].keys():
        raise records.DamagedError("holds other matrices than its header says")
    samples, certificate = header["samples"], header["certificate"]
    return Prepared(
        header["structure_key"],
        None if certificate is None else _certificate(certificate),
        header["calibration_key"],
        Calibration({name: Gram(grams[name], samples[name]) for name in samples}, header["skipped"]),
        {name: order.numpy() for name, order in orders.items()},
    )


def _written(certificate: Certificate) -> dict[str, Any]:
    return dataclasses.asdict(certificate) | {"approximate": dict(certificate.approximate)}


def _certificate(fields: Mapping[str, Any]) -> Certificate:
    failed = tuple((name, Lock(**lock)) for name, lock in fields["failed"])
    approximate = tuple(fields.get("approximate", {}).items())
    return Certificate(fields["keep_sets"], fields["worst_error"], failed, approximate)


@records.Check
def _failure(value: Any, place: str) -> None:
    """A group that failed the certificate, and its lock: [name, {reason, module, source}]."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        raise records.DamagedError(f"has {records.shown(value)} as {place}, which must be a name and a lock")
    names = ("reason", "module", "source")
    records.fields(dict.fromkeys(names, records.text), needed=names)(value[1], place)


_CERTIFICATE = {"keep_sets": records.count, "worst_error": records.number, "failed": records.many(_failure)}
_MORE = {"approximate": records.table(records.number)}  # earlier versions have none
_FIELDS = {
    "version": records.positive,
    "structure_key": records.text,
    "calibration_key": records.text,
    "certificate": records.optional(records.fields(_CERTIFICATE | _MORE, needed=_CERTIFICATE)),
    "samples": records.table(records.count),
    "skipped": records.table(records.text),
    "tensors": records.text,
    records.SEAL: records.text,
}
_HEADER = records.fields(_FIELDS, needed=_FIELDS)


def _encoded(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value):
        yield f"{type(value).__name__}(".encode()
        for item in dataclasses.fields(value):
            yield f"{item.name}=".encode()
            yield from _encoded(getattr(value, item.name))
        yield b")"
    elif isinstance(value, Mapping | list | tuple):
        yield f"{len(value)}[".encode()
        for part in value.items() if isinstance(value, Mapping) else value:
            yield from _encoded(part)
        yield b"]"
    elif value is None or isinstance(value, bool | int | float | str | enum.Enum):
        yield f"{value!r},".encode()
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
