"""`amc compare` and `amc.compare` on real runs: the networks scored again, image by image."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc as package
from amc.cli.jobs.compare import run_compare
from amc.errors import DataError, ModelError, RunError
from amc.run.directory import RunDir
from amc.zoo import create_model, load_data, load_weights, model_info
from tests.commands import amc
from tests.fixtures.runs import make, small
from tests.report.pages import Page, words

SEARCH = ("--episodes", 3, "--agent", "random", "--certify", 0, "--recover-time", 0.5)
EXAMPLE = torch.zeros(1, *small.SHAPE)
IMAGES = 400  # of the search split of the digits; a search leaves the last quarter


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs of the digits: two sizes, the second fine-tuned, and a masked one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "half": ("--budget", "macs<=50%"),
        "third": ("--budget", "macs<=30%"),
        "fine": ("--budget", "params<=30%", "--method", "fine-grained"),
    }.items():
        done = amc("search", "digits_cnn", "--out", folder / name, *SEARCH, *options)
        assert done.code == 0, done.stderr
    assert amc("finetune", folder / "third", "--epochs", 1).code == 0
    return folder


@pytest.fixture(scope="module")
def compared(runs: Path) -> Any:
    done = amc("compare", "half", "third", "fine", "--out", "page.html", "--json", cwd=runs)
    assert done.code == 0, done.stderr
    assert done.stderr.splitlines() == ["· score of A, half", "· score of B, third", "· score of C, fine"]
    return done.json


def watched(*paths: Path, **options: Any) -> Any:
    return run_compare(paths, progress=make.Watch(), **options)


def dense() -> nn.Module:
    model, info = create_model("digits_cnn"), model_info("digits_cnn")
    assert info is not None
    load_weights(model, Path(str(info.weights)))
    return model.eval()


def digits() -> tuple[Tensor, Tensor]:
    """All images of the search split, in order, and their labels."""
    batches = list(load_data("digits").search.batches(IMAGES))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def last_quarter(model: nn.Module) -> Tensor:
    """Which of the images that no search scores the network has right."""
    images, labels = digits()
    chosen = torch.ones(IMAGES, dtype=torch.bool)
    chosen[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[: 3 * IMAGES // 4]] = False
    with torch.inference_mode():
        return (model(images[chosen]).argmax(1) == labels[chosen]).cpu()


def share(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def test_scores_and_paired_differences_are_those_of_the_stored_networks(runs: Path, compared: Any) -> None:
    right = {label: last_quarter(package.load_run(runs / name)) for label, name in zip("ABC", NAMES, strict=True)}
    before = last_quarter(dense())
    assert (compared["images"], compared["unseen"], compared["shared_dense"]) == (100, True, True)
    for network in compared["networks"]:
        now = right[network["label"]]
        assert network["compared"] == share(now)
        against = network["against_dense"]
        assert (against["lost"], against["gained"]) == (int((before & ~now).sum()), int((~before & now).sum()))
        assert against["difference"] == pytest.approx(share(now) - share(before))
    assert len(compared["differences"]) == 6
    for pair in compared["differences"]:
        one, other = right[pair["against"]], right[pair["of"]]
        lost, gained = int((one & ~other).sum()), int((~one & other).sum())
        assert (pair["lost"], pair["gained"]) == (lost, gained)
        assert pair["standard_error"] == pytest.approx(math.sqrt(lost + gained + 4 - (lost - gained) ** 2 / 100) / 100)


NAMES = ("half", "third", "fine")


def test_the_record_has_what_the_runs_say(runs: Path, compared: Any) -> None:
    for network, name in zip(compared["networks"], NAMES, strict=True):
        summary = RunDir(runs / name).read_json("summary.json")
        assert (network["run"], network["slim"], network["dense"]) == (name, summary["slim"], summary["dense"])
        assert (network["method"], network["seconds"]) == (summary["method"], summary["seconds"])
    assert compared["recommendation"]["cost"] == "size"  # a masked network beside others
    taken = {network["label"]: network for network in compared["networks"]}[compared["recommendation"]["network"]]
    equals = [n for n in compared["networks"] if n["label"] in compared["recommendation"]["equals"]]
    assert taken["slim"]["size"] == min(network["slim"]["size"] for network in equals)


def test_the_terminal_has_80_columns(runs: Path, compared: Any) -> None:
    done = amc("compare", "half", "third", "fine", cwd=runs)
    assert done.code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    assert compared["recommendation"]["sentence"] in text
    assert "compared on 100 images that no search scored" in text
    for network in compared["networks"]:
        assert f"{100 * network['compared']:.2f}%" in text


def test_the_page_is_written_beside_the_output(runs: Path, compared: Any) -> None:
    assert compared["page"] == "page.html"
    html = (runs / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert compared["recommendation"]["sentence"] in words(page)
    assert [value for name, value in page.attributes if name == "href"] == [f"{name}/report.html" for name in NAMES]
    assert "://" not in html


def test_without_scoring_the_files_are_compared(runs: Path) -> None:
    done = amc("compare", runs / "half", runs / "fine", "--no-score", "--json")
    assert (done.stderr, done.json["images"], done.json["differences"]) == ("", None, [])
    slim = RunDir(runs / "half").read_json("summary.json")["slim"]
    assert done.json["networks"][0]["compared"] == slim.get("score_recovered", slim["score"])


def test_comparing_changes_no_run(runs: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file() and path.parent != runs}
    assert amc("compare", runs / "half", runs / "third", "--out", tmp_path / "page.html").code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_mistakes_are_one_line(runs: Path, tmp_path: Path) -> None:
    half, third = runs / "half", runs / "third"
    assert "cannot be compared; name two runs" in amc("compare", half).complaint
    assert "one run is given twice" in amc("compare", half, half).complaint
    assert "no run directory" in amc("compare", half, tmp_path / "nowhere").complaint
    for cost, text in (("latency", "measured alike; choose one that all have: macs"), ("watts", "'watts' is unknown")):
        assert text in amc("compare", half, third, "--no-score", "--cost", cost).complaint
    missing = tmp_path / "no" / "page.html"
    assert f"'{missing}' cannot be written" in amc("compare", half, third, "--no-score", "--out", missing).complaint


def test_a_damaged_network_is_refused(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "half", tmp_path / "half"))
    (copy / "model.safetensors").write_bytes((runs / "fine" / "model.safetensors").read_bytes())
    assert "model.safetensors' is not the file that summary.json describes" in amc(
        "compare", copy, runs / "third"
    ).complaint  # fmt: skip


def test_other_limits_of_search_images_are_compared_on_the_largest(runs: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    assert amc("search", "digits_cnn", "--out", few, *SEARCH, "--budget", "macs<=50%", "--search-images", 80).code == 0
    done = amc("compare", few, runs / "half", "--json")
    assert done.code == 0, done.stderr
    found = done.json
    assert (found["images"], found["unseen"]) == (IMAGES, False)
    images, labels = digits()
    with torch.inference_mode():
        right = package.load_run(few)(images).argmax(1) == labels
    assert found["networks"][0]["compared"] == share(right)


@pytest.mark.parametrize(
    ("settings", "images"),
    [({}, 100), ({"finalists": 0}, IMAGES), ({"finalists": 0, "budget": "none", "max_drop": 5.0}, 100)],
)
def test_only_images_that_no_search_scored_are_called_unseen(
    runs: Path, tmp_path: Path, settings: dict[str, Any], images: int
) -> None:
    """A search for an allowed loss scores the first half, one with finalists three quarters, any other one all."""
    copy = RunDir(Path(shutil.copytree(runs / "half", tmp_path / "half")))
    copy.write_json("config.json", {**copy.config(), **settings})
    found = watched(copy.path, runs / "fine")
    assert found.answers is not None
    assert (found.answers.images, found.answers.unseen) == (images, images == 100)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of version 0.1.0."""
    folder = tmp_path_factory.mktemp("old")
    archive = Path(make.__file__).parent / "0.1.0.tar.xz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_runs_of_an_earlier_version_are_scored_as_they_were(old: Path) -> None:
    kinds = ("channel", "2-4", "tuned", "latency", "schedule", "schedule-fine-grained")
    found = watched(*(old / kind for kind in kinds))
    assert found.answers is not None
    assert (found.answers.images, found.answers.unseen, found.shared_dense) == (80, False, True)
    for entry in found.entries:
        assert found.scores[entry.label] == pytest.approx(entry.score, abs=1.01 / 80)
        assert found.answers.dense[entry.label][0] == pytest.approx(0.9, abs=1.01 / 80)
    schedule = found.entries[4]
    assert (schedule.goal, schedule.slim("macs"), schedule.dense("macs")) == ("macs<=50%", 18_372, 37_184)


