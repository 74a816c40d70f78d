"""Runs that earlier versions wrote: every later version loads, reports and resumes them, or refuses in one line.

The archives beside `tests/fixtures/runs/make.py` are named by the version that wrote them.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import amc
from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.resume import run_resume
from amc.compression.load import check_weights
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import AmcError, RunError
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import CandidateConfig, FineTuneConfig, SessionConfig
from amc.search import read_journal
from tests.commands import contents
from tests.fixtures.runs import make, small

ARCHIVES = sorted((Path(__file__).parents[1] / "fixtures" / "runs").glob("*.tar.xz"))
FINISHED = [kind for kind in make.KINDS if not kind.startswith("cut-")]
CUT_SEARCHES = ["cut-channel", "cut-2-4", "cut-latency"]
ONE_IMAGE = 1 / 80  # of the search split; another instruction set may answer one differently


@pytest.fixture(params=ARCHIVES, ids=lambda archive: archive.name.removesuffix(".tar.xz"))
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def summary(run: Path) -> dict[str, Any]:
    return RunDir.open(run).read_json("summary.json")


def loaded(run: Path) -> torch.nn.Module:
    if run.name.endswith("python"):
        return amc.load_run(run, small.network(), torch.zeros(1, *small.SHAPE))
    return amc.load_run(run)


def score_of(model: torch.nn.Module) -> float:
    return Evaluator([small.data()["search"]])(model)


def test_there_are_runs_of_the_first_version() -> None:
    assert "0.1.0.tar.xz" in [archive.name for archive in ARCHIVES]


@pytest.mark.parametrize("kind", FINISHED)
def test_a_finished_run_is_loaded_and_has_the_score_and_costs_it_had(runs: Path, kind: str) -> None:
    run = runs / kind
    inner = run / "round-2" if (run / "round-2").exists() else run
    slim, model = summary(inner)["slim"], loaded(run)
    assert score_of(model) == pytest.approx(slim.get("score_finetuned", slim["score"]), abs=1.01 * ONE_IMAGE)
    if summary(inner)["method"] == "channel":
        example = torch.zeros(1, *small.SHAPE)
        assert (amc.count_macs(model, example), amc.count_params(model)) == (slim["macs"], slim["params"])
    else:
        weights = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
        assert weights <= slim["params"]


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_run_is_reported(runs: Path, kind: str) -> None:
    page = render_report(runs / kind).read_text(encoding="utf-8")
    if kind in FINISHED and "schedule" not in kind:
        assert f"{100 * summary(runs / kind)['slim']['score']:.2f}%" in page
    elif "schedule" in kind:
        assert f"{100 * summary(runs / kind)['rounds'][0]['score_finetuned']:.2f}%" in page
    else:
        _, records = read_journal(runs / kind / "journal.jsonl")
        assert f"{100 * max(record.score or 0 for record in records):.2f}%" in page


@pytest.mark.parametrize("kind", [kind for kind in FINISHED if kind != "python"])
def test_resuming_a_finished_run_changes_nothing_but_its_page(runs: Path, kind: str) -> None:
    before = contents(runs / kind)
    run_resume(runs / kind, progress=make.Watch())
    after = {name: value for name, value in contents(runs / kind).items() if not name.endswith("report.html")}
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    assert changed <= {"summary.json"}  # of a schedule: its date


@pytest.mark.parametrize("kind", CUT_SEARCHES)
def test_a_search_that_was_cut_short_goes_on_after_the_episodes_it_had(runs: Path, kind: str) -> None:
    run = runs / kind
    before = (run / "journal.jsonl").read_bytes()
    with make.bench():
        run_resume(run, progress=make.Watch())
    assert (run / "journal.jsonl").read_bytes().startswith(before)
    header, records = read_journal(run / "journal.jsonl")
    assert (header["journal"], len(records)) == (1, 6)
    assert score_of(loaded(run)) == summary(run)["slim"]["score"]
    assert summary(run)["slim"]["macs"] <= 0.7 * summary(run)["dense"]["macs"] or kind == "cut-latency"


def refitted_in_sequence(path: Path, flag: bool = True) -> Path:
    """The run as one of a version that had the setting `sequential`."""
    run = RunDir.open(path)
    run.write_json("config.json", {**run.config(), "sequential": flag})
    return path


REFUSED = r"was started with sequential, which this version no longer has, .*; start a new run"


def test_a_search_that_refits_in_sequence_cannot_go_on(runs: Path) -> None:
    run, python = (refitted_in_sequence(runs / kind) for kind in ("cut-channel", "cut-python"))
    before = contents(runs)
    with pytest.raises(RunError, match=REFUSED):
        run_resume(run, progress=make.Watch())
    with pytest.raises(RunError, match=REFUSED):
        make.from_python(python, resume=True)
    assert contents(runs) == before


def test_a_schedule_that_refits_in_sequence_begins_no_further_round(runs: Path) -> None:
    run = refitted_in_sequence(runs / "cut-schedule")
    shutil.rmtree(run / "round-2")
    with pytest.raises(RunError, match=REFUSED):
        run_resume(run, progress=make.Watch())
    assert not (run / "round-2").exists()


def test_a_finished_run_that_refits_in_sequence_is_as_good_as_any_other(runs: Path) -> None:
    run = refitted_in_sequence(runs / "channel")
    assert score_of(loaded(run)) == pytest.approx(summary(run)["slim"]["score"], abs=ONE_IMAGE)
    render_report(RunDir.open(run))
    run_finetune(run, FineTuneConfig(epochs=1), progress=make.Watch())
    assert score_of(loaded(run)) == summary(run)["slim"]["score_finetuned"]
    with pytest.raises(RunError, match="was started with sequential"):
        run_finetune(run, FineTuneConfig(epochs=1), candidates=CandidateConfig(2), progress=make.Watch())


def test_a_run_that_does_not_refit_in_sequence_goes_on(runs: Path) -> None:
    run = refitted_in_sequence(runs / "cut-channel", flag=False)
    run_resume(run, progress=make.Watch())
    assert score_of(loaded(run)) == summary(run)["slim"]["score"]


def test_a_search_from_python_goes_on(runs: Path) -> None:
    before = (runs / "cut-python" / "journal.jsonl").read_bytes()
    result = make.from_python(runs / "cut-python", resume=True)
    assert (runs / "cut-python" / "journal.jsonl").read_bytes().startswith(before)
    assert score_of(result.model) == result.summary["slim"]["score"]


def test_a_search_that_names_its_weights_by_the_first_digest_goes_on_with_these_only(runs: Path) -> None:
    run = RunDir.open(runs / "cut-python")
    assert len(run.config()["weights_sha256"]) == 64
    assert "weights_digest" not in run.config()
    check_weights(run, small.network())
    other = small.network()
    with torch.no_grad():
        other.head.bias[0] += 1
    with pytest.raises(RunError, match="was started with other weights"):
        check_weights(run, other)


def test_a_schedule_goes_on_in_its_second_round(runs: Path) -> None:
    run = runs / "cut-schedule"
    first = contents(run / "round-1")
    before = (run / "round-2" / "journal.jsonl").read_bytes()
    run_resume(run, progress=make.Watch())
    assert {name: value for name, value in contents(run / "round-1").items() if name in first} == first
    assert (run / "round-2" / "journal.jsonl").read_bytes().startswith(before)
    assert [row["fraction"] for row in summary(run)["rounds"]] == [0.7, 0.5]
    assert summary(run)["rounds"][1]["macs"] <= 0.5 * summary(run)["dense"]["macs"]
    assert "--lr 0.05 " in summary(run / "round-2")["finetuning"]["repeat"]  # its default then


@pytest.mark.parametrize("kind", ["cut-tuned", "cut-candidates"])
def test_a_fine_tuning_goes_on_or_is_refused_in_one_line(runs: Path, kind: str) -> None:
    """Training depends on every detail of the code, so a checkpoint is one version's own."""
    run, before, refusal = runs / kind, contents(runs / kind), "amc finetune RUN --restart"
    began = RunDir.open(run).read_json(files.FINETUNE_STATE)
    try:
        run_finetune(run, session=SessionConfig(checkpoint_every=2), progress=make.Watch())
    except AmcError as error:
        refusal = str(error)
        assert {**contents(run), files.FINETUNE_STATE: before[files.FINETUNE_STATE]} == before
        state = {
            name: value for name, value in RunDir.open(run).read_json(files.FINETUNE_STATE).items() if name != "places"
        }
        assert state == began  # candidates differ by processor, and the state says that it was tried here
        run_finetune(run, session=SessionConfig(restart=True), progress=make.Watch())
    assert "--restart" in refusal
    assert "\n" not in refusal
    tuned = summary(run)["slim"]["score_finetuned"]
    assert score_of(loaded(run)) == tuned
    lines = (run / "finetune.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["score"] == tuned


@pytest.mark.parametrize("kind", [kind for kind in FINISHED if "schedule" not in kind])
def test_what_an_earlier_version_found_is_not_replaced(runs: Path, kind: str) -> None:
    with pytest.raises(AmcError, match=r"already holds a run \(.*, 6 of 6 episodes\)"):
        make.search(runs / kind)
