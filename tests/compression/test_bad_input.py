"""Every mistake of the user: exit code 2, one line with the value and the remedy, and all files as they were."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from amc.run.directory import RunDir
from amc.zoo import create_model
from tests.commands import amc, contents

QUICK = (
    "--recover",
    "none",
    "--episodes",
    12,
    "--search-images",
    50,
    "--calibration-images",
    64,
    "--bn-images",
    32,
    "--certify",
    0,
    "--no-test",
)

OWN = """
import math
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:  # LINE
            x = x * 2
        return x.mean((2, 3))

def branching():
    return Branching()

def poisoned():
    model = network()
    nn.init.constant_(model[2].weight, math.nan)
    return model

def locked():
    return nn.Sequential(nn.Conv2d(1, 3, 9), nn.Flatten())

def number():
    return 3

def fails():
    raise KeyError("no\\nsuch thing")

not_callable = 7

def images(count, seed=0):
    x = torch.randn(count, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % 3

def data():
    return {"train": images(60), "search": images(20, 1), "test": images(20, 2)}

def no_search():
    return data() | {"search": images(0)}

def nan_images():
    x, y = images(20)
    return data() | {"search": (x * math.nan, y)}

def no_test():
    return {"train": images(60)}

def three_channels():
    return {name: (x.repeat(1, 3, 1, 1), y) for name, (x, y) in data().items()}

def channels(module):
    return sum(p.shape[0] for p in module.parameters() if p.ndim == 4)

def always_nan(module):
    return math.nan

def always_raises(module):
    raise ValueError("no camera\\nattached")

def nan_when_slim(module):
    return math.nan if channels(module) < 26 else 1.0

def raises_when_slim(module):
    if channels(module) < 26:
        raise ValueError("no camera\\nattached")
    return 1.0

calls = 0

def sometimes(module):
    global calls
    calls += 1
    if calls % 4 == 3:
        raise ValueError("no camera")
    return math.nan if calls % 4 == 0 else channels(module) / 26
"""

BRANCH = 1 + next(number for number, line in enumerate(OWN.splitlines()) if "LINE" in line)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with the user's code and other files that must stay."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("a file, no directory")
    torch.save(create_model("resnet20").state_dict(), tmp_path / "resnet20.pt")
    return tmp_path


def refused(place: Path, *arguments: object, **how: object) -> str:
    """The complaint about this command, which must leave every file as it was."""
    before = contents(place)
    complaint = amc(*arguments, cwd=place, **how).complaint  # type: ignore[arg-type]
    after = {name: value for name, value in contents(place).items() if "__pycache__" not in name}
    assert after == {name: value for name, value in before.items() if "__pycache__" not in name}
    return complaint


SEARCH = ("search", "digits_cnn", "--out", "run")
OWN_SEARCH = ("search", "own:network", "--data", "own:data", "--out", "run", *QUICK[:4], "--certify", 0)
CASES: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "unknown model": (("inspect", "digit_cnn"), ("unknown model 'digit_cnn'", "did you mean digits_cnn")),
    "unknown model, search": (("search", "resnet21", "--out", "run"), ("unknown model 'resnet21'", "resnet20")),
    "unknown module": (
        ("inspect", "nowhere:net", "--input", "1x9x9"),
        ("factory 'nowhere:net' cannot be imported", "No module named 'nowhere'", "check the name"),
    ),
    "unknown factory": (("inspect", "own:nett", "--input", "1x9x9"), ("'own:nett'", "no attribute 'nett'")),
    "no callable": (("inspect", "own:not_callable", "--input", "1x9x9"), ("'own:not_callable' is a int",)),
    "no network": (("inspect", "own:number", "--input", "1x9x9"), ("returned a int", "must return a torch.nn.Module")),
    "failing factory": (("inspect", "own:fails", "--input", "1x9x9"), ("'own:fails' failed (KeyError", "own.py:")),
    "no input shape": (("inspect", "own:network"), ("'own:network'", "--input 3x224x224")),
    "malformed input shape": (("inspect", "digits_cnn", "--input", "8by8"), ("'8by8' is malformed; write 3x224x224",)),
    "zero input shape": (("inspect", "digits_cnn", "--input", "1x0x8"), ("'1x0x8' is malformed",)),
    "wrong channels": (("inspect", "digits_cnn", "--input", "3x8x8"), ("DigitsCNN does not take the example",)),
    "missing dimension": (("inspect", "digits_cnn", "--input", "8"), ("DigitsCNN does not take the example input",)),
    "control flow on data": (
        ("inspect", "own:branching", "--input", "1x9x9"),
        ("torch.export cannot trace Branching", f"own.py:{BRANCH}"),
    ),
    "control flow on data, search": (
        ("search", "own:branching", "--data", "own:data", "--out", "run"),
        ("torch.export cannot trace Branching", "own.py:"),
    ),
    "nothing to prune": (
        ("search", "own:locked", "--data", "own:data", "--out", "run"),
        ("nothing to prune in Sequential: '0' (network output)",),
    ),
    "no data": (("search", "own:network", "--out", "run"), ("no data set given", "--data")),
    "no weights": (("search", "resnet20", "--data", "digits", "--out", "run"), ("'resnet20'", "--weights FILE")),
    "misspelt data": ((*SEARCH, "--data", "cifar:photos"), ("unknown data 'cifar:photos'", "mean cifar10:photos?")),
    "unknown data": ((*SEARCH, "--data", "digit"), ("unknown data 'digit'", "did you mean digits?")),
    "missing folder": (
        (*SEARCH, "--data", "cifar10:nowhere"),
        ("data 'cifar10:nowhere'", "folder 'nowhere' not found; check the path"),
    ),
    "unknown data factory": ((*SEARCH, "--data", "own:dat"), ("factory 'own:dat' cannot be imported",)),
    "data factory of the wrong kind": ((*SEARCH, "--data", "own:number"), ("returned a int", "mapping of splits")),
    "no test split": ((*SEARCH, "--data", "own:no_test"), ("'own:no_test' has no test", "give train and test")),
    "data of another shape": (
        ("search", "own:network", "--data", "own:three_channels", "--out", "run"),
        ("'own:network' cannot take 3x9x9 images of 'own:three_channels'", "choose fitting data"),
    ),
    "empty search set": (
        ("search", "own:network", "--data", "own:no_search", "--out", "run"),
        ("empty", "at least one image"),
    ),
    "no search images": ((*SEARCH, "--search-images", 0), ("search images must be at least 1, got 0",)),
    "too many search images": ((*SEARCH, "--search-images", 9999), ("at most the 400 of 'digits', got 9999",)),
    "missing weights": ((*SEARCH, "--weights", "none.pt"), ("none.pt' not found; check the path",)),
    "damaged weights": ((*SEARCH, "--weights", "file"), ("/file'",)),
    "weights of another network": (
        (*SEARCH, "--weights", "resnet20.pt"),
        (
            "resnet20.pt' do not fit DigitsCNN",
            "missing: ",
            "unexpected: ",
            "of another shape: conv1.weight [16, 3, 3, 3] instead of [8, 1, 3, 3]",
            "choose the network these weights were saved from",
        ),
    ),
    "budget out of reach": ((*SEARCH, "--budget", "macs<=3%"), ("macs<=3% cannot be reached", "% or more")),
    "parameters out of reach": ((*SEARCH, "--budget", "params<=100"), ("params<=100 cannot be reached", "% or more")),
    "budget without a unit": ((*SEARCH, "--budget", "macs<=50"), ("network to 50 MACs; write macs<=50% to keep",)),
    "no run and no network": (("latency", "nowhere"), ("'nowhere' is neither the directory of a run nor a network",)),
    "misspelt timm network": (("inspect", "timm:resnet19"), ("timm has no model 'resnet19'; did you mean", "resnet18")),
    "misspelt torchvision network": (("inspect", "torchvision:resnt18"), ("did you mean", "resnet18")),
    "flat input": (("inspect", "resnet20", "--input", "32"), ("without the batch, such as 3x32x32",)),
    "budget malformed": ((*SEARCH, "--budget", "half"), ("budget 'half' is malformed", '"macs<=50%" to keep')),
    "budget empty": ((*SEARCH, "--budget", ""), ("budget '' is malformed",)),
    "budget zero": ((*SEARCH, "--budget", "macs<=0%"), ("'macs<=0%' must be above zero",)),
    "budget negative": ((*SEARCH, "--budget", "macs<=-5%"), ("'macs<=-5%' must be above zero",)),
    "budget above everything": ((*SEARCH, "--budget", "macs<=150%"), ("macs<=150%", "at most 100%")),
    "budget above the network": ((*SEARCH, "--budget", "macs<=1G"), ("macs<=1000000000 is above the dense network's",)),
    "budget NaN": ((*SEARCH, "--budget", "macs<=nan%"), ("budget 'macs<=nan%' is malformed",)),
    "budget of an unknown metric": ((*SEARCH, "--budget", "energy<=50%"), ("'energy' is unknown; known: macs",)),
    "budget of two limits": ((*SEARCH, "--budget", "macs<=50%,flops<=40%"), ("limits macs twice",)),
    "no episodes": ((*SEARCH, "--episodes", 0), ("episodes must be at least 1, got 0",)),
    "no episodes, demo": (("demo", "--episodes", 0, "--out", "run"), ("episodes must be at least 1, got 0",)),
    "unknown agent": ((*SEARCH, "--agent", "qqq"), ("'qqq'", "planner, ddpg, random, uniform")),
    "unknown option of an agent": ((*SEARCH, "--agent-option", "narowing=1"), ("'narowing'", "'narrowing'")),
    "option of an agent out of range": ((*SEARCH, "--agent-option", "narrowing=2"), ("narrowing must be in [0, 1]",)),
    "option of an agent without a value": ((*SEARCH, "--agent-option", "narrowing"), ("must be NAME=VALUE",)),
    "unknown baseline": ((*SEARCH, "--baseline", "greedy"), ("baselines must be", "random", "greedy")),
    "unknown method": ((*SEARCH, "--method", "blocks"), ("unknown method 'blocks'; choose channel, fine-grained",)),
    "no such N:M": ((*SEARCH, "--method", "4:2"), ("keeps 4 of 2 weights",)),
    "sparsity of one": (
        (*SEARCH, "--method", "fine-grained", "--max-sparsity-linear", "1"),
        ("max-sparsity-linear must be in [0, 1), got 1.0",),
    ),
    "negative sparsity": ((*SEARCH, "--max-sparsity", "-0.1"), ("max-sparsity must be in [0, 1), got -0.1",)),
    "N:M out of reach": (
        (*SEARCH, "--method", "2:4", "--budget", "params<=25%"),
        ("budget params<=25% cannot be reached", "raise the budget to"),
    ),
    "masks, unknown layer": (
        (*SEARCH, "--method", "rows", "--lock", "layer9.*"),
        ("'layer9.*' matches no layer", "amc inspect"),
    ),
    "unknown reward": ((*SEARCH, "--reward", "r_speed"), ("reward 'r_speed' is unknown; use one of r_err, r_flops",)),
    "no budget and no reward": ((*SEARCH, "--budget", "none"), ("keeps the whole network; give a budget",)),
    "max-drop and a budget": (
        (*SEARCH, "--max-drop", "1", "--budget", "macs<=50%"),
        ("max-drop 1 already seeks the smallest network", "'macs<=50%'"),
    ),
    "negative max-drop": ((*SEARCH, "--max-drop", "-1"), ("max-drop must be points of accuracy in [0, 100), got -1",)),
    "max-drop that no image count can tell": (
        (*SEARCH, "--max-drop", "0.1"),
        ("max-drop 0.1 cannot be told on 200 confirmation images", "give more images"),
    ),
    "confidence of one": ((*SEARCH, "--max-drop", "1", "--confidence", "1"), ("confidence must be in [0.5, 1)",)),
    "what to minimise": (
        (*SEARCH, "--max-drop", "1", "--minimise", "time"),
        ("macs, params, size, memory or latency",),
    ),
    "rising schedule": ((*SEARCH, "--schedule", "0.5,0.6"), ("rises from 0.5 to 0.6; every round must keep less",)),
    "malformed schedule": ((*SEARCH, "--schedule", "half"), ("schedule 'half' is malformed; write falling",)),
    "schedule above one": ((*SEARCH, "--schedule", "1.5,0.5"), ("schedule '1.5,0.5' has 1.5",)),
    "schedule and another end": (
        (*SEARCH, "--schedule", "0.5,0.4", "--budget", "params<=30%"),
        ("budget 'params<=30%' differs from the end of the schedule (0.4)",),
    ),
    "schedule of latencies": (
        (*SEARCH, "--schedule", "0.5,0.4", "--budget", "latency"),
        ("a schedule lowers MACs, parameters or size",),
    ),
    "schedule that ends out of reach": (
        (*SEARCH, "--method", "fine-grained", "--schedule", "0.5,0.1"),
        ("budget params<=10% cannot be reached",),
    ),
    "schedule and max-drop": (
        (*SEARCH, "--schedule", "0.5,0.4", "--max-drop", "1"),
        ("leave max-drop and reward out",),
    ),
    "unknown group": ((*SEARCH, "--lock", "layer9.*"), ("'layer9.*' matches no prunable group", "amc inspect")),
    "out is a file": (("search", "digits_cnn", "--out", "file"), ("'file' is a file; give a directory",)),
    "out below a file": ((*SEARCH[:3], "file/run", *QUICK), ("file/run' cannot be written (Not a directory)",)),
    "out holds other files": (
        ("search", "digits_cnn", "--out", "taken"),
        ("'taken' is not empty (it holds thesis.tex); choose another directory",),
    ),
    "demo where other files are": (("demo", "--out", "taken"), ("'taken' is not empty",)),
    "resume nothing": (("resume", "nowhere"), ("no run directory 'nowhere'; give the directory",)),
    "resume no run": (("resume", "taken"), ("'taken' holds no run (config.json is missing)",)),
    "finetune nothing": (("finetune", "nowhere"), ("no run directory 'nowhere'",)),
    "report nothing": (("report", "taken"), ("'taken' holds no run",)),
    "evaluate unknown": ((*OWN_SEARCH, "--evaluate", "own:nothing"), ("'own:nothing' cannot be imported",)),
    "evaluate NaN": ((*OWN_SEARCH, "--evaluate", "own:always_nan"), ("evaluate returned nan", "finite number")),
    "evaluate raises": (
        (*OWN_SEARCH, "--evaluate", "own:always_raises"),
        ("evaluate fails on the dense network (ValueError: no camera)",),
    ),
    "search images NaN": (
        ("search", "own:network", "--data", "own:nan_images", "--out", "run"),
        ("logits are NaN; check its weights and the normalisation",),
    ),
    "weights NaN": (
        ("search", "own:poisoned", "--data", "own:data", "--out", "run"),
        ("logits are NaN; check its weights",),
    ),
    "weights NaN, own evaluate": (
        ("search", "own:poisoned", "--data", "own:data", "--out", "run", "--evaluate", "own:channels"),
        ("calibration gives NaN or infinite inputs to layer '4.weight'",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_mistake_is_one_line_and_changes_nothing(name: str, place: Path) -> None:
    arguments, parts = CASES[name]
    complaint = refused(place, *arguments)
    for part in parts:
        assert part in complaint
    assert not (place / "run").exists()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "weights.safetensors"])
def test_weights_that_hold_code_are_not_run(name: str, place: Path) -> None:
    if name == "weights.pt":
        torch.save({"conv1.weight": Bomb()}, place / name)
    else:
        (place / name).write_bytes(pickle.dumps(Bomb()))
    complaint = refused(place, *SEARCH, "--weights", name)
    assert name in complaint
    assert not (place / "exploded").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the built-in network with ordinary weights in a file."""
    place = tmp_path_factory.mktemp("finished")
    model = create_model("digits_cnn")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    safetensors.torch.save_file(model.state_dict(), place / "weights.safetensors")
    done = amc(*SEARCH, "--weights", "weights.safetensors", *QUICK, cwd=place)
    assert done.code == 0, done.stderr
    return place


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The same run, stopped in its sixth episode; weights moved along."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copy(finished / "weights.safetensors", tmp_path)
    run = tmp_path / "run"
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(lines[:6]))
    for name in ("summary.json", "policy.json", "model.safetensors", "report.html"):
        (run / name).unlink()
    config = json.loads((run / "config.json").read_text())
    config["weights"] = str(tmp_path / "weights.safetensors")
    del config["sha256"]  # what changes the file on purpose removes its digest
    (run / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_out_that_holds_another_run_names_it(finished: Path) -> None:
    assert refused(finished, *SEARCH) == (
        "'run' already holds a run (digits_cnn, macs<=50%, 12 of 12 episodes); "
        "continue it with `amc resume run`, or choose another directory"
    )
    assert "already holds a run" in refused(finished, "demo", "--out", "run")  # not one of the demo's


def test_a_demo_never_touches_a_run(stopped: Path) -> None:
    config = json.loads((stopped / "run" / "config.json").read_text())
    (stopped / "run" / "config.json").write_text(json.dumps(config | {"command": "demo"}))
    before = contents(stopped)
    assert "seed must be at least 0" in refused(stopped, "demo", "--out", "run", "--seed", -1)
    assert "'run' already holds a run (digits_cnn" in refused(stopped, "demo", "--out", "run")
    assert contents(stopped) == before


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda lines: [*lines[:3], lines[3][:40] + b"\n", *lines[4:]], "is corrupt in line 4"),
        (lambda lines: [*lines[:3], b"\n", *lines[4:]], "is corrupt in line 4"),
        (lambda lines: [*lines[:3], b"\xff\xfe\n", *lines[4:]], "is corrupt in line 4"),
        (lambda lines: [*lines[:3], *lines[4:]], "is corrupt in line 4: it, or its place in the file, was changed"),
        (lambda lines: [b"not json\n", *lines[1:]], "is corrupt in line 1"),
        (lambda lines: [lines[0], lines[1].replace(b'"keep": [', b'"keep": [1, '), *lines[2:]], "is corrupt in line 2"),
    ],
)
def test_a_journal_damaged_in_the_middle_is_named_by_line(
    damage: Callable[[list[bytes]], list[bytes]], part: str, stopped: Path
) -> None:
    journal = stopped / "run" / "journal.jsonl"
    journal.write_bytes(b"".join(damage(journal.read_bytes().splitlines(keepends=True))))
    complaint = refused(stopped, "resume", "run")
    assert part in complaint
    if "line" in part:
        assert f"journal {Path('run/journal.jsonl')} {part}" in complaint
        assert "restore the file from a copy, or delete line" in complaint


