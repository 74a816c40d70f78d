"""Every runtime that is installed, behind the one interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amc.deploy.formats import get_format
from amc.deploy.runtimes import RUNTIMES, RuntimeFailure, get_runtime, installed_runtimes
from amc.errors import AmcError
from tests.deploy.nets import EXAMPLE, available, block

HERE = [name for name in RUNTIMES if available(get_runtime(name).format)]


def test_the_core_brings_two_runtimes() -> None:
    found = installed_runtimes()
    assert {"onnxruntime", "eager"} <= set(found)
    assert found["eager"] == torch.__version__


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
    """A runtime that hands out its own buffers would change a result that was kept."""
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


def test_eager_puts_the_threads_back() -> None:
    before = torch.get_num_threads()
    session = get_runtime("eager").of_module(block(), threads=before + 1)  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before + 1
    session.close()
    assert torch.get_num_threads() == before


@pytest.mark.skipif("openvino" not in HERE, reason="openvino is missing")
def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys, amc.deploy.runtimes.openvino as o; o.openvino(); "
        "print([m for m in sys.modules if m.startswith('openvino_telemetry')])"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []  # it keeps an identifier of the user under ~/intel
