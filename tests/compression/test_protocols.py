"""Budgets of every kind, the accuracy-guaranteed protocol and masked methods, from Python, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amc
from amc.compression.settings import SearchConfig
from amc.errors import AmcError, EvaluationError
from amc.run.weights import unpack
from amc.search import Outcome, get_reward
from tests.fixtures.runs.make import Watch
from tests.tiny import EXAMPLE, compress, images, labelled, tiny

METHODS = ("channel", "fine-grained", "n:2", "columns", "blocks:2x2")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["macs<=80%", "params<=80%", "size<=90%", "macs<=85%,params<=80%,size<=95%"])
def test_every_budget_holds_as_recounted_on_the_saved_file(method: str, budget: str, tmp_path: Path) -> None:
    model = tiny()
    result = compress(model, method=method, budget=budget, run_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    data = (tmp_path / "run" / "model.safetensors").read_bytes()
    kept = sum(int(torch.count_nonzero(value)) for name, value in unpack(data).items() if "running" not in name)
    kept -= 2  # the counters of the two batch norms
    for part in budget.split(","):
        metric, _, share = part.partition("<=")
        limit = float(share.rstrip("%")) / 100 * summary["dense"][metric]
        assert summary["slim"][metric] <= limit
        if metric == "size":
            assert len(data) <= limit
        if metric == "params":
            assert kept <= limit
    assert summary["slim"]["size"] == len(data)
    again = amc.load_run(tmp_path / "run", model, EXAMPLE)
    x = images(8, 9)
    assert torch.equal(again(x), result.model(x))


@pytest.mark.parametrize("budget", ["memory<=70%", "memory<=2KB", "memory<=80%,macs<=60%"])
def test_a_budget_on_memory_holds_as_recounted_on_the_network(budget: str, tmp_path: Path) -> None:
    result = compress(tiny(), budget=budget, run_dir=tmp_path / "run")
    dense, slim = result.summary["dense"], result.summary["slim"]
    assert slim["memory"] == amc.inspect(result.model, EXAMPLE).memory
    assert slim["memory"] <= {"2KB": 2000}.get(budget.partition("=")[2], 0.8 * dense["memory"])
    costs = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[1])["cost"]
    assert costs["memory"] <= 0.8 * dense["memory"]
    amc.load_run(tmp_path / "run", tiny(), EXAMPLE)


def test_a_search_that_is_not_asked_for_memory_has_no_cost_of_it(tmp_path: Path) -> None:
    """Journals stay as they were; the summary has the memory of every result."""
    result = compress(tiny(), budget="macs<=80%", run_dir=tmp_path / "run")
    assert result.summary["slim"]["memory"] <= result.summary["dense"]["memory"]
    assert "memory" not in (tmp_path / "run" / "journal.jsonl").read_text()


@pytest.mark.parametrize("method", ["fine-grained", "columns"])
def test_masks_free_no_activations(method: str) -> None:
    with pytest.raises(AmcError, match="leaves every activation as it is; limit macs, params or size"):
        compress(tiny(), method=method, budget="memory<=90%")
    summary = compress(tiny(), method=method, budget="params<=90%").summary
    assert summary["slim"]["memory"] == summary["dense"]["memory"]


def test_the_least_memory_within_a_drop() -> None:
    result = compress(tiny(), max_drop=60.0, minimise="memory", budget=None)
    assert result.summary["guarantee"]["minimise"] == "memory"
    assert result.summary["slim"]["memory"] < result.summary["dense"]["memory"]


def test_a_masked_network_keeps_its_shape_and_its_policy_the_shares() -> None:
    model = tiny()
    result = compress(model, method="fine-grained", budget="params<=50%", max_sparsity=0.9)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in result.model.state_dict().items()} == shapes
    assert result.policy.method == "fine-grained"
    kept = {entry.name: entry.kept for entry in result.policy.groups}
    assert kept == {name: int(torch.count_nonzero(result.model.get_submodule(name).weight)) for name in kept}
    cut = 90 - kept["a"]
    saves = {"macs": 36 * cut, "params": cut}
    assert result.summary["groups"][0] == {"name": "a", "size": 90, "kept": kept["a"], "saves": saves}


def test_layers_that_a_pattern_does_not_fit_stay_dense_and_are_named() -> None:
    watch = Watch()
    result = compress(tiny(), method="2:4", budget="params<=96%", observer=watch)
    assert any("stays dense: a (its 1 inputs" in line for line in watch.warnings)
    assert {entry["name"] for entry in result.summary["locked"]} == {"a", "b"}  # one and ten inputs
    assert result.summary["warnings"] == watch.warnings


def test_few_calibration_images_are_reported_with_their_number() -> None:
    watch = Watch()
    compress(tiny(), calibration=[images(2, 1)], observer=watch)
    # Two images of ten positions; layer b has ten inputs of nine kernel positions.
    assert any("layer b.weight has 90 inputs and only 20 samples" in line for line in watch.warnings)


def test_dead_channels_do_not_stop_the_refitting() -> None:
    model = tiny()
    with torch.no_grad():
        model.norm_a.weight[:4].zero_()
        model.norm_a.bias[:4].zero_()
    for method in ("channel", "fine-grained"):
        result = compress(model, method=method, budget="macs<=70%")
        assert all(bool(torch.isfinite(value).all()) for value in result.model.state_dict().values())


@pytest.mark.parametrize(("reward", "metric"), [("r_flops", "macs"), ("r_params", "params")])
def test_rewards_of_the_paper_need_no_budget(reward: str, metric: str) -> None:
    result = compress(tiny(), reward=reward, episodes=12, max_sparsity=0.9)
    assert result.summary["budget"] == "none"
    for record in result.search.episodes:
        assert record.score is not None
        assert record.reward == pytest.approx(-(1 - record.score) * np.log(record.cost[metric]))
    best = max(record.reward for record in result.search.episodes if record.reward is not None)
    assert result.search.best.reward == best
    costs = [record.cost["macs"] for record in result.search.episodes]
    assert max(costs) > 2 * min(costs)  # policies of every size are tried


def test_a_reward_of_ones_own() -> None:
    seen: list[Outcome] = []

    def thrifty(outcome: Outcome) -> float:
        seen.append(outcome)
        return -outcome.costs["size"]

    result = compress(tiny(), reward=thrifty, budget="none", agent="uniform", baselines=(), episodes=10)
    assert result.summary["reward"] == "thrifty"
    assert result.summary["slim"]["size"] <= min(outcome.costs["size"] for outcome in seen)
    assert seen[0].dense["macs"] == result.summary["dense"]["macs"]


@pytest.mark.parametrize("name", ["r_err", "r_flops", "r_latency"])
def test_a_reward_of_ones_own_that_is_called_like_a_built_in_one_is_refused(name: str) -> None:
    def mine(outcome: Outcome) -> float:
        return outcome.score

    mine.__name__ = name
    with pytest.raises(AmcError, match=f"function called '{name}', as a built-in reward is; give it another name"):
        compress(tiny(), reward=mine)


def test_a_built_in_reward_may_be_given_as_a_function() -> None:
    by_name, by_function = (compress(tiny(), reward=reward) for reward in ("r_flops", get_reward("r_flops")))
    assert by_function.summary["budget"] == by_name.summary["budget"] == "none"
    assert by_function.search.episodes == by_name.search.episodes


def test_max_drop_finds_a_smaller_network_and_confirms_it_on_images_that_were_not_scored() -> None:
    model = tiny()
    result = compress(model, evaluate=labelled(model, 2000, 5), max_drop=12.0, episodes=30)
    guarantee = result.summary["guarantee"]
    assert guarantee["confirmed"] is True
    assert guarantee["images"] == 1000
    assert guarantee["upper"] <= 12.0
    assert result.summary["slim"]["macs"] < result.summary["dense"]["macs"]
    feasible = [r for r in result.search.episodes if r.reward is not None and r.reward >= -1]
    assert result.summary["slim"]["macs"] == min(
        r.cost["macs"] for r in feasible if r.episode == guarantee["trials"][-1]["episode"]
    )
    assert all(record.standard_error is not None for record in result.search.episodes)


def test_dense_statistics_stay_by_default_only_where_a_guarantee_meets_the_old_rule() -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 256), ({"max_drop": 1.0}, 256), ({"bn_rule": "replace"}, 256),
        ({"max_drop": 1.0, "bn_rule": "replace"}, 0), ({"max_drop": 1.0, "bn_images": 0}, 0),
    ]  # fmt: skip
    for settings, count in cases:
        assert SearchConfig(**settings).bn_images == count


def test_a_run_without_a_rule_for_batch_norms_goes_on_by_the_old_one() -> None:
    for settings, count in [({}, 512), ({"max_drop": 1.0}, 0)]:
        began = SearchConfig(**settings, bn_rule="replace", bn_images=count).to_json()
        del began["bn_rule"]
        for config in (SearchConfig.from_json(began), SearchConfig(**settings).for_run(began)):
            assert (config.bn_rule, config.bn_images) == ("replace", count)
    kept = SearchConfig(bn_images=64).for_run(SearchConfig().to_json())
    assert (kept.bn_rule, kept.bn_images) == ("difference", 64)


def test_a_run_that_began_with_more_images_for_batch_norms_by_default_goes_on_with_them() -> None:
    began = SearchConfig(bn_images=512).to_json()
    assert SearchConfig().for_run(began).bn_images == SearchConfig.from_json(began).bn_images == 512
    assert SearchConfig(bn_images=64).for_run(began).bn_images == 64  # asked for, and refused by the run
    assert SearchConfig().for_run(SearchConfig(bn_images=64).to_json()).bn_images == 256


def test_the_whole_network_is_within_any_drop_even_if_few_images_would_change_its_batch_norms() -> None:
    model = tiny()
    evaluate = labelled(model, 2000, 5)
    result = compress(model, evaluate=evaluate, max_drop=1.0, episodes=10, bn_images=8)
    assert result.summary["guarantee"]["confirmed"]


def test_max_drop_of_a_score_that_is_no_share_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"max_drop is in points of accuracy, and the dense network scores 93\.5"):
        compress(tiny(), evaluate=lambda _: 93.5, max_drop=2.0)


def test_max_drop_with_a_score_of_ones_own_is_never_called_confirmed() -> None:
    model = tiny()
    evaluator = amc.compression.scoring.evaluator.Evaluator(labelled(model, 200, 5))
    result = compress(model, evaluate=lambda module: evaluator(module), max_drop=20.0, episodes=10)
    assert result.summary["guarantee"]["confirmed"] is False
    assert result.summary["guarantee"]["images"] is None