def test_a_report_on_a_damaged_journal_names_the_line(stopped: Path) -> None:
    journal = stopped / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"torn\n", *lines[4:]]))
    assert "journal run/journal.jsonl is corrupt in line 4: " in refused(stopped, "report", "run")
    journal.write_bytes(b"".join([b"torn\n", *lines[1:]]))
    assert "journal run/journal.jsonl is corrupt in line 1: " in refused(stopped, "report", "run")


def test_a_torn_last_line_is_repaired_without_a_word(stopped: Path, finished: Path) -> None:
    journal = stopped / "run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-25])
    done = amc("resume", "run", cwd=stopped)
    assert done.code == 0, done.stderr
    assert "journal" not in done.stderr
    for name in ("journal.jsonl", "policy.json", "model.safetensors"):
        assert (stopped / "run" / name).read_bytes() == (finished / "run" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["config.json", "policy.json", "summary.json"])
def test_damaged_json_is_named(name: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:30])
    command = ("finetune", "run", "--epochs", 1)
    assert f"run/{name}' is not valid JSON in line" in refused(tmp_path, *command)


def test_resume_with_other_weights_is_refused(stopped: Path) -> None:
    model = create_model("digits_cnn")
    safetensors.torch.save_file(model.state_dict(), stopped / "weights.safetensors")
    assert "'run' was started with other weights" in refused(stopped, "resume", "run")
    (stopped / "weights.safetensors").unlink()
    assert "weights.safetensors' not found" in refused(stopped, "resume", "run")


