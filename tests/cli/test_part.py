"""`--part` on the command line: a detector of a factory, searched, stopped, resumed, exported; and `amc inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import amc as library
from amc.run.weights import pack, read_state
from tests.commands import Finished, amc, contents
from tests.detector import Detector, share_found, trained

FACTORIES = """
from tests.detector import Detector as detector, scenes, share_found

def data():
    images, _, labels = scenes(200, 1)
    return {"train": (images[:150], labels[:150]), "test": (images[150:], labels[150:])}
"""
SEARCH = ("--episodes", 6, "--agent", "random", "--baseline", "none", "--recover", "none", "--no-test")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("part")
    (folder / "shapes_of_mine.py").write_text(FACTORIES)
    (folder / "trained.safetensors").write_bytes(pack(trained().state_dict()))
    return folder


def search(place: Path, out: str, *more: object, **run: object) -> Finished:
    return amc(
        "search", "shapes_of_mine:detector", "--weights", "trained.safetensors", "--data", "shapes_of_mine:data",
        "--evaluate", "shapes_of_mine:share_found", "--part", "backbone", "--out", out, *SEARCH, *more,
        cwd=place, **run,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished search."""
    done = search(place, "run")
    assert done.code == 0, done.stderr
    assert "part      only 'backbone' was pruned" in done.stdout
    return place / "run"


def test_a_search_that_was_killed_goes_on_to_the_same_bytes(run: Path, place: Path) -> None:
    journal = place / "killed/journal.jsonl"
    killed = search(place, "killed", kill_when=lambda: journal.exists() and journal.read_text().count("\n") > 3)
    assert killed.code < 0
    done = amc("resume", place / "killed", cwd=place)
    assert done.code == 0, done.stderr
    whole, resumed = contents(run), contents(place / "killed")
    for name in ("journal.jsonl", "policy.json", "model.safetensors"):
        assert whole[name] == resumed[name], name


