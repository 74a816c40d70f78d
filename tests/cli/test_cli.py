"""The commands as a user or a script meets them: output, exit codes, where everything is written."""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import amc as package
from amc.compression.load import load_run
from amc.compression.progress import ProgressBar
from amc.run.directory import RunDir
from amc.search import EpisodeRecord, EpisodeTiming
from amc.structure import count_macs, count_params
from amc.zoo import create_model
from tests.commands import AS_PRUNED, amc

COMMANDS = ("demo", "inspect", "search", "resume", "finetune", "report")
QUICK = ("--search-images", 60, "--calibration-images", 64, "--bn-images", 32, "--certify", 0, *AS_PRUNED)
EXAMPLE = torch.zeros(1, 1, 8, 8)

OWN = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )

def data():
    x = torch.randn(90, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network()(x).argmax(1)
    return {"train": (x[:60], y[:60]), "search": (x[60:80], y[60:80]), "test": (x[80:], y[80:])}

def width(module):
    return float(sum(p.shape[0] for p in module.parameters() if p.ndim == 4))
"""


def lines_of(text: str) -> list[str]:
    return text.splitlines()


def assert_narrow(text: str) -> None:
    """Fits a terminal of 80 columns; paths are never broken, so that they can be copied."""
    for line in lines_of(text):
        assert len(line) <= 80 or "/" in line, line


def assert_progress(stderr: str) -> None:
    assert stderr
    assert all(line.startswith(("· ", "  ")) for line in lines_of(stderr)), stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search; tests add to it but change nothing."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert amc("search", "digits_cnn", "--out", out, "--episodes", 5, *QUICK).code == 0
    return out


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("amc")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_explains_every_command_in_80_columns(command: str) -> None:
    done = amc(*command.split(), "--help")
    assert done.code == 0
    assert done.stderr == ""
    assert_narrow(done.stdout)
    assert done.stdout.startswith(f"Usage: amc {command}".rstrip())
    if command:
        assert "--json" in done.stdout
    else:
        assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_no_command_shows_the_help() -> None:
    done = amc()
    assert "Usage: amc" in done.stdout + done.stderr
    assert done.code in (0, 2)


def test_an_unknown_command_or_option_names_it() -> None:
    for arguments, name in ((("prune",), "prune"), (("inspect", "digits_cnn", "--fast"), "--fast")):
        done = amc(*arguments)
        assert done.code == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_inspect_as_json() -> None:
    done = amc("inspect", "digits_cnn", "--json")
    assert (done.code, done.stderr) == (0, "")
    model, found = create_model("digits_cnn"), done.json
    assert found["macs"] == count_macs(model, EXAMPLE)
    assert found["params"] == count_params(model)
    assert found["input"] == [1, 8, 8]
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["layer1.0.conv1"] == {
        "name": "layer1.0.conv1",
        "size": 8,
        "producers": ["layer1.0.conv1"],
        "consumers": ["layer1.0.conv2"],
        "macs": 2 * 8 * 8 * 9 * 64,
    }
    assert [(item["name"], item["reason"]) for item in found["locked"]] == [("linear", "network output")]
    assert found["certificate"]["passed"]
    assert found["certificate"]["worst_error"] < 1e-8
    assert 0 < found["least"]["macs"] < 0.1 * found["macs"]


def test_inspect_as_a_table() -> None:
    done = amc("inspect", "digits_cnn", "--lock", "layer3.*", "--certify", 0)
    assert (done.code, done.stderr) == (0, "")
    assert_narrow(done.stdout)
    text = done.stdout
    assert "digits_cnn, input 1x8x8: 414.5 k MACs, 44.23 k parameters" in text
    row = next(line for line in lines_of(text) if line.startswith("layer1.0.conv1"))
    assert row.split()[:3] == ["layer1.0.conv1", "8", "17.8%"]
    assert "locked: linear (10 channels): network output" in text
    assert "locked: layer3.0.conv1 (32 channels): locked by --lock" in text
    assert "certificate" not in text


def test_inspect_says_step_by_step_how_channels_came_to_be_tied_and_locked() -> None:
    done = amc("inspect", "resnet20", "--why", "layer3.2.conv2")
    assert (done.code, done.stderr) == (0, "")
    assert_narrow(done.stdout)
    lines = lines_of(done.stdout)
    assert [line for line in lines if line.startswith("layer3.2.conv2: ")] == [
        "layer3.2.conv2: channels 0-15, 48-63 (32): can be pruned",
        "layer3.2.conv2: channels 16-23, 40-47 (16): can be pruned",
        "layer3.2.conv2: channels 24-39 (16): can be pruned",
    ]
    assert lines[1].strip() == "1. batch_norm in 'layer3.2.bn2' (resnet.py:51) joins layer3.2.bn2"
    record = amc("inspect", "digits_cnn", "--why", "linear", "--json").json
    assert record["why"] == [
        {"channels": [*range(10)], "steps": [], "locked": record["why"][0]["locked"]},
    ]
    assert record["why"][0]["locked"]["reason"] == "network output"


def test_inspect_refuses_to_explain_what_has_no_channels_or_a_lock_of_the_user() -> None:
    done = amc("inspect", "digits_cnn", "--why", "layer9")
    assert (done.code, done.stdout) == (2, "")
    assert "has no layer 'layer9' with channels; the nearest are" in done.stderr
    done = amc("inspect", "digits_cnn", "--why", "linear", "--lock", "layer3.*")
    assert "leave out --lock, --only and --approximate" in done.stderr


def test_inspect_takes_the_users_own_network(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = amc("inspect", "own:network", "--input", "1x9x9", "--json", cwd=tmp_path)
    assert done.code == 0
    assert [(group["name"], group["size"]) for group in done.json["groups"]] == [("0", 12), ("2", 16)]
    assert done.json["macs"] == 12 * 9 * 81 + 16 * 12 * 9 * 16 + 16 * 3


def test_search_tells_its_progress_on_stderr_and_its_result_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = amc("search", "digits_cnn", "--out", out, "--episodes", 4, *QUICK, "--certify", 1)
    assert done.code == 0
    assert_narrow(done.stdout)
    assert_progress(done.stderr)
    for text in ("· structure", "sliced equals masked on 1 random keep set", "uniform 1/1: best", "planner 4/4: best"):
        assert text in done.stderr
    summary = RunDir.open(out).read_json("summary.json")
    left = summary["slim"]["macs"] / summary["dense"]["macs"]
    assert left <= 0.5
    assert f"budget    macs<=50%: {left:.2%} recounted: held" in done.stdout
    assert f"{left:.2%} left" in done.stdout
    assert f"{summary['slim']['score']:.2%}" in done.stdout
    assert f"report    {out}/report.html" in done.stdout
    assert summary["slim"]["macs"] == count_macs(load_run(out), EXAMPLE)


def test_search_as_json_prints_the_summary_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = amc(
        *("search", "digits_cnn", "--out", out, "--episodes", 3, *QUICK, "--budget", "macs<=80%,params<=70%"),
        *("--baseline", "none", "--agent", "random", "--round-to", 1, "--only", "layer3.*", "--no-reconstruct"),
        *("--ranking", "magnitude", "--max-sparsity", 0.9, "--seed", 3, "--no-test", "--json"),
    )
    assert done.code == 0
    assert_progress(done.stderr)
    summary = RunDir.open(out).read_json("summary.json")
    assert done.json == summary | {"run": str(out)}
    assert (summary["agent"], summary["seed"], summary["budget"]) == ("random", 3, "macs<=80%,params<=70%")
    assert summary["baselines"] == {}
    assert "test" not in summary["dense"]
    assert all(group["name"].startswith("layer3") for group in summary["groups"])
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    chosen = {"round_to": 1, "ranking": "magnitude", "reconstruct": False, "max_sparsity": 0.9, "keep_sets": 0}
    assert {name: config[name] for name in chosen} == chosen


def test_search_takes_the_users_own_network_data_and_score_and_resumes_them(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    done = amc(
        *("search", "own:network", "--data", "own:data", "--evaluate", "own:width", "--out", "run"),
        *("--episodes", 4, "--json"),
        cwd=tmp_path,
    )
    assert done.code == 0, done.stderr
    kept = {group["name"]: group["kept"] for group in done.json["groups"]}
    assert done.json["dense"]["score"] == 28
    assert done.json["slim"]["score"] == kept["0"] + kept["2"]
    (tmp_path / "run" / "summary.json").unlink()
    again = amc("resume", "run", "--json", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert again.json["groups"] == done.json["groups"]
    tuned = amc("finetune", "run", "--epochs", 1, "--batch-size", 16, "--json", cwd=tmp_path)
    assert tuned.code == 0, tuned.stderr
    assert tuned.json["slim"]["score_finetuned"] == done.json["slim"]["score"]  # the same score as in the search


def test_resume_of_a_finished_run_repeats_its_result(run: Path) -> None:
    summary = RunDir.open(run).read_json("summary.json")
    assert amc("resume", run, "--json").json == summary | {"run": str(run)}
    done = amc("resume", run)
    assert done.code == 0
    assert_narrow(done.stdout)
    assert "budget    macs<=50%" in done.stdout


def test_finetune_adds_a_network_and_its_scores(run: Path, tmp_path: Path) -> None:
    done = amc("finetune", run, "--epochs", 2, "--lr", 0.02, "--distill", 0.5, "--label-smoothing", 0.1)
    assert done.code == 0, done.stderr
    assert_progress(done.stderr)
    assert "epoch 2: loss" in done.stderr
    assert_narrow(done.stdout)
    assert "fine-tuned" in done.stdout
    as_json = amc("finetune", run, "--epochs", 1, "--json")
    summary = as_json.json
    assert 0 <= summary["slim"]["score_finetuned"] <= 1
    assert 0 <= summary["slim"]["test_finetuned"] <= 1
    lines = (run / "finetune.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]  # of the last call: it starts from the search's result
    tuned, plain = load_run(run), load_run(run, finetuned=False)
    assert tuned.conv1.weight.shape == plain.conv1.weight.shape
    assert not torch.equal(tuned.conv1.weight, plain.conv1.weight)
    assert "Fine-tuned" in (run / "report.html").read_text(encoding="utf-8") or summary["slim"]["score_finetuned"]


def test_report_is_written_again(run: Path) -> None:
    (run / "report.html").unlink()
    done = amc("report", run)
    assert (done.code, done.stdout, done.stderr) == (0, f"report: {run}/report.html\n", "")
    assert (run / "report.html").stat().st_size > 5000
    assert amc("report", run, "--json").json == {"report": f"{run}/report.html"}


def test_demo_does_the_whole_job_and_leaves_an_earlier_one_alone(tmp_path: Path) -> None:
    earlier, out = tmp_path / "runs" / "demo", tmp_path / "runs" / "demo-2"
    earlier.mkdir(parents=True)
    (earlier / "config.json").write_text('{"command": "demo", "model": "digits_cnn"}')
    done = amc("demo", "--episodes", 3, "--seed", 1, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert_narrow(done.stdout)
    assert_progress(done.stderr)
    assert done.stderr.splitlines()[0] == "· 'runs/demo' holds a run and stays; this demo goes to 'runs/demo-2'"
    assert [path.name for path in earlier.iterdir()] == ["config.json"]
    summary = RunDir.open(out).read_json("summary.json")
    assert summary["slim"]["macs"] <= 0.5 * summary["dense"]["macs"]
    assert set(summary["baselines"]) == {"uniform", "random"}
    assert {"test", "test_finetuned", "score", "score_finetuned"} <= set(summary["slim"])
    assert (out / "report.html").exists()
    assert (summary["episodes"], summary["seed"]) == (3, 1)


class Terminal:
    """A console of 80 columns that redraws."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.progress = ProgressBar(Console(file=self.file, force_terminal=True, width=80, color_system=None))

    def episode(self, number: int, score: float | None, macs: float, error: str | None = None) -> str:
        """What an episode adds to the screen."""
        begin = len(self.file.getvalue())
        record = EpisodeRecord(number, (1,), {"macs": macs}, score, score, error)
        self.progress.episode("planner", record, EpisodeTiming(0.0, 0.1, replayed=False))
        self.progress._bar.refresh()
        return self.file.getvalue()[begin:]


def test_the_live_display_shows_episode_score_best_cost_and_time_left() -> None:
    terminal = Terminal()
    terminal.progress.plan({"planner": 3})
    terminal.progress._dense_macs = 1000
    terminal.progress.stage("search (planner)")
    terminal.episode(0, 0.75, 500)
    shown = terminal.episode(1, 0.5, 490)
    for part in ("planner", "2/3", "score 0.5000", "best 0.7500", "MACs 49.0%", ":"):
        assert part in shown
    longest = max(len(line) for line in shown.replace("\r", "\n").splitlines())
    assert longest <= 80 + len("\x1b[2K\x1b[1A")
    last: Any = terminal.episode(2, None, 480, "ValueError: [boom]")
    assert "episode 2 failed: ValueError: [boom]" in last
    terminal.progress.close()
    assert "planner 3/3: best 0.7500" in terminal.file.getvalue()


def test_help_and_version_need_neither_torch_nor_scipy() -> None:
    program = (
        "import sys; sys.argv = ['amc', *{!r}]\n"
        "from amc.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(sorted({{'torch', 'scipy', 'numpy'}} & sys.modules.keys()), end.code)"
    )
    for words in (["--help"], ["--version"], ["search", "--help"], ["finetune", "--help"]):
        done = subprocess.run([sys.executable, "-c", program.format(words)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[] 0"


def test_what_a_search_does_not_need_is_not_imported_with_it() -> None:
    heavy = "{'onnx', 'onnxruntime', 'onnxscript', 'scipy.optimize', 'torchvision', 'timm', 'torchmetrics', 'typer'}"
    program = f"import sys, amc; amc.compress; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_a_search_needs_at_its_end_or_never_is_not_imported_before(tmp_path: Path) -> None:
    never = {"scipy", "torchvision", "timm", "torchmetrics", "sklearn", "onnxscript", "PIL.JpegImagePlugin"}
    late = {"jinja2", "amc.report.page", "amc.cli.jobs.finetune", "amc.cli.jobs.schedule"}
    program = (
        "import sys; from amc.cli import main; from amc.compression.progress import ProgressBar\n"
        "def stage(self, name): print(name, sorted(set(sys.modules) & set({!r})), file=sys.stderr)\n"
        "ProgressBar.stage = stage; sys.argv[1:] = {!r}; main()"
    )
    command = ["search", "digits_cnn", "--episodes", "1", "--baseline", "none", "--finalists", "0"]
    command += ["--recover-time", "1", "--out", str(tmp_path / "run")]
    words = [sys.executable, "-c", program.format(sorted(never | late), command)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "\nsearch (planner) []\n" in done.stderr
    assert "\nresult []\n" in done.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
def test_a_command_uses_freed_memory_again() -> None:
    """Blocks of 64 MiB went back to the system: each new one then cost 16,384 page faults."""
    program = (
        "import resource, torch; from amc.cli.memory import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use():\n    for _ in range(40): torch.ones(1 << 24)\n"
        "use(); before = faults(); use(); print(kept, faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("this version of the GNU C library refuses blocks this large")
    assert int(faults) < 16_000


def test_version_is_that_of_the_package() -> None:
    done = amc("--version")
    assert (done.code, done.stdout.strip()) == (0, f"amc {version('amc-compress')}")


def test_everything_that_the_package_names_is_there() -> None:
    assert {name for name in package.__all__ if getattr(package, name, None) is None} == set()
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="module 'amc' has no attribute 'compres'"):
        _ = package.compres
