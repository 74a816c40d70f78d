"""The training state on disk. Training that resumes from it continues exactly.

The state is one safetensors file, which each save replaces. The tensors are the network, the optimiser, the moving
average and the random generators. The metadata holds settings, records and the position as JSON. Nothing is pickled. A
digest of the header and the tensors detects a damaged file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from amc.errors import RunError
from amc.recovery.records import EpochRecord
from amc.run import records
from amc.run.lines import atomic_write_bytes
from amc.run.weights import digest

_KEY = "amc_finetune"
_BEGIN_ANEW = "give what it was made with, or remove it to begin anew (`amc finetune RUN --restart`)"

Identity = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Position:
    """The progress of the training."""

    records: tuple[EpochRecord, ...] = ()  # of whole epochs
    step: int = 0  # batches done of the current epoch
    loss: float = 0.0  # sum over those batches
    seconds: float = 0.0  # time of those batches


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that the rest of the training depends on."""

    position: Position
    tensors: Mapping[str, Tensor]
    scaler: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The position and settings at which a checkpoint resumes."""

    step: int  # steps done
    total_steps: int
    epoch: int  # whole epochs done
    config: Mapping[str, Any]  # the fields of FineTuneConfig


def resume_point(path: str | Path) -> ResumePoint | None:
    """The position in the checkpoint at `path`; None if no file exists. Raises RunError if it is damaged."""
    path = Path(path)
    if not path.exists():
        return None
    header, _ = _read(path, with_tensors=False)
    steps, epochs = header["identity"]["steps"], len(header["records"])
    config = header["identity"]["config"]
    return ResumePoint(epochs * steps + header["step"], steps * config["epochs"], epochs, config)


def save(path: Path, state: TrainingState, identity: Identity) -> None:
    """Replace the checkpoint. Raises RunError if writing fails; the old checkpoint then remains."""
    stored, orders = {}, {}
    for name, tensor in state.tensors.items():
        stored[name], order = _flattened(tensor)
        if order != sorted(order):
            orders[name] = order
    position = state.position
    header = {
        "identity": dict(identity),
        "records": [asdict(record) for record in position.records],
        "step": position.step,
        "loss": position.loss,
        "seconds": position.seconds,
        "scaler": dict(state.scaler),
        "orders": orders,
    }
    text = json.dumps(header | {"digest": _seal(header, stored)})
    atomic_write_bytes(path, safetensors.torch.save(stored, {_KEY: text}))


def load(path: Path, identity: Identity) -> TrainingState | None:
    """The state at `path`; None if no file exists.

    Raises RunError if the file is damaged, or was made for another network, setting or data set than `identity`.
    """
    if not path.exists():
        return None
    header, tensors = _read(path, with_tensors=True)
    if header.pop("digest") != _seal(header, tensors):
        raise RunError(_damaged(path, "its content does not match its digest"))
    _check_identity(path, header["identity"], json.loads(json.dumps(dict(identity))))
    position = Position(
        tuple(EpochRecord(**record) for record in header["records"]),
        header["step"],
        header["loss"],
        header["seconds"],
    )
    orders = header["orders"]
    restored = {name: _unflattened(tensor, orders.get(name)) for name, tensor in tensors.items()}
    return TrainingState(position, restored, header["scaler"])


def _seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{json.dumps(header, sort_keys=True)} {digest(tensors)}".encode()).hexdigest()


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    records.check_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            names: Iterable[str] = file.keys() if with_tensors else ()
            # A copy: training replaces the file that the tensors are mapped from.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise RunError(_damaged(path, str(error).splitlines()[0])) from None
    if text is None:
        raise RunError(_damaged(path, "it is no checkpoint of a fine-tuning"))
    try:
        header = records.parse_object(text.encode(errors="surrogatepass"))
        _HEADER(header, "")
    except records.DamagedError as error:
        raise RunError(_damaged(path, f"its header {error}")) from None
    return header, tensors


_EPOCH = {**dict.fromkeys(("loss", "lr", "seconds"), records.number), "epoch": records.positive}
_HEADER = records.fields(
    {
        "records": records.many(records.fields({**_EPOCH, "score": records.optional(records.number)}, needed=_EPOCH)),
        "identity": records.fields(
            {
                "steps": records.positive,
                "config": records.fields({"epochs": records.positive}, needed=("epochs",)),
                "images": records.scalar,
                "device": records.scalar,
                "processes": records.scalar,
            },
            needed=("steps", "config"),
        ),
        "step": records.count,
        "loss": records.number,
        "seconds": records.number,
        "scaler": records.table(records.number),
        "orders": records.table(records.many(records.count)),
        "digest": records.text,
    },
    needed=("records", "identity", "step", "loss", "seconds", "scaler", "orders", "digest"),
)


def _check_identity(path: Path, stored: Identity, now: Identity) -> None:
    for name in sorted({*stored["config"], *now["config"]}):
        first, second = stored["config"].get(name), now["config"].get(name)
        if first != second:
            raise RunError(f"'{path}' was made with {name} {first!r}, not {second!r}; {_BEGIN_ANEW}")
    what = {
        "network": "another network, or other weights to start from",
        "masks": "other masks",
        "teacher": "another teacher",
        "images": f"{stored.get('images')} training images or batches, not {now.get('images')}",
        "steps": f"{stored.get('steps')} steps an epoch, not {now.get('steps')}",
        "device": f"the device {stored.get('device')!r}, not {now.get('device')!r}",
        "processes": f"{stored.get('processes')} processes, not {now.get('processes')}",
        "version": "another version of amc",
    }
    for name, text in what.items():
        if stored.get(name) != now.get(name):
            raise RunError(f"'{path}' was made with {text}; {_BEGIN_ANEW}")


def _damaged(path: Path, reason: str) -> str:
    return f"checkpoint '{path}' is damaged ({reason}); remove it to begin anew (`amc finetune RUN --restart`)"


def _flattened(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """The tensor with its dimensions permuted to memory order, and the permutation.

    Arithmetic may round differently in another memory order, so the order is part of the state.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    return tensor.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format), order


def _unflattened(tensor: Tensor, order: list[int] | None) -> Tensor:
    if order is None:
        return tensor
    inverse = torch.argsort(torch.tensor(order)).tolist()
    return tensor.permute(inverse)
