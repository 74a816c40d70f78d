"""What was changed in a finished run is noticed before it is shown or used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import amc
from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.resume import run_resume
from amc.errors import RunError
from amc.report import render_report
from amc.run.directory import RunDir
from amc.run.settings import CandidateConfig, FineTuneConfig
from tests.fixtures.runs import make


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("digests") / "run"
    make.KINDS["tuned"](run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, at: int = -3) -> None:
    """One bit near the end: of the last weight, of the last line."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def drop_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def replace(before: str, after: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model-finetuned.safetensors", flip, "is not the file that summary.json describes"),
        ("model-finetuned.safetensors", Path.unlink, "cannot be read|not found"),
        ("policy.json", replace('"method": "channel"', '"method": "fine-grained"'), "was changed after it was written"),
        ("config.json", replace('"seed": 0', '"seed": 1'), "was changed after it was written"),
        ("summary.json", replace('"score": 0.', '"score": 0.9'), "was changed after it was written"),
    ],
    ids=["bit of a weight", "no weights", "policy", "config", "summary"],
)
def test_a_changed_file_is_not_loaded(run: Path, name: str, change: Callable[[Path], None], words: str) -> None:
    change(run / name)
    with pytest.raises(amc.errors.AmcError, match=words):
        amc.load_run(run)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("journal.jsonl", drop_last_line, "is not the file that summary.json describes"),
        ("journal-uniform.jsonl", flip, "is not the file that summary.json describes"),
        ("finetune.jsonl", drop_last_line, "is not of the fine-tuning that summary.json tells of"),
        (
            "finetune.jsonl",
            replace('"score": 0.', '"score": 0.9'),
            "line 1 is damaged.*was changed after it was written",
        ),
        ("policy.json", replace('"size": 8', '"size": 9'), "was changed after it was written"),
    ],
    ids=["journal", "baseline", "epochs", "an epoch's score", "policy"],
)
def test_a_changed_file_is_not_reported(run: Path, name: str, change: Callable[[Path], None], words: str) -> None:
    before = (run / "report.html").read_bytes()
    change(run / name)
    with pytest.raises(RunError, match=words):
        render_report(run)
    assert (run / "report.html").read_bytes() == before


def test_candidates_are_not_chosen_from_a_changed_journal(run: Path) -> None:
    drop_last_line(run / "journal.jsonl")
    with pytest.raises(RunError, match=r"is not the file that summary\.json describes"):
        run_finetune(run, FineTuneConfig(epochs=1), candidates=CandidateConfig(2), progress=make.Watch())


def test_the_summary_that_is_lost_is_not_made_anew_without_the_fine_tuning(run: Path) -> None:
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match=r"was fine-tuned, and its summary\.json is missing; restore it from a copy"):
        run_resume(run, progress=make.Watch())
    (run / "model-finetuned.safetensors").unlink()  # the other remedy
    run_resume(run, progress=make.Watch())
    assert "score_finetuned" not in RunDir.open(run).read_json("summary.json")["slim"]


def test_a_change_on_purpose_is_taken_once_the_digest_is_gone(run: Path) -> None:
    record = json.loads((run / "config.json").read_text())
    assert len(record.pop("sha256")) == 64
    (run / "config.json").write_text(json.dumps(record | {"data": "elsewhere:data"}))
    assert RunDir.open(run).config()["data"] == "elsewhere:data"
    amc.load_run(run)


@pytest.mark.parametrize("parent", [".", "../run", "../other"])
def test_a_run_that_is_its_own_parent_is_refused(run: Path, parent: str) -> None:
    shutil.copytree(run, run.parent / "other")
    for path, to in ((run, parent), (run.parent / "other", "../run")):
        record = json.loads((path / "config.json").read_text())
        del record["sha256"]
        (path / "config.json").write_text(json.dumps(record | {"parent": to}))
    with pytest.raises(RunError, match="leads back to itself through the parent in"):
        amc.load_run(run)


def test_a_lost_state_of_a_fine_tuning_is_not_passed_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make.KINDS["cut-tuned"](run)
    state = (run / "finetune-state.json").read_bytes()
    (run / "finetune-state.json").unlink()
    with pytest.raises(RunError, match=r"finetune-state\.json, which says with what settings, is missing"):
        run_finetune(run, progress=make.Watch())
    (run / "finetune-state.json").write_bytes(state)
    run_finetune(run, progress=make.Watch())
    assert len((run / "finetune.jsonl").read_text().splitlines()) == make.TRAINING.epochs