def test_the_run_loads_with_a_network_and_its_score_is_that_of_the_whole(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert (config["part"], config["count"]) == ("backbone", "part")
    assert summary["slim"]["macs"] <= 0.5 * summary["dense"]["macs"]
    slim = library.load_run(run, Detector(), torch.zeros(1, 1, 16, 16))
    assert share_found(slim) == summary["slim"]["score"]


def test_a_file_for_a_runtime_has_the_part_alone_and_says_so(run: Path, place: Path) -> None:
    done = amc("export", run, "--format", "torch", "--out", place / "backbone.pt2", "--json", cwd=place)
    assert done.code == 0, done.stderr
    assert done.json["part"] == "backbone"
    assert done.json["real_images"] == 8
    assert set(done.json["errors"]) >= {"random", "real"}
    program = torch.export.load(place / "backbone.pt2").module()
    images = torch.rand(1, 1, 16, 16)
    slim = library.load_run(run, Detector(), torch.zeros(1, 1, 16, 16))
    with torch.no_grad():
        for ours, theirs in zip(program(images).values(), slim.get_submodule("backbone")(images).values(), strict=True):
            torch.testing.assert_close(ours, theirs)
    told = amc("export", run, "--format", "torch", "--out", place / "again.pt2", cwd=place)
    assert "backbone alone: the rest of the network is not in the file" in told.stdout


def test_latency_is_that_of_the_part_and_says_so(run: Path, place: Path) -> None:
    done = amc("latency", run, "--runtime", "eager", "--rounds", 3, "--max-seconds", 0, "--json", cwd=place)
    assert done.code == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert done.json["part"] == "backbone"
    assert {name: each["macs"] for name, each in done.json["networks"].items()} == {
        name: summary[name]["macs"] for name in ("dense", "slim")
    }


def test_inspect_shows_the_part(place: Path) -> None:
    arguments = ("inspect", "shapes_of_mine:detector", "--input", "1x16x16")
    done = amc(*arguments, "--part", "backbone", "--json", cwd=place)
    assert done.code == 0, done.stderr
    assert (done.json["part"], done.json["calls"], done.json["notes"]) == ("backbone", 1, [])
    assert [group["name"] for group in done.json["groups"]] == ["stem.0", "body.0"]
    assert done.json["certificate"]["passed"]
    shown = amc(*arguments, "--part", "backbone", cwd=place)
    assert shown.stdout.startswith("shapes_of_mine:detector, part backbone, input 1x16x16: 396.3 k MACs")
    assert (
        "has no part 'backbon'; the nearest are backbone" in amc(*arguments, "--part", "backbon", cwd=place).complaint
    )
    assert "part is empty" in amc(*arguments, "--part", "", cwd=place).complaint
    assert "(--part backbone)" in amc(*arguments, cwd=place).complaint


def test_a_study_refuses_what_the_whole_cannot_hold(place: Path) -> None:
    done = amc(
        "study", "shapes_of_mine:detector", "--weights", "trained.safetensors", "--data", "shapes_of_mine:data",
        "--evaluate", "shapes_of_mine:share_found", "--part", "backbone", "--count", "whole", "--budgets", "50%,1%",
        "--metrics", "macs", "--methods", "channel", "--rewards", "none", "--max-drops", "none", "--runtimes", "none",
        "--episodes", 2, "--out", "study", "--dry-run", "--json", cwd=place,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    cells = {cell["name"]: cell["reason"] for cell in done.json["cells"]}
    assert cells["channel-macs-50-seed-0"] is None
    assert "cannot be reached" in cells["channel-macs-1-seed-0"]


# Workers find the user's module, and not the package of these tests: it imports nothing of them.
LOOPING = """
import torch
from torch import nn

class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 12, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(48, 4),
        )

    def forward(self, x):  # one image after the other: a classifier, but nothing that torch.export follows
        return torch.stack([self.body(each[None])[0] for each in x if each.sum() > -1e9])

def labelled(count, seed):
    x = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, Looping().eval()(x).argmax(1)

def data():
    return {"train": labelled(96, 1), "test": labelled(64, 2)}
"""


def looping(*more: object) -> tuple[object, ...]:
    return (
        "search", "looping:Looping", "--data", "looping:data", "--part", "body", *SEARCH, "--batch", 2,
        "--certify", 0, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops")
    (folder / "looping.py").write_text(LOOPING)
    return folder


def test_workers_score_a_part_within_its_whole(loops: Path) -> None:
    for name, more in (("alone", ()), ("workers", ("--workers", 2))):
        done = amc(*looping("--out", name, *more), cwd=loops)
        assert done.code == 0, done.stderr
    alone, workers = contents(loops / "alone"), contents(loops / "workers")
    for name in ("journal.jsonl", "policy.json", "model.safetensors"):
        assert alone[name] == workers[name], name


def test_the_whole_is_fine_tuned_and_masked_weights_of_the_part_stay_zero(loops: Path) -> None:
    done = amc(*looping("--out", "masked", "--method", "fine-grained"), cwd=loops)
    assert done.code == 0, done.stderr
    done = amc("finetune", loops / "masked", "--epochs", 1, "--candidates", 2, "--candidate-epochs", 1, cwd=loops)
    assert done.code == 0, done.stderr
    before, after = (read_state(loops / f"masked/model{kind}.safetensors") for kind in ("", "-finetuned"))
    assert before.keys() == after.keys()
    assert all(name.startswith("body.") for name in before)  # under the names of the whole network
    masked = [name for name, value in before.items() if value.ndim > 1 and (value == 0).any()]
    assert masked
    for name in masked:
        assert torch.equal(before[name] == 0, after[name] == 0), name
        assert not torch.equal(before[name], after[name]), name


def test_a_schedule_prunes_the_part_round_by_round(loops: Path) -> None:
    schedule = ("--schedule", "0.8,0.6", "--round-epochs", 1, "--out", "rounds")
    done = amc(*looping(*schedule), cwd=loops)
    assert done.code == 0, done.stderr
    last = json.loads((loops / "rounds/summary.json").read_text())
    assert last["rounds"][-1]["macs"] <= 0.6 * last["dense"]["macs"]