def test_another_process_at_the_same_run_is_named(stopped: Path, finished: Path, tmp_path: Path) -> None:
    with RunDir.open(stopped / "run").lock():
        complaint = refused(stopped, "resume", "run")
    assert f"another process (pid {os.getpid()}) is writing to 'run'; wait for it, stop it, or choose" in complaint
    with RunDir.open(finished / "run").lock():
        assert "another process" in refused(finished, "finetune", "run", "--epochs", 1)


def test_finetuning_needs_a_finished_search_and_fitting_options(stopped: Path, finished: Path) -> None:
    assert refused(stopped, "finetune", "run") == ("'run' has no finished search yet; run `amc resume run` first")
    for option, value in (("--epochs", 0), ("--lr", 0), ("--distill", 1.5), ("--label-smoothing", 1)):
        name = option.removeprefix("--").replace("-", "_")
        assert f"fine-tuning {name} is out of range: " in refused(finished, "finetune", "run", option, value)


def test_a_run_from_python_is_resumed_and_finetuned_in_python(stopped: Path) -> None:
    path = stopped / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["model"]
    path.write_text(json.dumps(config))
    assert "was started from Python" in refused(stopped, "resume", "run")
    (stopped / "run" / "summary.json").write_text("{}")
    assert "was started from Python" in refused(stopped, "finetune", "run")


