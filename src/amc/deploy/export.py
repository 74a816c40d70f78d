"""Exports a network to a file that a runtime loads; the file is checked before it replaces an earlier one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.deploy.failures import ConversionError
from amc.deploy.files import replacing, target_files
from amc.deploy.formats import Format, format_of, get_format
from amc.deploy.formats.onnx import write_exported
from amc.deploy.parity import TOLERANCE, TOLERANCE_HALF, Cases, ParityError, check
from amc.deploy.runtimes import get_runtime
from amc.deploy.runtimes.base import RuntimeFailure
from amc.deploy.tensors import Tensors, cloned, inputs_of, random_like, taking_tensors, with_batch
from amc.errors import AmcError, brief
from amc.structure.copying import copy_model, undisturbed
from amc.structure.modes import evaluating

_CHECKED_BATCHES = (1, 3)  # batch sizes on which a file with a dynamic batch is checked
_REAL_EXAMPLES = 8  # largest number of real examples on which a file is checked


@dataclass(frozen=True, slots=True)
class Export:
    """The result of an export: its files, and how they were checked.

    >>> written = amc.export(net, x, "net.onnx")
    >>> list(written.files), written.errors["random"] < written.tolerance
    (['net.onnx'], True)
    """

    format: str
    path: str
    files: dict[str, int]  # name -> bytes
    bytes: int  # of all files
    half: bool  # weights in 16 bits
    dynamic_batch: bool
    max_batch: int | None  # largest dynamic batch; None: any
    input_shapes: tuple[tuple[int, ...], ...]  # one for each input; the batch first
    checked_with: str  # runtime and version
    errors: dict[str, float]  # random | real | batch (dynamic batch sizes) -> largest difference over largest output
    tolerance: float
    seconds: float

    def __repr__(self) -> str:
        error = max(self.errors.values(), default=0.0)
        name = Path(self.path).name
        return brief(f"Export({self.format}, {name}: {self.bytes:,} bytes, error {error:.0e} on {self.checked_with})")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def export(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    format: str | None = None,
    half: bool = False,
    dynamic: bool | None = None,
    sparse: bool = False,
    real: Any = None,
) -> Export:
    """Write `model` to `path`, and check the file on random inputs and, if given, on `real` inputs.

    example_input: as the network takes it. Tensors given by name become inputs of the file, in their order and, for
        ONNX, with their names; a bool, a number, text or None becomes part of the file.
    path: a file; for a format with several files (openvino, ncnn), a directory that will hold model.*.
    format: a name of `amc.deploy.formats.FORMATS`; None: that of the file's suffix.
    half: store weights in 16 bits. sparse: do not store zeros (litert only).
    dynamic: accept batches of any size; None: only if the format supports this at no cost and the network allows it.
    An earlier export is replaced only after the new one has passed the check. `model` is not changed.
    Raises AmcError for an unknown format, a missing package, an operator that the format does not have, or a file whose
    outputs differ from the network's.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> amc.export(net, torch.zeros(1, 1, 6, 6), "slim.onnx")
    Export(onnx, slim.onnx: ... bytes, error ... on onnxruntime ...)
    """
    begin = time.perf_counter()
    target, inputs = Path(path), inputs_of(example_input)
    format = format_of(target) if format is None else format
    chosen, module = get_format(format, sparse=sparse), taking_tensors(model, example_input)
    version = get_runtime(chosen.runtime).version()  # reports a missing package before any file is written
    _refuse_impossible(chosen, half=half, dynamic=dynamic)
    inputs = with_batch(inputs, 1) if chosen.batch_one else inputs
    cases = _cases(inputs, inputs_of(real) if real is not None else None)
    requested = dynamic if dynamic is not None else chosen.max_batch is None
    with undisturbed(model), evaluating(module), replacing(target, chosen.suffixes) as paths:
        errors = None
        if requested:
            errors = _written(chosen, module, inputs, paths, cases, half=half, dynamic=True, needed=bool(dynamic))
        is_dynamic = errors is not None
        if errors is None:
            errors = _written(chosen, module, inputs, paths, cases, half=half, dynamic=False, needed=True)
        assert errors is not None
    files = {file.name: file.stat().st_size for file in target_files(target, chosen.suffixes)}
    return Export(
        format=format, path=str(target), files=files, bytes=sum(files.values()), half=half, dynamic_batch=is_dynamic,
        max_batch=chosen.max_batch if is_dynamic else None,
        input_shapes=tuple(tuple(value.shape) for value in inputs), checked_with=f"{chosen.runtime} {version}",
        errors=_by_kind(errors), tolerance=tolerance_of(half), seconds=time.perf_counter() - begin,
    )  # fmt: skip


def write_checked(
    chosen: Format, module: nn.Module, inputs: Tensors, paths: Sequence[Path], cases: Cases, *,
    half: bool, dynamic: bool, threads: int = 1,
) -> dict[str, float]:  # fmt: skip
    """Write the files and check them on `threads` threads. For ONNX, a failed check leads to the second exporter."""
    writers: list[Callable[[], None]] = [
        lambda: chosen.write(copy_model(module), cloned(inputs), paths, dynamic=dynamic, half=half),
    ]
    if chosen.name == "onnx":
        writers.append(lambda: write_exported(copy_model(module), cloned(inputs), paths[0], dynamic=dynamic, half=half))
    runtime = get_runtime(chosen.runtime)
    for attempt, write in enumerate(writers, start=1):
        write()
        try:
            session = runtime.load(paths, threads=threads, half=half)
            try:
                return check(module, session, cases, tolerance_of(half), loose=chosen.batch_one)
            finally:
                session.close()
        except (ParityError, RuntimeFailure):
            if attempt == len(writers):
                raise
    raise AssertionError("at least one writer is tried")


def tolerance_of(half: bool) -> float:
    """Largest error that the check accepts."""
    return TOLERANCE_HALF if half else TOLERANCE


def _written(
    chosen: Format, module: nn.Module, inputs: Tensors, paths: Sequence[Path], cases: Cases, *,
    half: bool, dynamic: bool, needed: bool,
) -> dict[str, float] | None:  # fmt: skip
    """Write and check the files; returns the errors, or None if this fails and the files are not `needed`."""
    every = {**cases, **_batches(inputs, chosen.max_batch)} if dynamic else cases
    try:
        return write_checked(chosen, module, inputs, paths, every, half=half, dynamic=dynamic)
    except (ConversionError, ParityError, RuntimeFailure) as error:
        if not needed:
            return None
        hint = "; leave dynamic out for a fixed batch" if dynamic else ""
        raise type(error)(f"{error}{hint}; no {chosen.name} file was written") from error


def _cases(inputs: Tensors, real: Tensors | None) -> dict[str, Tensors]:
    """Inputs for the check, in batches of the example's size."""
    cases = {"random": random_like(inputs)}
    if real is not None:
        batch = len(inputs[0])
        for start in range(0, min(len(real[0]), _REAL_EXAMPLES), batch):
            cases[f"real {start}"] = with_batch(tuple(value[start:] for value in real), batch)
    return cases


def _batches(inputs: Tensors, most: int | None) -> dict[str, Tensors]:
    sizes = (*_CHECKED_BATCHES, *((most,) if most else ()))
    return {f"batch {size}": random_like(with_batch(inputs, size), seed=size) for size in sizes}


def _by_kind(errors: dict[str, float]) -> dict[str, float]:
    """The largest error of each kind of input: `real 0`, `real 1` … become `real`."""
    kinds = dict.fromkeys(name.split()[0] for name in errors)
    return {kind: max(value for name, value in errors.items() if name.split()[0] == kind) for kind in kinds}


def _refuse_impossible(chosen: Format, *, half: bool, dynamic: bool | None) -> None:
    if half and not chosen.half:
        raise AmcError(
            f"format {chosen.name} does not store convolutions in 16 bits, so half (--fp16) would save nothing; "
            "leave it out, or choose onnx, openvino, litert or ncnn"
        )
    if dynamic and chosen.max_batch == 0:
        raise AmcError(f"format {chosen.name} has a fixed batch; leave dynamic out, or choose onnx or openvino")