def test_unfinished_runs_of_an_earlier_version_are_refused(old: Path) -> None:
    for kind, text in {
        "cut-channel": "3 of 6 episodes", "cut-schedule": "1 of 2 rounds", "cut-tuned": "finish it with `amc finetune",
    }.items():  # fmt: skip
        with pytest.raises(RunError, match=text):
            watched(old / "channel", old / kind)


def test_data_that_is_gone_leaves_the_scores_of_the_files(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise DataError("data 'tests…': folder not found; check the path")

    monkeypatch.setattr("amc.cli.jobs.compare.data_of", gone)
    found = watched(old / "channel", old / "2-4")
    assert found.answers is None
    assert found.notes[0] == ("The networks were not scored again: data 'tests…': folder not found; check the path.")
    assert found.scores == {entry.label: entry.score for entry in found.entries}


def test_networks_of_other_classes_are_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(path: Path) -> nn.Module:
        model = package.load_run(path)
        if Path(path).name == "half":
            return model
        return nn.Sequential(model, nn.ZeroPad1d((0, 2))).eval()  # two more classes, whose logits are 0

    monkeypatch.setattr("amc.cli.jobs.compare.load_run", loaded)
    with pytest.raises(RunError, match=r"cannot be compared: they differ in their classes \(10 and 12\)"):
        watched(runs / "half", runs / "fine")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with a network that has no name."""
    folder = tmp_path_factory.mktemp("own")
    for name, budget in (("a", "macs<=70%"), ("b", "macs<=40%")):
        package.compress(
            small.network(), torch.zeros(1, *small.SHAPE), calibration=[small.images(32, 1)],
            evaluate=[small.data()["search"]], run_dir=folder / name, **{**make.QUICK, "budget": budget},
        )  # fmt: skip
    return folder


def right_of(model: nn.Module, split: str) -> Tensor:
    x, labels = small.data()[split]
    with torch.inference_mode():
        return model.eval()(x).argmax(1) == labels


def test_networks_without_a_name_are_compared_in_python(own: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    paths = [own / "a", own / "b"]
    found = package.compare(paths, small.network(), EXAMPLE, evaluate=[small.data()["search"]], page=page)
    assert found.answers is not None
    assert (found.answers.images, found.answers.unseen) == (80, False)
    slim = [package.load_run(path, small.network(), EXAMPLE) for path in paths]
    right = [right_of(model, "search") for model in slim]
    assert list(found.scores.values()) == [share(mask) for mask in right]
    pair = found.answers.pairs["A", "B"]
    assert (pair.lost, pair.gained) == (int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum()))
    assert found.answers.dense["A"][0] == 0.9
    assert found.taken in map(str, paths)
    assert repr(found) == f"Compared(2 networks; take {found.choice.taken} ({found.taken}))"[:120]
    assert found.sentence() in words(Page(page.read_text(encoding="utf-8")))


def test_other_data_may_be_given(own: Path) -> None:
    found = package.compare([own / "a", own / "b"], small.network(), EXAMPLE, evaluate=[small.data()["test"]])
    assert found.answers is not None
    assert found.answers.which == "40 images given for the comparison"
    assert found.answers.dense["B"][0] == 0.9


def test_what_cannot_be_scored_in_python_is_said(own: Path) -> None:
    paths = [own / "a", own / "b"]
    assert package.compare(paths).notes[0] == "No data was given, so that no network was scored."
    called = package.compare(paths, small.network(), EXAMPLE, evaluate=lambda _: 0.5)
    assert called.notes[0] == "The networks were not scored again: evaluate is a function."
    other = small.network()
    with torch.no_grad():
        other.head.bias[0] += 1
    with pytest.raises(RunError, match="was started with other weights"):
        package.compare(paths, other, EXAMPLE, evaluate=[small.data()["search"]])
    with pytest.raises(RunError, match="load it with load_run"):
        package.compare(paths, evaluate=[small.data()["search"]])
    assert "call amc.compare" in watched(*paths).notes[0]


def test_a_network_that_cannot_be_built_leaves_the_scores_of_the_files(old: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(old / kind, tmp_path / kind)) for kind in ("channel", "2-4")]
    for copy in copies:
        config = json.loads((copy / "config.json").read_text())
        config.pop("sha256", None)
        (copy / "config.json").write_text(json.dumps(config | {"model": "nowhere.to_be:found"}))
    with pytest.raises(ModelError):
        package.load_run(copies[0])
    found = watched(*copies)
    assert found.answers is None
    assert "nowhere" in found.notes[0]
