"""Measures networks on a runtime; the record also holds everything that the latencies depend on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from amc.deploy import machine
from amc.deploy.energy import counters, energy_of
from amc.deploy.export import tolerance_of, write_checked
from amc.deploy.formats import Format, get_format
from amc.deploy.formats.base import Half
from amc.deploy.measure import MeasureSettings, Timing, compare, measure, steady
from amc.deploy.parity import check
from amc.deploy.runtimes import Session, get_runtime
from amc.deploy.runtimes.base import RuntimeFailure
from amc.deploy.runtimes.eager import EagerRuntime
from amc.deploy.tensors import Tensors, inputs_of, random_like, taking_tensors, with_batch
from amc.errors import AmcError, message_of


def format_for(runtime: str, *, threads: int, batch: int, half: bool) -> Format:
    """The file format that a runtime is timed with; AmcError if the format does not support these options."""
    if threads < 1 or batch < 1:
        raise AmcError(f"threads and batch must be at least 1, got {threads} and {batch}")
    chosen = get_format(get_runtime(runtime).format)
    if chosen.batch_one and batch != 1:
        raise AmcError(f"runtime {runtime} takes one example at a time; leave batch at 1, got {batch}")
    if half and not chosen.half:
        raise AmcError(f"runtime {runtime} has no 16-bit convolutions here; leave half (--fp16) out")
    return chosen


@contextmanager
def prepared(
    module: nn.Module, example_input: Any, runtime: str, *, threads: int = 1, batch: int = 1, half: bool = False
) -> Iterator[tuple[Session, Tensors, int]]:
    """Load `module` into `runtime`; yields a session, its inputs, and the bytes of its files (0 for eager).

    The session's outputs on these inputs have been checked against PyTorch's.
    """
    chosen = format_for(runtime, threads=threads, batch=batch, half=half)
    engine, module = get_runtime(runtime), taking_tensors(module, example_input)
    engine.version()  # raises an error that names a missing package
    inputs = random_like(with_batch(inputs_of(example_input), batch))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"model{suffix}") for suffix in chosen.suffixes]
        if isinstance(engine, EagerRuntime):
            session, size = engine.of_module(Half(module) if half else module, threads=threads), 0
            check(module, session, {"random": inputs}, tolerance_of(half))
        else:
            cases = {"random": inputs}
            write_checked(chosen, module, inputs, paths, cases, half=half, dynamic=False, threads=threads)
            session = engine.load(paths, threads=threads, half=half)
            size = sum(path.stat().st_size for path in paths)
        try:
            yield session, inputs, size
        finally:
            session.close()


def latency_record(
    networks: Mapping[str, nn.Module],
    example_input: Any,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    half: bool = False,
    settings: MeasureSettings | None = None,
) -> dict[str, Any]:
    """Time the networks in alternation; every other network is compared with the first one.

    The record: runtime, runtime_version, threads, batch, precision, machine, settings, seconds, busy (other processes
    used the machine, so latencies may be too high), steady (as precise as claimed), and in `networks` by name:
    file_bytes, the fields of `Timing`, and those of the `Comparison` with the first network; with counters of energy in
    the processor also energy_mj, millijoules of one call.
    """
    with ExitStack() as stack:
        loaded = {}
        for name, module in networks.items():
            opened = prepared(module, example_input, runtime, threads=threads, batch=batch, half=half)
            loaded[name] = stack.enter_context(opened)
        calls = {name: (session, inputs) for name, (session, inputs, _) in loaded.items()}
        record = _measured(calls, runtime, threads, half, settings or MeasureSettings())
    for name, (_, _, size) in loaded.items():
        record["networks"][name] = {"file_bytes": size} | record["networks"][name]
    return record | {"batch": batch}


def latency_of_files(
    models: Mapping[str, tuple[Sequence[Path], Tensors]],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    half: bool = False,
    settings: MeasureSettings | None = None,
) -> dict[str, Any]:
    """Time networks from files; `models`: name -> (paths in the order of the format's suffixes, inputs).

    Returns the record of `latency_record`. Raises RuntimeFailure, naming the network, if a file does not load or run.
    """
    for _, inputs in models.values():
        format_for(runtime, threads=threads, batch=len(inputs[0]) if inputs[0].dim() else 1, half=half)
    engine = get_runtime(runtime)
    engine.version()
    with ExitStack() as stack:
        calls = {}
        for name, (paths, inputs) in models.items():
            session = engine.load(paths, threads=threads, half=half)
            stack.callback(session.close)
            try:
                session.run(inputs)
            except Exception as error:  # runtimes raise exceptions of any type
                raise RuntimeFailure(f"{runtime} fails to run model '{name}': {message_of(error)}") from error
            calls[name] = (session, inputs)
        return _measured(calls, runtime, threads, half, settings or MeasureSettings())


def _measured(
    calls: Mapping[str, tuple[Session, Tensors]], runtime: str, threads: int, half: bool, settings: MeasureSettings
) -> dict[str, Any]:
    begin = time.perf_counter()
    place = machine.describe()
    runs = {name: partial(session.run, inputs) for name, (session, inputs) in calls.items()}
    timings = measure(runs, settings, threads=threads)
    places = counters()
    energy = {name: {"energy_mj": energy_of(run, places)} for name, run in runs.items()} if places else {}
    return {
        "runtime": runtime,
        "runtime_version": get_runtime(runtime).version(),
        "threads": threads,
        "precision": "float16" if half else "float32",
        "machine": place,
        "settings": asdict(settings),
        "busy": machine.busy(place, threads),
        "steady": steady(timings, settings.precision),
        "seconds": time.perf_counter() - begin,
        "networks": {name: found | energy.get(name, {}) for name, found in _records(timings).items()},
    }


def _records(timings: Mapping[str, Timing]) -> dict[str, dict[str, Any]]:
    first = next(iter(timings.values()))
    return {
        name: timing.to_json() | (compare(timing, first).to_json() if timing is not first else {})
        for name, timing in timings.items()
    }
