"""`amc study`: every method under every constraint, killed and resumed, and the tables of the results."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amc.cli.jobs import study as jobs
from amc.cli.jobs.study import check_plan, plan_study, resume_study, run_study, search_settings
from amc.compression.settings import SearchConfig
from amc.deploy.energy import counters, energy_of
from amc.errors import AmcError, RunError
from amc.report.live import read_live
from amc.report.study import read_study
from amc.run.directory import RunDir
from amc.run.settings import Given, Source, StudyConfig, TimingConfig
from tests.commands import amc
from tests.fixtures.runs.make import Watch

DIGITS = Source("digits_cnn", data="digits")
FAST = {
    "episodes": 3,
    "agent": "around-best",
    "keep_sets": 0,
    "recover": "none",
    "calibration_images": 64,
    "finalists": 0,
}
SETTINGS = search_settings(Given(SearchConfig, FAST))
PLAN = StudyConfig(
    methods="channel,2:4", budgets="60%,40%", metrics="params", rewards="r_flops", max_drops="20", runtimes="none"
)

SHORT = replace(PLAN, methods="channel", metrics="macs", budgets="60%", epochs=1, runtimes="eager")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Latencies to no precision at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "TimingConfig", partial(TimingConfig, rounds=3, max_seconds=0.1))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, with one epoch of fine-tuning and one runtime."""
    place = tmp_path_factory.mktemp("study") / "out"
    plan = replace(PLAN, epochs=1, runtimes="eager")
    return run_study(place, DIGITS, SETTINGS, plan, progress=Watch())


def results(place: Path) -> dict[str, Any]:
    return json.loads((place / "study.json").read_text())


def test_every_cell_has_a_result_or_a_reason(done: Path) -> None:
    rows = results(done)["rows"]
    assert [(row["method"], row["constraint"]) for row in rows] == [
        (method, constraint)
        for method in ("channel", "2:4")
        for constraint in ("params<=60%", "params<=40%", "r_flops", "drop<=20")
    ]
    without = [row for row in rows if not row["seeds"]]
    assert [(row["method"], row["constraint"]) for row in without] == [("2:4", "params<=40%")]  # half of all stay
    assert "cannot be reached" in without[0]["reason"]
    assert all(row["reason"] is None for row in rows if row["seeds"])


def test_a_row_has_the_figures_of_its_run(done: Path) -> None:
    row = results(done)["rows"][0]["values"]
    run = RunDir.open(done / "channel-params-60-seed-0")
    summary = run.read_json("summary.json")
    dense, slim = summary["dense"], summary["slim"]
    assert row["params_share"] == [slim["params"] / dense["params"]]
    assert slim["params"] <= 0.6 * dense["params"]
    for key in ("macs", "params", "size", "memory", "score", "score_finetuned", "test", "test_finetuned"):
        assert row[key] == [slim[key]]
    assert (row["uniform"], row["random"]) == tuple([summary["baselines"][n]["score"]] for n in ("uniform", "random"))
    assert 0 < row["standard_error"][0] < 0.2
    assert row["eager_ms"][0] > 0
    assert row["finetune_seconds"] == [sum(epoch["seconds"] for epoch in run.read_jsonl("finetune.jsonl"))]


def test_the_tables_have_the_same_rows_in_every_format(done: Path) -> None:
    rows = results(done)["rows"]
    with_result = [f"{row['method']}, {row['constraint']}" for row in rows if row["seeds"]]
    lines = list(csv.DictReader((done / "study.csv").read_text().splitlines()))
    assert [line["method"] for line in lines] == ["dense", *(row["method"] for row in rows)]
    assert float(lines[1]["macs"]) == rows[0]["values"]["macs"][0]
    page, text = (done / "report.html").read_text(), (done / "study.md").read_text()
    for name in with_result:
        assert f"| {name} |" in text
        assert name.replace("<", "&lt;") in page
    assert "cannot be reached" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'href="channel-params-60-seed-0/report.html"' in page


def test_a_budget_that_methods_share_has_a_verdict(done: Path) -> None:
    study = read_study(RunDir.open(done))
    verdicts = study.verdicts()
    assert [row.result for row in study.rows] == [row.median("score_finetuned") for row in study.rows]  # never the test
    assert [row.test for row in study.rows] == [row.median("test_finetuned") for row in study.rows]
    assert list(verdicts) == ["params<=60%"]  # one method meets 40%; rewards end at different costs
    assert "scores best" in verdicts["params<=60%"]