@pytest.mark.parametrize(("evaluate", "reason"), [("nan_when_slim", "nan"), ("raises_when_slim", "no camera")])
def test_an_evaluate_that_always_fails_ends_the_search_with_its_reason(evaluate: str, reason: str, place: Path) -> None:
    before = contents(place)
    done = amc(*OWN_SEARCH, "--evaluate", f"own:{evaluate}", cwd=place)
    assert reason in done.complaint
    assert "episodes failed" in done.complaint
    assert "episode 0 failed: " in done.stderr
    assert all(contents(place)[name] == value for name, value in before.items())
    journal = (place / "run" / "journal.jsonl").read_text().splitlines()
    assert 10 <= len(journal) - 1 <= 12
    assert all(json.loads(line)["score"] is None and reason in json.loads(line)["error"] for line in journal[1:])


def test_an_evaluate_that_sometimes_fails_is_recorded_and_survived(place: Path) -> None:
    done = amc(*OWN_SEARCH, "--evaluate", "own:sometimes", "--round-to", 1, "--json", cwd=place)
    assert done.code == 0, done.stderr
    records = [json.loads(line) for line in (place / "run" / "journal.jsonl").read_text().splitlines()[1:]]
    failed = [record for record in records if record["score"] is None]
    assert 0 < len(failed) < len(records) == 12
    assert {record["error"].split(";")[0] for record in failed} <= {"ValueError: no camera", "evaluate returned nan"}
    assert done.json["failed_episodes"] == len(failed)
    assert sum("failed: " in line for line in done.stderr.splitlines()) >= len(failed)


