"""Searches with a latency among their costs, on a bench whose latency is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import amc
from amc.compression.latency import GUARD, aligned
from amc.compression.selection.by_latency import FULL
from amc.compression.settings import SearchConfig
from amc.deploy.table import NoiseError
from amc.errors import AmcError, BudgetError, RunError
from amc.pruning.methods.channel import channel_decisions
from amc.search import Budget, parse_budgets
from amc.structure import inspect
from tests.deploy.benches import BETWEEN_MS, OracleBench, smooth, stairs
from tests.tiny import EXAMPLE, labelled, tiny
from tests.tiny import compress as tiny_search


def compress(**changes: Any) -> amc.Result:
    return tiny_search(tiny(), **{"budget": "latency<=70%"} | changes)


def law(inputs: int, outputs: int, area: int) -> float:
    return 100 * smooth(inputs, outputs, area)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OracleBench:
    found = OracleBench(law)
    monkeypatch.setattr("amc.compression.prepare.open_bench", lambda *_, **__: found)
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    return found


def test_the_network_that_comes_out_holds_the_budget_as_measured(bench: OracleBench, tmp_path: Path) -> None:
    result = compress(run_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    dense, slim = bench.whole(tiny().eval(), EXAMPLE), bench.whole(result.model, EXAMPLE)
    assert (summary["dense"]["latency"], summary["slim"]["latency"]) == (dense, slim)
    assert FULL * 0.7 * (1 - GUARD) <= slim / dense <= 0.7 * (1 - GUARD / 2)
    found = summary["latency"]
    assert found["share"] == slim / dense
    assert (found["runtime"], found["version"], found["threads"]) == ("onnxruntime", "1.0", 1)
    assert found["table"]["worst_error"] < 1  # percent: the law is smooth
    assert found["table"]["networks"] == 26
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()[1:]
    limit = 0.7 * (1 - GUARD) * dense
    assert all(json.loads(line)["cost"]["latency"] <= limit * (1 + 1e-9) for line in lines)


def test_an_absolute_budget_is_in_milliseconds(bench: OracleBench) -> None:
    limit = 0.8 * bench.whole(tiny().eval(), EXAMPLE)
    result = compress(budget=f"latency<={limit:.4f}ms,params<=90%")
    assert bench.whole(result.model, EXAMPLE) <= limit
    assert result.summary["slim"]["params"] <= 0.9 * result.summary["dense"]["params"]


def test_where_the_measured_latency_exceeds_the_table_the_neighbourhood_is_searched(bench: OracleBench) -> None:
    """All that the table knows is 12% too fast for any network but the dense one."""
    compress()  # fills the cache with a table that is right
    whole = bench.whole

    def slower(module: Any, example: Any) -> float:
        return whole(module, example) * (1.0 if module.a.out_channels == 10 and module.b.out_channels == 12 else 1.12)

    bench.whole = slower  # type: ignore[method-assign]
    result = compress(seed=3)
    found = result.summary["latency"]
    assert found["scored_again"] > 0
    assert found["measured"] > 3
    assert slower(result.model, EXAMPLE) / whole(tiny().eval(), EXAMPLE) <= 0.7
    assert found["slim_ms"] > found["predicted_ms"]
    assert found["share"] >= 0.7 * FULL * (1 - GUARD)  # and the budget is used


def test_nothing_that_does_not_hold_comes_out(bench: OracleBench) -> None:
    compress()
    whole, dense = bench.whole, bench.whole(tiny().eval(), EXAMPLE)
    bench.whole = lambda module, example: max(0.9 * dense, whole(module, example))  # type: ignore[method-assign]
    with pytest.raises(BudgetError, match=r"none of \d+ policies holds latency<=70% as measured; the nearest takes"):
        compress()


def test_a_machine_that_is_too_noisy_is_reported_and_not_believed(bench: OracleBench) -> None:
    compress()
    bench.steady = False
    asked = bench.asked["networks"]
    result = compress(budget="latency<=75%")  # unsteady, but clear beyond its uncertainty of 2 points
    assert result.summary["latency"]["share"] + 0.02 <= 0.75
    assert any("too busy for steady latencies" in warning for warning in result.summary["warnings"])
    assert bench.asked["networks"] >= asked + 4  # measured again, for longer
    dense = bench.whole(tiny().eval(), EXAMPLE)
    whole = bench.whole
    bench.whole = lambda module, example: max(0.695 * dense, whole(module, example))  # type: ignore[method-assign]
    with pytest.raises(
        NoiseError, match=r"too noisy to decide whether latency<=70% holds: their ratios are uncertain by 3%"
    ):
        compress()


def test_an_unreachable_budget_is_refused_with_the_reachable_one(bench: OracleBench) -> None:
    dense = bench.whole(tiny().eval(), EXAMPLE)
    share = BETWEEN_MS / dense
    with pytest.raises(
        BudgetError, match=r"latency<=2% cannot be reached: .* raise the budget to [\d.]+% \([\d.]+ ms\) or more"
    ) as one:
        compress(budget="latency<=2%")
    reachable = float(str(one.value).rpartition("raise the budget to ")[2].partition("%")[0])
    assert 100 * share < reachable < 80
    assert compress(budget=f"latency<={reachable:g}%").summary["latency"]["share"] <= reachable / 100
    with pytest.raises(
        BudgetError, match=r"above the dense network's .* ms on onnxruntime 1\.0, 1 thread: it asks for"
    ):
        compress(budget="latency<=400ms")


def test_a_resumed_search_is_the_same_whatever_was_measured_since(bench: OracleBench, tmp_path: Path) -> None:
    whole = compress(run_dir=tmp_path / "whole", episodes=8)
    stopped = 0

    class Stop(Exception):
        pass

    class Stopping(amc.Observer):
        def episode(self, agent: str, *_: Any) -> None:
            nonlocal stopped
            stopped += agent == "planner"
            if stopped == 3:
                raise Stop

    with pytest.raises(Stop):
        compress(run_dir=tmp_path / "run", episodes=8, observer=Stopping())
    (table,) = (tmp_path / "cache" / "latency").iterdir()
    table.unlink()
    bench.law = stairs  # another machine would be refused; a new table would differ
    asked = bench.asked["blocks"]
    bench.law = law
    again = compress(run_dir=tmp_path / "run", episodes=8, resume=True)
    assert bench.asked["blocks"] == asked  # the run's own table
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("whole", "run")]
    assert journals[0] == journals[1]
    assert again.summary["groups"] == whole.summary["groups"]
    bench.place = replace(bench.place, version="2.0")
    with pytest.raises(RunError, match=r"is now onnxruntime 2\.0; install onnxruntime .* again"):
        compress(run_dir=tmp_path / "run", episodes=8, resume=True)


def test_without_a_budget_latency_can_be_the_reward_or_minimised(bench: OracleBench) -> None:
    dense = bench.whole(tiny().eval(), EXAMPLE)
    for settings in (
        {"reward": "r_latency", "evaluate": lambda _: 0.9},
        {"max_drop": 60.0, "minimise": "latency", "evaluate": labelled(tiny(), 256, 5)},
    ):
        result = compress(budget=None, **settings)
        assert result.summary["slim"]["latency"] == bench.whole(result.model, EXAMPLE)
        assert result.summary["slim"]["latency"] < dense
    measured = compress(budget="macs<=60%", runtime="onnxruntime").summary
    assert measured["slim"]["latency"] < dense
    assert measured["slim"]["macs"] <= 0.6 * measured["dense"]["macs"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fine-grained", "budget": "latency<=50%"}, "method fine-grained masks weights, which makes"),
        ({"method": "2:4", "runtime": "onnxruntime", "budget": "params<=50%"}, "method 2:4 masks weights"),
        ({"runtime": "onxruntime"}, "runtime must be one of onnxruntime"),
        ({"latency_threads": 0}, "latency-threads must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AmcError, match=message):
        SearchConfig(**settings)


def test_eager_is_refused_because_it_is_too_noisy() -> None:
    with pytest.raises(AmcError, match="eager PyTorch is too noisy for a latency budget; choose onnxruntime"):
        compress(runtime="eager")


def test_keep_counts_are_multiples_that_runtimes_like_unless_the_rounding_is_chosen() -> None:
    decisions = channel_decisions(inspect(tiny().eval(), EXAMPLE))
    assert [d.choices for d in aligned(decisions, 1)] == [d.choices for d in decisions]
    assert [d.choices for d in aligned(decisions, None)] == [(4, 8, 10), (4, 8, 12), (4, 8)]
    wide = replace(decisions[0], size=32, choices=tuple(range(8, 33, 4)))
    assert aligned([wide], None)[0].choices == (8, 16, 24, 32)
    assert parse_budgets("latency<=4ms") == (Budget("latency", absolute=4.0),)  # type: ignore[arg-type]
