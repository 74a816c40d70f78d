"""Sweeps and warm starts: what they learn from, what they give back, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amc
from amc.compression.sweep import episodes_of, knee_of
from amc.compression.sweep_settings import SweepConfig
from amc.errors import AmcError, BudgetError, RunError
from amc.run.directory import RunDir
from amc.search import load_journal
from amc.structure import count_macs
from tests.commands import amc as command
from tests.fixtures.runs import make
from tests.tiny import EXAMPLE, compress, images, labelled, tiny

ENDS: dict[str, Any] = {"start": "80%", "end": "40%", "points": 3, "episodes": 12}


def sweep(model: torch.nn.Module, **changes: Any) -> amc.Sweep:
    given = {
        "calibration": [images(32, 1), images(32, 2)], "evaluate": labelled(model, 96, 5), "round_to": 1,
        "keep_sets": 0, "recover": "none",
    }  # fmt: skip
    return amc.sweep(model, EXAMPLE, **given | ENDS | changes)


# What a sweep gives.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "sweep"
    sweep(tiny(), run_dir=run)
    return run


def test_every_point_holds_its_budget() -> None:
    model = tiny()
    found = sweep(model)
    dense = count_macs(model, EXAMPLE)
    assert [point.budget for point in found.points] == ["macs<=80%", "macs<=56.6%", "macs<=40%"]
    for point, share in zip(found.points, (0.8, 0.566, 0.4), strict=True):
        assert count_macs(point.model, EXAMPLE) <= share * dense
        assert point.record["slim"]["macs"] == count_macs(point.model, EXAMPLE)
    assert repr(found).startswith("Sweep(3 points, macs<=80% to macs<=40%")


def test_the_points_learn_from_the_smaller_budgets(whole: Path) -> None:
    """The smallest is searched first; each other one begins with all policies before it."""
    scored = {n: load_journal(whole / f"point-{n}" / "journal.jsonl") for n in (1, 2, 3)}
    assert [len(scored[n].records) for n in (3, 2, 1)] == episodes_of(12, 3)
    assert scored[3].header["settings"]["earlier"] == 0
    policies = {record.keep for record in scored[3].records}
    assert scored[2].header["settings"]["earlier"] == len(policies)
    policies |= {record.keep for record in scored[2].records}
    assert scored[1].header["settings"]["earlier"] == len(policies)


def test_a_point_is_a_run_of_its_own(whole: Path) -> None:
    model = tiny()
    slim = amc.load_run(whole / "point-2", model, EXAMPLE)
    summary = json.loads((whole / "summary.json").read_text())
    assert count_macs(slim, EXAMPLE) == summary["points"][1]["slim"]["macs"]
    with pytest.raises(RunError, match=r"is a sweep.*point-1 \(macs<=80%\)"):
        amc.load_run(whole, model, EXAMPLE)


def test_a_sweep_with_a_run_equals_one_without(whole: Path) -> None:
    here = sweep(tiny())
    there = json.loads((whole / "summary.json").read_text())
    assert here.summary["points"] == there["points"]


@pytest.mark.parametrize("episode", [2, 5, 7, 11])
def test_a_stopped_sweep_ends_with_the_same_files(whole: Path, tmp_path: Path, episode: int) -> None:
    class Stop(amc.Observer):
        seen = 0

        def episode(self, agent: str, record: Any, timing: Any) -> None:
            self.seen += agent == "planner"
            if self.seen == episode:
                raise KeyboardInterrupt

    run = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny(), run_dir=run, observer=Stop())
    resumed = sweep(tiny(), run_dir=run, resume=True)
    for path in sorted(whole.glob("point-*/*")):
        if path.name in ("journal.jsonl", "journal-uniform.jsonl", "model.safetensors", "policy.json", "earlier.json"):
            assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    assert resumed.summary["points"] == json.loads((whole / "summary.json").read_text())["points"]


def test_a_finished_sweep_is_read_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    again = sweep(tiny(), run_dir=run, resume=True)
    first = amc.load_run(whole / "point-3", tiny(), EXAMPLE)
    assert all(torch.equal(a, b) for a, b in zip(again.points[2].model.parameters(), first.parameters(), strict=True))


def test_other_settings_do_not_resume_a_sweep(whole: Path) -> None:
    with pytest.raises(AmcError, match="is another sweep"):
        sweep(tiny(), run_dir=whole, resume=True, points=4)
    with pytest.raises(RunError, match="episodes 12, not 13"):
        sweep(tiny(), run_dir=whole, resume=True, episodes=13)


@pytest.mark.parametrize("metric", ["params", "size"])
def test_other_metrics(metric: str) -> None:
    found = sweep(tiny(), metric=metric, points=2)
    costs = [point.record["slim"][metric] / point.record["dense"][metric] for point in found.points]
    assert costs[0] <= 0.8
    assert costs[1] <= 0.4


def test_a_sweep_of_latency(tmp_path: Path) -> None:
    with make.bench():
        found = sweep(tiny(), metric="latency", start="90%", end="70%", points=2, run_dir=tmp_path / "run")
    assert [point.record["budget"] for point in found.points] == ["latency<=90%", "latency<=70%"]
    assert (tmp_path / "run" / "latency-table.json").read_bytes() == (
        tmp_path / "run" / "point-1" / "latency-table.json"
    ).read_bytes()


# Its settings.


@given(st.integers(2, 100), st.integers(0, 500))
def test_the_episodes_of_all_points_are_those_of_the_sweep(points: int, more: int) -> None:
    counts = episodes_of(points + more, points)
    assert sum(counts) == points + more
    assert len(counts) == points
    assert min(counts) >= 1
    assert max(counts[1:]) - min(counts[1:]) <= 1


def test_every_budget_keeps_the_same_share_of_the_one_before() -> None:
    assert SweepConfig(points=4).texts == ("macs<=80%", "macs<=54.3%", "macs<=36.8%", "macs<=25%")
    assert SweepConfig(metric="size", start="1MB", end="250kB", points=3).texts == (
        "size<=1000000", "size<=500000", "size<=250000",
    )  # fmt: skip
    assert SweepConfig(metric="latency", start="4ms", end="1ms", points=3).texts == (
        "latency<=4ms", "latency<=2ms", "latency<=1ms",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "25%", "end": "80%"}, "from large to small; got from 25% to 80%: exchange them"),
        ({"start": "50%", "end": "50%"}, "from large to small"),
        ({"points": 1}, "points must be 2 to 100; for one, search a budget"),
        ({"points": 0}, "points must be 2 to 100"),
        ({"points": 101}, "points must be 2 to 100"),
        ({"start": "50%", "end": "49.9%", "points": 9}, "9 points from 50% to 49.9% are too close"),
        ({"start": "120%"}, "at most 100%"),
        ({"end": "0%"}, "above zero"),
        ({"end": "-5%"}, "above zero"),
        ({"start": "80%", "end": "1.2M"}, "mixes a share and a cost"),
        ({"metric": "flips"}, "'flips' is unknown"),
        ({"end": "a lot"}, "malformed"),
    ],
)
def test_budgets_that_make_no_sweep(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AmcError, match=message):
        SweepConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"end": "1%"}, BudgetError, "macs<=1% cannot be reached"),
        ({"budget": "macs<=30%"}, AmcError, "sets its budgets itself; leave out budget 'macs<=30%'"),
        ({"budget": "macs<=50%"}, AmcError, "leave out budget 'macs<=50%'"),  # the default of a search
        ({"max_drop": 1.0}, AmcError, "leave max-drop and reward out"),
        ({"reward": "r_flops"}, AmcError, "leave max-drop and reward out"),
        ({"episodes": 2}, AmcError, "2 episodes are fewer than the 3 points"),
        ({"agent": "plannr"}, AmcError, "did you mean 'planner'"),
    ],
)
def test_settings_that_a_sweep_refuses(
    changes: dict[str, Any], kind: type[AmcError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        sweep(tiny(), run_dir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(0.8, 0.9, None), (0.5, 0.88, None), (0.2, 0.4, None)], 1),
        ([(0.8, 0.9, 0.01), (0.5, 0.88, 0.01), (0.35, 0.8, 0.01), (0.2, 0.4, 0.01)], 2),
        ([(0.8, 0.9, 0.01), (0.5, 0.61, 0.02), (0.2, 0.3, 0.01)], None),  # within its error of the straight line
        ([(0.8, 0.9, None), (0.5, 0.6, None), (0.2, 0.3, None)], None),
        ([(0.8, 0.9, None), (0.5, 0.4, None), (0.2, 0.3, None)], None),  # bent the other way
        ([(0.8, 0.9, None), (0.2, 0.3, None)], None),
    ],
)
def test_the_knee(points: list[tuple[float, float, float | None]], knee: int | None) -> None:
    assert knee_of(points) == knee


# Warm starts.


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("earlier") / "run"
    compress(tiny(), run_dir=run, budget="macs<=60%", episodes=12)
    return run


def test_a_warm_start_learns_from_every_journal(earlier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    compress(tiny(), run_dir=run, budget="macs<=50%", warm_start=earlier)
    known = [load_journal(earlier / name).records for name in ("journal.jsonl", "journal-uniform.jsonl")]
    policies = {record.keep for records in known for record in records}
    assert load_journal(run / "journal.jsonl").header["settings"]["earlier"] == len(policies)
    kept = RunDir.open(run).read_json("earlier.json")["records"]
    assert {tuple(record["keep"]) for record in kept} == policies


def test_a_warm_start_resumes_without_the_other_run(earlier: Path, tmp_path: Path) -> None:
    other, whole, run = tmp_path / "other", tmp_path / "whole", tmp_path / "run"
    shutil.copytree(earlier, other)
    settings = {"budget": "macs<=50%", "warm_start": str(other)}
    compress(tiny(), run_dir=whole, **settings)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), run_dir=run, observer=make.Watch(episode=3), **settings)
    shutil.rmtree(other)
    compress(tiny(), run_dir=run, resume=True, **settings)
    assert (run / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_a_warm_start_from_a_sweep(whole: Path) -> None:
    found = compress(tiny(), budget="macs<=50%", warm_start=whole, episodes=4)
    assert len(found.search.episodes) == 4


def test_a_sweep_with_a_warm_start(earlier: Path, tmp_path: Path) -> None:
    sweep(tiny(), warm_start=earlier, run_dir=tmp_path / "run")
    first = load_journal(tmp_path / "run" / "point-3" / "journal.jsonl")
    assert first.header["settings"]["earlier"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny(3)}, "is a run of another network, or of other weights"),
        ({"method": "fine-grained"}, "was scored with method 'channel', not 'fine-grained'"),
        ({"lock": ("a",)}, r"was scored with lock \[\], not \['a'\]"),
        ({"reconstruct": False}, "was scored with reconstruct True, not False"),
        ({"bn_rule": "replace"}, "was scored with bn_rule 'difference', not 'replace'"),
        ({"evaluate": labelled(tiny(), 96, 6)}, "was scored on other images"),
        ({"agent": "random"}, "agent 'random' learns nothing from earlier searches"),
        ({"warm_start": "nowhere"}, "no run directory 'nowhere'"),
    ],
)
def test_warm_starts_that_do_not_fit(earlier: Path, changes: dict[str, Any], message: str) -> None:
    model = changes.pop("model", None) or tiny()
    settings = {"warm_start": earlier, "evaluate": labelled(tiny(), 96, 5), **changes}
    with pytest.raises(AmcError, match=message):
        compress(model, budget="macs<=50%", **settings)


def test_a_damaged_copy_of_the_earlier_policies_is_refused(earlier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings: dict[str, Any] = {"budget": "macs<=50%", "warm_start": earlier}
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), run_dir=run, observer=make.Watch(episode=3), **settings)
    record = json.loads((run / "earlier.json").read_text())
    record["records"][0]["score"] = 0.99
    (run / "earlier.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"earlier\.json"):
        compress(tiny(), run_dir=run, resume=True, **settings)


# On the command line.


def test_the_command_sweeps_stops_and_goes_on(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    make.sweep(whole)
    make.sweep(run, make.Watch(episode=2))
    assert not (run / "summary.json").exists()
    done = command("resume", run)
    assert done.code == 0, done.stderr
    assert "point-1" not in done.stdout
    assert "macs<=63.2%" in done.stdout
    for point in ("point-1", "point-2", "point-3"):
        for name in ("journal.jsonl", "model.safetensors", "policy.json"):
            assert (run / point / name).read_bytes() == (whole / point / name).read_bytes()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'href="point-2/report.html"' in page
    assert "finished: 3 of 3 points" in page
    again = command("resume", run, "--json")
    assert json.loads(again.stdout)["points"] == json.loads((run / "summary.json").read_text())["points"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "digits_cnn", "--budget", "macs<=50%", "--out", "new"), "leave out budget 'macs<=50%'"),
        (("sweep", "digits_cnn", "--from", "20%", "--to", "50%", "--out", "new"), "exchange them"),
        (("finetune", "SWEEP"), "is a sweep; name the point to train"),
        (("export", "SWEEP"), "is a sweep, with a network for each budget; name one of its points"),
        (("search", "SWEEP", "--out", "new"), "is a sweep, with a network for each budget; name one of its points"),
        (("resume", "SWEEP", "--round-lr", "0.1"), "is not a schedule"),
    ],
)
def test_commands_that_a_sweep_refuses(swept: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command(*(str(swept) if word == "SWEEP" else word for word in arguments))
    assert done.code == 2
    assert message in done.stderr
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("swept") / "run"
    make.sweep(run)
    return run
