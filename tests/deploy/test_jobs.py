"""`amc export` and `amc latency` on a real run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import amc.cli.deploy as commands
from amc.cli.jobs.export import run_export
from amc.cli.jobs.latency import run_latency
from amc.compression.load import load_run
from amc.deploy.runtimes import get_runtime
from amc.errors import AmcError, DataError, ModelError, RunError
from amc.report.record import load_record
from amc.run.directory import RunDir
from amc.run.settings import TimingConfig
from amc.structure import count_macs, count_params
from amc.zoo import create_model, load_data
from tests.commands import AS_PRUNED, amc

QUICK = TimingConfig(rounds=3, max_seconds=0.0)
HOLDS = """
import sys
from pathlib import Path
from amc.run.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.readline()
"""
EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deploy") / "run"
    quick = ("--search-images", 60, "--calibration-images", 64, "--bn-images", 32, "--certify", 0, *AS_PRUNED)
    assert amc("search", "digits_cnn", "--out", out, "--episodes", 2, *quick).code == 0
    return out


def test_export_writes_the_slim_network_beside_the_run(run: Path) -> None:
    record = run_export(run)
    assert record["path"] == str(run / "model.onnx")
    assert (run / "model.onnx").stat().st_size == record["bytes"]
    assert record["real_images"] == 8
    assert set(record["errors"]) == {"random", "real", "batch"}
    stored = sum(value.nbytes for value in load_file(run / "model.safetensors").values())
    assert record["weight_bytes"]["slim"] == stored
    assert record["weight_bytes"]["dense"] == sum(v.nbytes for v in create_model("digits_cnn").state_dict().values())
    assert not record["finetuned"]
    session = get_runtime("onnxruntime").load([run / "model.onnx"], threads=1, half=False)
    images, _ = next(iter(load_data("digits").search.batches(50)))
    with torch.no_grad():
        torch.testing.assert_close(session.run((images.contiguous(),))[0], load_run(run)(images), rtol=1e-4, atol=1e-4)
    json.dumps(record)


def test_export_names_files_by_format_and_precision(run: Path, tmp_path: Path) -> None:
    assert Path(run_export(run, format="torch", half=True)["path"]).name == "model-fp16.pt2"
    assert run_export(run, out=tmp_path / "deep" / "net.onnx")["path"] == str(tmp_path / "deep" / "net.onnx")


def test_export_without_the_data_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise DataError("folder 'data' not found; check the path")

    monkeypatch.setattr("amc.cli.jobs.export.data_of", gone)
    record = run_export(run)
    assert record["real_images"] == 0
    assert record["real_images_missing"] == "folder 'data' not found; check the path"
    assert set(record["errors"]) == {"random", "batch"}


def test_export_needs_a_run_and_a_known_format(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        run_export(tmp_path / "nowhere")
    with pytest.raises(AmcError, match="unknown format 'tflite'"):
        run_export(run, format="tflite")


def test_latency_of_a_run_has_both_networks(run: Path) -> None:
    record = run_latency(str(run), config=QUICK)
    assert record["target"] == str(run)
    assert record["input"] == [1, 8, 8]
    slim, row = load_run(run), record["networks"]["slim"]
    assert list(record["networks"]) == ["dense", "slim"]
    assert (row["macs"], row["params"]) == (count_macs(slim, EXAMPLE), count_params(slim))
    assert record["networks"]["dense"]["macs"] == count_macs(create_model("digits_cnn"), EXAMPLE)
    assert row["verdict"] in ("faster", "slower", "undecided")
    json.dumps(record)


def test_what_was_measured_and_exported_stands_in_the_report(run: Path) -> None:
    """Once for each way of measuring and each file; not any more when the weights are others."""
    place = run.with_name("copy")
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("latency.json", "export.json", "model.onnx"))
    for _ in range(2):
        record = run_latency(str(place), config=QUICK)
        written = run_export(place)
    run_latency(str(place), config=replace(QUICK, batch=2))
    opened = RunDir.open(place)
    kept = opened.read_json("latency.json")["records"]
    assert [each["batch"] for each in kept.values()] == [1, 2]
    assert next(iter(kept.values()))["networks"] == record["networks"]
    assert list(opened.read_json("export.json")["records"]) == [written["path"]]
    page = (place / "report.html").read_text()
    shown = f"{record['networks']['slim']['latency_ms']:.4g} ms"
    for text in ("On runtimes", "onnxruntime, 1 thread, batch 1", "batch 2", shown, "model.onnx", "onnx, float32"):
        assert text in page
    assert amc("finetune", place, "--epochs", 1).code == 0
    run_export(place)  # of the fine-tuned network; the latencies are those of the same shapes
    record = load_record(opened)
    assert (len(record.latencies), [each["finetuned"] for each in record.exports]) == (2, [True])
    (place / "model-finetuned.safetensors").unlink()
    (place / "model.safetensors").write_bytes(b"others")
    opened.write_json("summary.json", {**opened.read_json("summary.json"), "files": {}})
    assert load_record(opened).latencies == load_record(opened).exports == ()


def test_a_run_that_another_process_writes_is_measured_and_keeps_nothing(run: Path) -> None:
    before = (run / "latency.json").read_bytes() if (run / "latency.json").exists() else b""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert list(run_latency(str(run), config=QUICK)["networks"]) == ["dense", "slim"]
        other.communicate(b"\n")
    assert ((run / "latency.json").read_bytes() if before else b"") == before


def test_latency_of_a_network_by_name() -> None:
    record = run_latency("resnet20", config=replace(QUICK, batch=2))
    assert list(record["networks"]) == ["dense"]
    assert record["networks"]["dense"]["params"] == 269_722
    assert run_latency("digits_cnn", input_shape="1x16x16", config=QUICK)["input"] == [1, 16, 16]


def test_latency_refuses_what_it_cannot_find() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'resnet21'; did you mean"):
        run_latency("resnet21")
    with pytest.raises(RunError, match="no run directory 'runs/no'"):
        run_latency("runs/no")
    with pytest.raises(ModelError, match=r"'tests\.tiny:tiny' is your own network: give the shape of one example"):
        run_latency("tests.tiny:tiny")


def test_commands_print_one_json_object(run: Path) -> None:
    assert amc("export", run, "--json").json["path"] == str(run / "model.onnx")
    quick = ("--rounds", 3, "--max-seconds", 0)
    assert list(amc("latency", run, *quick, "--json").json["networks"]) == ["dense", "slim"]
    assert amc("latency", "digits_cnn", *quick).stdout.splitlines()[0].startswith("onnxruntime ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("export", "nowhere"), ("no run directory 'nowhere'",)),
        (("export", "RUN", "--format", "onnxx"), ("unknown format 'onnxx'", "did you mean onnx?")),
        (("export", "RUN", "--out", "RUN"), ("is a directory; give the name of a file",)),
        (("export", "RUN", "--format", "executorch", "--fp16"), ("executorch",)),
        (("latency", "RUN", "--runtime", "onnxrt"), ("unknown runtime 'onnxrt'", "did you mean onnxruntime?")),
        (("export", "RUN", "--out", "RUN/model.safetensors"), ("is not an earlier export", "ends in .onnx")),
        (
            ("latency", "digits_cnn", "--input", "3x8x8"),
            ("cannot take one input of 3x8x8", "change --input"),
        ),
        (("latency", "tests.deploy.nets:Two", "--input", "3x8x8"), ("cannot take one input of 3x8x8",)),
        (("latency", "RUN", "--input", "1x8x8"), ("leave --weights and --input out",)),
        (("latency", "digits_cnn", "--threads", 0), ("threads and batch must be at least 1, got 0 and 1",)),
        (("latency", "RUN", "--rounds", 1), ("rounds must be at least 3, got 1",)),
        (("latency", "RUN", "--precision", 0), ("precision must be in (0, 1), got 0.0",)),
        (("latency", "resnet20", "--weights", "no.pt"), ("weights 'no.pt' not found",)),
        (("latency", "RUN", "--runtime", "eager", "--device-url", "http://127.0.0.1:1"), ()),
    ],
)
def test_mistakes_are_one_line(run: Path, arguments: tuple[object, ...], parts: tuple[str, ...]) -> None:
    complaint = amc(*(str(argument).replace("RUN", str(run)) for argument in arguments)).complaint
    for part in parts:
        assert part in complaint


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], show: Any, record: Any) -> list[str]:
    """The output on a terminal of 80 columns; notes go to standard error."""
    monkeypatch.setattr(commands, "out", Console(width=80, highlight=False))
    monkeypatch.setattr(commands, "err", Console(width=80, highlight=False))
    show(record)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


RECORD: dict[str, Any] = {
    "runtime": "openvino", "runtime_version": "2026.4.1", "threads": 1, "batch": 1, "input": [3, 32, 32],
    "precision": "float32", "machine": {"cpu": "Fast 9000", "cores": 2, "system": "Linux", "load": 4.5},
    "settings": {"precision": 0.03}, "steady": True, "busy": False, "seconds": 61.0,
    "networks": {
        "dense": {"macs": 40_551_808, "params": 269_722, "file_bytes": 1_091_930, "latency_ms": 0.95, "spread": 0.011},
        "slim": {
            "macs": 20_158_912, "params": 141_318, "file_bytes": 91_930, "latency_ms": 0.5, "spread": 0.02,
            "ratio": 0.5263, "uncertainty": 0.016, "verdict": "faster",
        },
    },
}  # fmt: skip

DENSE = RECORD["networks"]["dense"]


def test_latency_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(monkeypatch, capsys, commands._show_latency, RECORD) == [
        "openvino 2026.4.1, 1 thread, batch 1 of 3x32x32, float32",
        "Fast 9000, 2 cores, Linux",
        "          MACs   params      file   latency  spread",
        "dense  40.55 M  269.7 k  1.092 MB  0.950 ms    1.1%",
        "slim   20.16 M  141.3 k  91.93 kB  0.500 ms    2.0%",
        "slim takes 52.6% ± 1.6% of the time of dense: 1.90x faster",
    ]


def test_noise_is_not_reported_as_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    slim = RECORD["networks"]["slim"] | {"ratio": 0.95, "uncertainty": 0.08, "verdict": "undecided"}
    noisy = RECORD | {"steady": False, "busy": True, "networks": RECORD["networks"] | {"slim": slim}}
    lines = printed(monkeypatch, capsys, commands._show_latency, noisy)
    assert "slim takes 95.0% ± 8.0% of the time of dense: the difference may be noise" in lines
    assert not any("faster" in line for line in lines)
    unsure = slim | {"ratio": 0.5, "uncertainty": 0.3, "verdict": "faster"}
    lines = printed(monkeypatch, capsys, commands._show_latency, noisy | {"networks": {"dense": DENSE, "slim": unsure}})
    assert any(line.endswith("faster, but the noise hides by how much") for line in lines)
    assert not any("x faster" in line for line in lines)
    assert any(line.startswith("note: too noisy for the claimed precision of 3%, even after 61 s") for line in lines)
    assert any(line.startswith("note: other processes were running (load 4.5 on 2 cores)") for line in lines)


def test_export_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_export(run, out=tmp_path / "net.onnx") | {"path": "net.onnx", "bytes": 0}
    lines = printed(monkeypatch, capsys, commands._show_export, record)
    assert lines[0] == "written  net.onnx"
    assert lines[1] == "format   onnx, float32 weights"
    assert lines[2] == "inputs   1x8x8 in batches of any size"
    assert lines[4].startswith("weights  179.3 kB dense, ")
    assert lines[5].startswith(f"checked  onnxruntime {get_runtime('onnxruntime').version()}: largest error random")
    assert max(map(len, lines)) <= 80
