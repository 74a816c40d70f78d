"""Latency records: what is in them, in which order, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.deploy import machine
from amc.deploy.measure import MeasureSettings
from amc.deploy.runtimes import RUNTIMES, RuntimeFailure, Session, get_runtime
from amc.deploy.runtimes.onnxruntime import OnnxRuntime
from amc.deploy.timing import latency_of_files, latency_record, prepared
from amc.errors import AmcError
from amc.run import provenance
from tests.deploy.nets import EXAMPLE, available, block

QUICK = MeasureSettings(rounds=3, warmup=1, round_seconds=0.002, max_seconds=0.0)
WIDE = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1) for i in range(4)]).eval()
SLIM = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4)]).eval()
HERE = [name for name in RUNTIMES if available(get_runtime(name).format)]


@pytest.mark.parametrize("runtime", HERE)
def test_a_much_smaller_network_is_found_faster(runtime: str) -> None:
    """64 times fewer MACs in all layers except the first: a difference larger than any noise."""
    record = latency_record({"dense": WIDE, "slim": SLIM}, torch.zeros(1, 3, 48, 48), runtime=runtime, settings=QUICK)
    assert list(record["networks"]) == ["dense", "slim"]
    dense, slim = record["networks"].values()
    assert slim["latency_ms"] < dense["latency_ms"]
    assert slim["ratio"] == slim["latency_ms"] / dense["latency_ms"]
    assert "ratio" not in dense
    assert dense["rounds"] == slim["rounds"] == 3
    assert (dense["file_bytes"] > slim["file_bytes"]) == (runtime != "eager")


def test_the_record_contains_everything_that_latency_depends_on() -> None:
    record = latency_record({"net": block()}, EXAMPLE, threads=2, batch=3, settings=QUICK)
    assert record["runtime"] == "onnxruntime"
    assert record["runtime_version"] == get_runtime("onnxruntime").version()
    assert (record["threads"], record["batch"], record["precision"]) == (2, 3, "float32")
    assert record["settings"]["rounds"] == 3
    assert set(record["machine"]) == {"cpu", "architecture", "cores", "system", "python", "load"}
    assert isinstance(record["steady"], bool)
    assert isinstance(record["busy"], bool)


def test_batch_reaches_the_network() -> None:
    with prepared(block(), EXAMPLE, "onnxruntime", batch=5) as (session, inputs, size):
        assert inputs[0].shape == (5, 3, 8, 8)
        assert session.run(inputs)[0].shape == (5, 5)
        assert size > 1000


def test_files_are_timed_as_they_are(tmp_path: Path) -> None:
    from amc.deploy.export import export

    export(block(), EXAMPLE, tmp_path / "a.onnx")
    models = {"a": ([tmp_path / "a.onnx"], (torch.ones(2, 3, 8, 8),))}
    record = latency_of_files(models, settings=QUICK)
    assert record["networks"]["a"]["latency_ms"] > 0
    with pytest.raises(RuntimeFailure, match="onnxruntime fails to run model 'a': "):
        latency_of_files({"a": ([tmp_path / "a.onnx"], (torch.ones(2, 9),))}, settings=QUICK)


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch": 0}])
def test_nonsense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(AmcError, match="threads and batch must be at least 1"):
        latency_record({"net": block()}, EXAMPLE, settings=QUICK, **options)  # type: ignore[arg-type]


def test_ncnn_takes_one_example_at_a_time() -> None:
    words = "runtime ncnn takes one example at a time; leave batch at 1, got 4"
    with pytest.raises(AmcError, match=words):
        latency_record({"net": block()}, EXAMPLE, runtime="ncnn", batch=4, settings=QUICK)
    with pytest.raises(AmcError, match=words):
        latency_of_files({"net": ([], (torch.ones(4, 3, 8, 8),))}, runtime="ncnn", settings=QUICK)


def test_float16_is_only_reported_if_it_was_used() -> None:
    words = r"runtime executorch has no 16-bit convolutions here; leave half \(--fp16\) out"
    with pytest.raises(AmcError, match=words):
        latency_record({"net": block()}, EXAMPLE, runtime="executorch", half=True, settings=QUICK)
    with pytest.raises(AmcError, match=words):
        latency_of_files({"net": ([], (EXAMPLE,))}, runtime="executorch", half=True, settings=QUICK)


def test_files_are_checked_with_the_threads_that_they_are_timed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = OnnxRuntime.load

    def load(self: OnnxRuntime, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        asked.append(threads)
        return real(self, paths, threads=threads, half=half)

    monkeypatch.setattr(OnnxRuntime, "load", load)
    with prepared(block(), EXAMPLE, "onnxruntime", threads=2):
        assert asked == [2, 2]


def test_eager_times_the_module_itself_and_leaves_it_alone() -> None:
    model = block().train()
    record = latency_record({"net": model}, EXAMPLE, runtime="eager", half=True, settings=QUICK)
    assert record["precision"] == "float16"
    assert record["networks"]["net"]["file_bytes"] == 0
    assert model.training
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_machine_key_ignores_what_changes_from_run_to_run() -> None:
    here = machine.describe()
    assert machine.key(here) == machine.key({**here, "load": 99.0, "python": "3.99"})
    assert machine.key(here) != machine.key({**here, "cpu": "another"})
    assert len(machine.key(here)) == 16


@pytest.mark.parametrize(
    ("load", "cores", "threads", "busy"), [(0.9, 2, 1, False), (2.0, 2, 1, False), (2.5, 2, 1, True), (1.5, 2, 2, True)]
)
def test_busy_means_more_processes_than_cores_are_left(load: float, cores: int, threads: int, busy: bool) -> None:
    """The load includes the measuring process."""
    assert machine.busy({"load": load, "cores": cores}, threads) is busy


def test_processor_names(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fast 9000\n\nprocessor\t: 1\nmodel name\t: Fast 9000\n"
    )
    assert provenance.processor(tmp_path) == "Fast 9000"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\nCPU part\t: 0xd08\n")
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_text("Board Model 4 B\0")
    assert provenance.processor(tmp_path) == "Board Model 4 B"