def test_a_full_disk_is_reported_and_the_search_resumes_with_free_space(stopped: Path, finished: Path) -> None:
    """At every stage: the journal, the timings, the network, the policy, the summary, the report."""
    run = stopped / "run"
    kept, copy = run / "prepared.safetensors", stopped / "copy"  # it would fill the disk before all others
    shutil.copytree(run, copy)
    while not kept.exists():  # a search that ends before it is killed removes it
        shutil.rmtree(run)
        shutil.copytree(copy, run)
        amc("resume", "run", cwd=stopped, kill_when=kept.exists)
    complaints = set()
    for room in (0, 700, 10_000, 74_000, 78_000):
        before = (run / "journal.jsonl").read_bytes()
        complaints.add(amc("resume", "run", cwd=stopped, bytes_left=room).complaint.split("run/")[-1])
        after = (run / "journal.jsonl").read_bytes()
        assert after.startswith(before)
        assert after.endswith(b"\n")
        assert not (run / "report.html").exists()
        assert not [path for path in run.iterdir() if path.suffix == ".tmp"]
    assert len(complaints) >= 3
    done = amc("resume", "run", cwd=stopped)
    assert done.code == 0, done.stderr
    for name in ("journal.jsonl", "policy.json", "model.safetensors"):
        assert (run / name).read_bytes() == (finished / "run" / name).read_bytes(), name


def test_a_new_search_on_a_full_disk_leaves_no_run(place: Path) -> None:
    complaint = amc(*SEARCH, *QUICK, cwd=place, bytes_left=10).complaint
    assert "no space left to write 'run/config.json'; free some, then run the command again" in complaint
    assert not (place / "run").exists()
    assert amc(*SEARCH, *QUICK, cwd=place).code == 0  # the remedy works


def test_a_file_system_that_is_full(place: Path) -> None:
    """The same on a real one, where the machine lets us mount it."""
    small = place / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs rights that are not given here")
    try:
        complaint = amc(*SEARCH[:3], "small/run", *QUICK, cwd=place).complaint
        assert "no space left" in complaint or "No space left on device" in complaint
        assert "free some" in complaint
        assert (small / "run" / "journal.jsonl").read_bytes().endswith(b"\n")
        subprocess.run(["mount", "-o", "remount,size=2m", small], check=True)
        done = amc("resume", "small/run", cwd=place)
        assert done.code == 0, done.stderr
        assert (small / "run" / "report.html").exists()
    finally:
        subprocess.run(["umount", small], check=True)