def test_what_a_kill_before_the_clean_up_left_is_removed(done: Path) -> None:
    cell = next(path.parent for path in sorted(done.glob("*/summary.json")))
    left = [cell / "finetune-state.json", cell / "finetune.ckpt"]
    for path in left:
        path.write_bytes(b"{}")
    resume_study(done, progress=Watch())
    assert not any(path.exists() for path in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing stopped."""
    return run_study(tmp_path_factory.mktemp("whole") / "out", DIGITS, SETTINGS, SHORT, progress=Watch())


@pytest.mark.parametrize("moment", ["first search", "between", "fine-tuning", "timing"])
def test_a_study_that_is_stopped_goes_on_to_the_same_results(
    moment: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = {"first search": "run_search", "fine-tuning": "run_finetune", "timing": "run_latency"}.get(moment)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if called:
            patch.setattr(jobs, called, stopped)
        else:
            finished, search = [], jobs.run_search
            patch.setattr(
                jobs, "run_search", lambda *a, **k: stopped() if finished else finished.append(search(*a, **k))
            )
        with pytest.raises(KeyboardInterrupt):
            run_study(tmp_path / "cut", DIGITS, SETTINGS, SHORT, progress=Watch())
    resume_study(tmp_path / "cut", progress=Watch())
    for cell in SHORT.cells():
        for name in ("journal.jsonl", "policy.json", "model.safetensors", "model-finetuned.safetensors"):
            assert (tmp_path / "cut" / cell.name / name).read_bytes() == (whole / cell.name / name).read_bytes()
    assert len(results(tmp_path / "cut")["rows"]) == len(SHORT.cells())


def test_a_study_can_be_watched(done: Path, tmp_path: Path) -> None:
    live = read_live(RunDir.open(done))
    assert (live.state, live.parts_name, live.parts, len(live.finished)) == ("finished", "cells", 8, 7)
    place = shutil.copytree(done, tmp_path / "copy")
    (place / "measured.json").unlink()
    shutil.rmtree(place / "2-4-drop-20-seed-0")
    live = read_live(RunDir.open(place))
    assert (live.state, live.part, len(live.finished)) == ("stopped", "2-4-r-flops-seed-0", 6)


def test_a_finished_study_repeats_nothing(done: Path, tmp_path: Path, monkeypatch) -> None:
    place = shutil.copytree(done, tmp_path / "copy")

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("run_search", "run_finetune", "run_latency"):
        monkeypatch.setattr(jobs, name, refused)
    before = (place / "study.json").read_bytes()
    run_study(place, DIGITS, SETTINGS, replace(PLAN, epochs=1, runtimes="eager"), progress=Watch())  # again: goes on
    assert (place / "study.json").read_bytes() == before


def test_a_runtime_that_fails_is_named_in_its_row_and_tried_again(tmp_path: Path, monkeypatch) -> None:
    plan = replace(PLAN, methods="channel", budgets="60%", rewards="none", max_drops="none", runtimes="eager")

    def broken(*_: Any, **__: Any) -> None:
        raise AmcError("the runtime is broken")

    watch = Watch()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run_latency", broken)
        place = run_study(tmp_path / "out", DIGITS, SETTINGS, plan, progress=watch)
    assert watch.warnings[-1] == "channel-params-60-seed-0 on eager: the runtime is broken"
    (row,) = results(place)["rows"]
    assert (row["seeds"], row["reason"]) == (1, "eager: the runtime is broken")
    resume_study(place, progress=Watch())
    (row,) = results(place)["rows"]
    assert row["reason"] is None
    assert row["values"]["eager_ms"][0] > 0


def test_a_search_that_fails_leaves_the_others(tmp_path: Path, monkeypatch) -> None:
    plan, search = replace(PLAN, methods="channel", rewards="none", max_drops="none"), jobs.run_search

    def sometimes(out: Path, *args: Any, **options: Any) -> Any:
        if "40" in out.name:
            raise AmcError("no luck")
        return search(out, *args, **options)

    monkeypatch.setattr(jobs, "run_search", sometimes)
    place = run_study(tmp_path / "out", DIGITS, SETTINGS, plan, progress=Watch())
    assert [(row["seeds"], row["reason"]) for row in results(place)["rows"]] == [(1, None), (0, "no luck")]


def test_several_seeds_show_the_median_and_the_range(tmp_path: Path) -> None:
    plan = replace(PLAN, methods="channel", budgets="40%", rewards="none", max_drops="none", seeds=3)
    place = run_study(tmp_path / "out", DIGITS, SETTINGS, plan, progress=Watch())
    (row,) = read_study(RunDir.open(place)).rows
    assert (row.done, len(row.values["score"])) == (3, 3)
    assert row.median("score") == sorted(row.values["score"])[1]
    if min(row.values["score"]) < max(row.values["score"]):
        assert " to " in (place / "study.md").read_text()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path: Path) -> None:
    planned = plan_study(tmp_path / "out", DIGITS, SETTINGS, PLAN)
    assert [each.cell.name for each in planned if each.reason] == ["2-4-params-40-seed-0"]
    assert all(each.seconds > 0 for each in planned if not each.reason)
    shown = amc(
        "study", "digits_cnn", "--out", "out", "--dry-run", "--methods", "channel", "--metrics", "memory",
        "--budgets", "50%", "--rewards", "none", "--max-drops", "none", cwd=tmp_path,
    )  # fmt: skip
    assert shown.code == 0, shown.stderr
    assert shown.stdout.splitlines()[-1].startswith("1 of 1 searches are possible; about")
    assert not (tmp_path / "out").exists()


def test_a_study_may_begin_with_the_result_of_a_run(done: Path, tmp_path: Path) -> None:
    before = done / "channel-params-60-seed-0"
    plan = replace(PLAN, methods="channel", budgets="80%", rewards="none", max_drops="none")
    source = Source(str(before))
    assert [each.reason for each in plan_study(tmp_path / "out", source, SETTINGS, plan)] == [""]
    place = run_study(tmp_path / "out", source, SETTINGS, plan, progress=Watch())
    (row,) = results(place)["rows"]
    first = RunDir.open(before).read_json("summary.json")["slim"]
    assert row["values"]["params"][0] <= 0.8 * first["params"]
    resume_study(place, progress=Watch())


def test_the_command_ends_with_a_table_in_80_columns(tmp_path: Path) -> None:
    options = ("--episodes", 2, "--certify", 0, "--recover", "none", "--agent", "around-best", "--runtimes", "none")
    shown = amc(
        "study", "digits_cnn", "--out", "out", *options, "--methods", "channel", "--metrics", "macs", cwd=tmp_path
    )
    assert shown.code == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "channel  macs<=50%" in shown.stdout
    again = amc("resume", "out", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert again.stdout == shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ""}, "methods is empty"),
        ({"budgets": "none", "rewards": "none", "max_drops": "none"}, "needs a constraint"),
        ({"budgets": "50%,50%"}, "'channel-params-50-seed-0' twice"),
        ({"metrics": "energy"}, "'energy' is unknown"),
        ({"budgets": "half"}, "malformed"),
        ({"rewards": "r_flop"}, "r_flops"),
        ({"max_drops": "some"}, "max-drops has 'some'"),
        ({"seeds": 0}, "1 to 100"),
        ({"epochs": -1}, "at least 0"),
    ],
)
def test_settings_that_make_no_study_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AmcError, match=message):
        check_plan(replace(PLAN, **options))


@pytest.mark.parametrize("name", ["budget", "method", "seed", "reward", "max_drop", "runtime"])
def test_what_a_study_decides_itself_is_refused(name: str) -> None:
    with pytest.raises(AmcError, match=f"leave --{name.replace('_', '-')} out"):
        search_settings(Given(SearchConfig, {name: "x"}))


def test_a_study_goes_on_with_other_workers(done: Path) -> None:
    before = results(done)["rows"]
    run_study(done, DIGITS, replace(SETTINGS, workers=2), replace(PLAN, epochs=1, runtimes="eager"), progress=Watch())
    assert results(done)["rows"] == before
    assert RunDir.open(done).config()["workers"] == 2


def test_a_directory_of_another_study_or_run_is_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is a study with budgets '60%,40%', and not '50%'"):
        run_study(done, DIGITS, SETTINGS, replace(PLAN, budgets="50%", epochs=1, runtimes="eager"), progress=Watch())
    other = replace(SETTINGS, episodes=4)
    with pytest.raises(RunError, match="is a study with episodes 3, and not 4"):
        run_study(done, DIGITS, other, replace(PLAN, epochs=1, runtimes="eager"), progress=Watch())
    with pytest.raises(RunError, match="holds a run and no study"):
        run_study(done / "channel-params-60-seed-0", DIGITS, SETTINGS, PLAN, progress=Watch())


def test_unknown_runtimes_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(AmcError, match="tensorwreck"):
        run_study(tmp_path / "out", DIGITS, SETTINGS, replace(PLAN, runtimes="tensorwreck"), progress=Watch())
    assert not (tmp_path / "out").exists()


def test_energy_is_read_from_the_counters_of_all_processors(tmp_path: Path) -> None:
    for name, value in {"intel-rapl:0": 990, "intel-rapl:1": 10, "intel-rapl:0:0": 7}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(value))
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    (tmp_path / "intel-rapl:2").mkdir()  # it has no counter that can be read
    places = counters(tmp_path)
    assert [place.name for place in places] == ["intel-rapl:0", "intel-rapl:1"]  # not the parts of a processor
    ticks = iter(range(10))

    def run() -> None:  # 30 microjoules on the first processor, whose counter begins again, and 10 on the second
        for place, spent in zip(places, (30, 10), strict=True):
            file = place / "energy_uj"
            file.write_text(str((int(file.read_text()) + spent) % 1000))

    assert energy_of(run, places, seconds=3, clock=lambda: next(ticks)) == pytest.approx(0.04)
    assert counters(tmp_path / "nothing") == ()
