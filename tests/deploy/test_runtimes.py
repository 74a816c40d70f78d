"""Every runtime that is installed, behind the one interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amc.deploy.formats import get_format
from amc.deploy.runtimes import RUNTIMES, RuntimeFailure, get_runtime, installed_runtimes
from amc.errors import AmcError
from tests.deploy.nets import EXAMPLE, available, block

HERE = [name for name in RUNTIMES if available(get_runtime(name).format)]


def test_the_core_brings_two_runtimes() -> None:
    versions = installed_runtimes()
    assert {"onnxruntime", "eager"} <= set(versions)
    assert versions["eager"] == torch.__version__


def test_unknown_runtime_is_refused_with_a_hint() -> None:
    with pytest.raises(AmcError, match=r"unknown runtime 'openvinoo'; did you mean openvino\?"):
        get_runtime("openvinoo")


def test_only_eager_reads_files_that_can_carry_code() -> None:
    assert [name for name in RUNTIMES if get_runtime(name).trusted_only] == ["eager"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_format_and_runtime_name_each_other(name: str) -> None:
    assert get_format(get_runtime(name).format).runtime == name


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("content", [b"", b"not a network", bytes(range(256)) * 64])
def test_a_file_of_another_kind_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = get_runtime(name)
    paths = [tmp_path / f"model{suffix}" for suffix in get_format(runtime.format).suffixes]
    for path in paths:
        path.write_bytes(content)
    with pytest.raises(RuntimeFailure, match=f"{name} cannot load '{paths[0].name}': ."):
        runtime.load(paths, threads=1, half=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", HERE)
def test_outputs_are_new_at_every_run(tmp_path: Path, name: str) -> None:
    """A runtime that returns its own buffers would overwrite earlier results."""
    chosen = get_format(get_runtime(name).format)
    paths = [tmp_path / f"model{suffix}" for suffix in chosen.suffixes]
    chosen.write(block(), (EXAMPLE,), paths, dynamic=False, half=False)
    session = get_runtime(name).load(paths, threads=1, half=False)
    (first,) = session.run((EXAMPLE,))
    kept = first.clone()
    (second,) = session.run((torch.ones_like(EXAMPLE),))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    session.close()


def test_eager_restores_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    session = get_runtime("eager").of_module(block(), threads=before + 1)  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before + 1
    session.close()
    assert torch.get_num_threads() == before


class Recorder:
    """A fake package that records the arguments of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object, **_: object) -> Recorder:
            self.calls.append((name, arguments))
            return self

        return call


@pytest.mark.parametrize(("half", "precision"), [(False, "f32"), (True, "f16")])
def test_openvino_is_told_its_precision_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, precision: str
) -> None:
    package = Recorder()
    monkeypatch.setattr("amc.deploy.runtimes.openvino.require", lambda *_: package)
    get_runtime("openvino").load([tmp_path / "m.xml", tmp_path / "m.bin"], threads=3, half=half)
    (_, _, settings), *_ = [arguments for name, arguments in package.calls if name == "compile_model"]
    assert isinstance(settings, dict)
    assert (settings["INFERENCE_PRECISION_HINT"], settings["INFERENCE_NUM_THREADS"]) == (precision, 3)
    assert settings["NUM_STREAMS"] == 1


def test_onnxruntime_is_told_its_threads_and_to_report_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    told: list[str] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append("no telemetry"))
    chosen, paths = get_format("onnx"), [tmp_path / "model.onnx"]
    chosen.write(block(), (EXAMPLE,), paths, dynamic=False, half=False)
    session: Any = get_runtime("onnxruntime").load(paths, threads=2, half=False)
    assert told == ["no telemetry"]
    options = session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


class ThreadPool:
    """ExecuTorch's library, as far as threads go; like the real one, it prints when it is asked for them."""

    Runtime = Recorder()

    def __init__(self) -> None:
        self.threads = 1

    def _threadpool_get_thread_count(self) -> int:
        os.write(2, b"ExecuTorch counts its threads\n")
        return self.threads

    def _unsafe_reset_threadpool(self, threads: int) -> None:
        os.write(2, b"ExecuTorch resets its threads\n")
        self.threads = threads


def test_executorch_keeps_its_threads_while_networks_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread pool were freed while a network is loaded, the next call would hang."""
    library = ThreadPool()
    monkeypatch.setattr("amc.deploy.runtimes.executorch.require", lambda *_: library)
    path = tmp_path / "model.pte"
    path.write_bytes(b"")
    first = get_runtime("executorch").load([path], threads=2, half=False)
    assert library.threads == 2
    get_runtime("executorch").load([path], threads=2, half=False).close()
    with pytest.raises(RuntimeFailure, match="executorch keeps 2 threads until its networks are closed, not 1"):
        get_runtime("executorch").load([path], threads=1, half=False)
    first.close()
    get_runtime("executorch").load([path], threads=1, half=False).close()
    assert library.threads == 1


def test_executorch_sets_its_threads_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    library = ThreadPool()
    monkeypatch.setattr("amc.deploy.runtimes.executorch.require", lambda *_: library)
    path = tmp_path / "model.pte"
    path.write_bytes(b"")
    get_runtime("executorch").load([path], threads=2, half=False).close()
    assert library.threads == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("openvino" not in HERE, reason="openvino is missing")
def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys, amc.deploy.runtimes.openvino as o; o.openvino(); "
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []  # the telemetry stores an identifier of the user in ~/intel
