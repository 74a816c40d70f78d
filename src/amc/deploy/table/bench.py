"""Benches that time blocks and networks: this machine, or a device over the network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from amc.deploy import machine
from amc.deploy.device.parts import split
from amc.deploy.device.protocol import Device, Model, Request, TensorSpec, check_threads
from amc.deploy.formats import get_format
from amc.deploy.measure import MeasureSettings
from amc.deploy.runtimes import get_runtime
from amc.deploy.runtimes.eager import EagerRuntime
from amc.deploy.table.blocks import Run
from amc.deploy.timing import latency_of_files, latency_record
from amc.errors import AmcError
from amc.structure.trace import inference

# Blocks get no extra rounds (max_seconds=0): a second pass, later, tells more than more rounds in the same seconds.
BLOCK_SETTINGS = MeasureSettings(rounds=6, warmup=2, round_seconds=0.004, precision=0.05, max_seconds=0.0)
NETWORK_SETTINGS = MeasureSettings(rounds=15, warmup=3, round_seconds=0.05, precision=0.03, max_seconds=30.0)

OnStep = Callable[[int, int], None] | None  # hears how many parts of a job are done, and of how many

_TOGETHER = 24  # blocks that are loaded at the same time
_PASSES = 2  # the fastest pass counts; passes are far apart in time, because other load is usually short
_KEPT_BYTES = 4 << 20  # largest file that is kept for the next pass


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how latency is measured. Latencies from different places must never be mixed."""

    runtime: str
    version: str
    threads: int
    precision: str  # float32
    machine: Mapping[str, Any]
    device: str | None = None  # its URL; None: this machine

    @property
    def key(self) -> str:
        """A hash of the kind of machine: 16 hexadecimal digits."""
        return machine.key(self.machine)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime} {self.version}, {threads}{f', {self.device}' if self.device else ''}"


class Bench(Protocol):
    """Times many blocks, and whole networks in alternation."""

    @property
    def place(self) -> Place: ...

    def blocks(self, runs: Sequence[Run], on_step: OnStep = None) -> list[float]:
        """Latency of each block, in ms. `on_step` hears how many parts of the work are done, and of how many."""
        ...

    def networks(
        self, networks: Mapping[str, nn.Module], example_input: Any, settings: MeasureSettings
    ) -> dict[str, Any]:
        """Time networks in alternation; the record of `amc.deploy.timing`, with the first network as the reference."""
        ...


def open_bench(runtime: str, *, threads: int, device_url: str | None = None, token_file: Path | None = None) -> Bench:
    """The bench of this machine, or of the device at `device_url` (see `amc.deploy.device.remote.open_device`)."""
    if isinstance(get_runtime(runtime), EagerRuntime):
        raise AmcError("eager PyTorch is too noisy for a latency budget; choose onnxruntime or another runtime")
    if threads < 1:
        raise AmcError(f"latency-threads must be at least 1, got {threads}")
    if device_url is None:
        return LocalBench(runtime, threads)
    from amc.deploy.device.remote import open_device

    return DeviceBench(open_device(device_url, token_file=token_file), device_url, runtime, threads)


class LocalBench:
    """This machine."""

    def __init__(self, runtime: str, threads: int = 1, settings: MeasureSettings = BLOCK_SETTINGS) -> None:
        version = get_runtime(runtime).version()
        self.place = Place(runtime, version, threads, "float32", machine.describe())
        self.settings = settings

    def blocks(self, runs: Sequence[Run], on_step: OnStep = None) -> list[float]:
        """See `Bench`."""
        place, settings = self.place, self.settings

        def measure(folder: Path, part: Mapping[int, Run]) -> list[float]:
            files = {}
            for index, run in part.items():
                files[str(index)] = (_written(folder, index, run, place.runtime), run.example())
            record = latency_of_files(files, runtime=place.runtime, threads=place.threads, settings=settings)
            return [record["networks"][name]["latency_ms"] for name in files]

        return _in_passes(runs, measure, on_step)

    def networks(
        self, networks: Mapping[str, nn.Module], example_input: Any, settings: MeasureSettings
    ) -> dict[str, Any]:
        """See `Bench`."""
        place = self.place
        return latency_record(networks, example_input, runtime=place.runtime, threads=place.threads, settings=settings)


class DeviceBench:
    """A board or a phone; this machine writes the files and sends them to the device."""

    def __init__(
        self, device: Device, url: str, runtime: str, threads: int = 1, settings: MeasureSettings = BLOCK_SETTINGS
    ) -> None:
        info = device.describe()
        if runtime not in info.runtimes:
            installed = ", ".join(info.runtimes) or "none"
            raise AmcError(f"runtime {runtime} is not on the device at {url}; it has {installed}")
        check_threads(threads)
        self.device, self.settings = device, settings
        self._room = info.body_bytes
        self.place = Place(runtime, info.runtimes[runtime], threads, "float32", info.machine, url)

    def blocks(self, runs: Sequence[Run], on_step: OnStep = None) -> list[float]:
        """See `Bench`."""
        place = self.place

        def measure(folder: Path, part: Mapping[int, Run]) -> list[float]:
            files, models = [], []
            for index, run in part.items():
                files.append([path.read_bytes() for path in _written(folder, index, run, place.runtime)])
                specs = tuple(TensorSpec(tuple(value.shape)) for value in run.example())
                models.append(Model(str(index), specs, tuple(map(len, files[-1]))))
            request = Request(place.runtime, tuple(models), place.version, place.threads, False, self.settings)
            measured: dict[str, Any] = {}
            for fitting in split(request, files, self._room):
                measured |= self.device.measure(*fitting)["networks"]
            return [float(measured[model.name]["latency_ms"]) for model in models]

        return _in_passes(runs, measure, on_step)

    def networks(
        self, networks: Mapping[str, nn.Module], example_input: Any, settings: MeasureSettings
    ) -> dict[str, Any]:
        """See `Bench`."""
        from amc.deploy.device.remote import latency_on

        place = self.place
        return latency_on(
            self.device, networks, example_input, runtime=place.runtime, threads=place.threads, settings=settings,
            version=place.version,
        )  # fmt: skip


def _in_passes(
    runs: Sequence[Run],
    measure: Callable[[Path, Mapping[int, Run]], list[float]],
    on_step: OnStep,
) -> list[float]:
    """The best latency of each block, in ms, over several passes that time a few blocks together."""
    best = [float("inf")] * len(runs)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_PASSES):
            for start in range(0, len(runs), _TOGETHER):
                part = dict(enumerate(runs[start : start + _TOGETHER], start))
                for index, latency_ms in zip(part, measure(Path(folder), part), strict=True):
                    best[index] = min(best[index], latency_ms)
                for path in Path(folder).iterdir():
                    if path.stat().st_size > _KEPT_BYTES:
                        path.unlink()
                if on_step is not None:
                    on_step(number * len(runs) + start + len(part), _PASSES * len(runs))
    return best


def _written(folder: Path, index: int, run: Run, runtime: str) -> list[Path]:
    """The paths of one block's files, written if missing. The files are not checked: their weights are random."""
    chosen = get_format(get_runtime(runtime).format)
    paths = [folder / f"{index}{suffix}" for suffix in chosen.suffixes]
    if not all(path.exists() for path in paths):
        module = run.module()
        with inference(module):
            chosen.write(module, run.example(), paths, dynamic=False, half=False)
    return paths
