"""The whole job from Python, on a network and data made here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import amc
from amc.errors import AmcError, BudgetError, DataError, EvaluationError, ModelError, RunError
from amc.run.directory import RunDir
from amc.search import read_journal
from tests.commands import ROOT, contents
from tests.tiny import EXAMPLE, Tiny, images, labelled, tiny
from tests.tiny import compress as tiny_search

FILES = [
    ".lock",
    "config.json",
    "journal-random.jsonl",
    "journal-uniform.jsonl",
    "journal.jsonl",
    "model.safetensors",
    "policy.json",
    "report.html",
    "summary.json",
    "timings.jsonl",
]


def loader(model: nn.Module) -> Any:
    return labelled(model, 96, 5)


def compress(model: nn.Module, **changes: Any) -> amc.Result:
    return tiny_search(model, **{"budget": "macs<=50%", "keep_sets": 1} | changes)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, torch.Tensor], modes: list[bool]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(part, name) for part in model.modules() for name in hooks)


def test_the_result_is_a_smaller_network_of_the_same_class_within_the_budget() -> None:
    model = tiny()
    model.norm_a.eval()
    before, modes = state(model), [part.training for part in model.modules()]
    result = compress(model)
    assert type(result.model) is Tiny
    assert not result.model.training
    a, b, c = result.policy.keep_counts
    assert (result.model.a.out_channels, result.model.norm_a.num_features) == (a, a)
    assert result.model.b.weight.shape == (b, a, 3, 3)
    assert result.model.head.in_features == c
    dense = (1 * 10 * 9 + 10 * 12 * 9 + 12 * 8) * 36 + 8 * 4
    slim = (1 * a * 9 + a * b * 9 + b * c) * 36 + c * 4
    assert amc.count_macs(result.model, EXAMPLE) == slim
    assert 0.4 * dense < slim <= 0.5 * dense
    with torch.no_grad():
        assert result.model(images(5, 0)).shape == (5, 4)
    assert_untouched(model, before, modes)
    result.model.train()(images(8, 0)).sum().backward()  # a plain module: it can be trained
    assert all(parameter.grad is not None for parameter in result.model.parameters())


def test_the_summary_says_what_happened() -> None:
    model = tiny()
    result = compress(model, test=labelled(model, 64, 9))
    summary = result.summary
    a, b, c = result.policy.keep_counts
    assert summary["dense"] == {
        "macs": (90 + 1080 + 96) * 36 + 32,
        "params": 90 + 20 + 1080 + 24 + (96 + 8) + (32 + 4),
        "size": len(safetensors.torch.save(model.state_dict())),
        "memory": (10 + 12) * 36 * 4,  # the outputs of a and b
        "score": 1.0,
        "test": 1.0,
    }
    assert summary["slim"]["macs"] == (9 * a + 9 * a * b + b * c) * 36 + 4 * c
    assert summary["slim"]["params"] == 9 * a + 2 * a + 9 * a * b + 2 * b + (b * c + c) + (4 * c + 4)
    assert summary["slim"]["score"] == result.search.best.score
    assert 0 <= summary["slim"]["test"] <= 1
    assert summary["groups"] == [
        {
            "name": "a",
            "size": 10,
            "kept": a,
            "saves": {"macs": (10 - a) * 9 * 13 * 36, "params": (10 - a) * (9 + 2 + 108)},
        },
        {"name": "b", "size": 12, "kept": b, "saves": {"macs": (12 - b) * 98 * 36, "params": (12 - b) * (90 + 2 + 8)}},
        {
            "name": "c",
            "size": 8,
            "kept": c,
            "saves": {"macs": (8 - c) * (12 * 36 + 4), "params": (8 - c) * (12 + 1 + 4)},
        },
    ]  # what each saves alone: in the layer that writes it, its norm, and the layer that reads it
    assert [(entry["name"], entry["size"]) for entry in summary["locked"]] == [("head", 4)]
    expected = {
        "model": "Tiny",
        "budget": "macs<=50%",
        "method": "channel",
        "agent": "planner",
        "episodes": 6,
        "failed_episodes": 0,
        "seed": 0,
        "amc_version": amc.compress.__globals__["amc_version"](),
    }
    assert {name: summary[name] for name in expected} == expected
    assert summary["ranked"] == [record.episode for record in result.search.ranked]
    assert summary["baselines"]["uniform"]["episodes"] == 1
    assert summary["certificate"]["locked"] == []
    json.dumps(summary, allow_nan=False)


def test_the_score_is_that_of_the_model_that_is_returned() -> None:
    model = tiny()
    result = compress(model)
    correct = total = 0
    for x, labels in loader(model):
        with torch.no_grad():
            correct += int((result.model(x).argmax(1) == labels).sum())
        total += len(labels)
    assert result.summary["slim"]["score"] == correct / total
    assert result.search.best.score == max(record.score for record in result.search.episodes)


def test_the_policy_names_the_channels_that_were_kept() -> None:
    model = tiny()
    result = compress(model, reconstruct=False, bn_images=0)
    keep = result.policy.keep
    assert torch.equal(result.model.a.weight, model.a.weight[list(keep["a"])])
    sliced = amc.apply_policy(model, EXAMPLE, result.policy).eval()
    with torch.no_grad():
        torch.testing.assert_close(sliced(images(4, 0)), result.model(images(4, 0)))


def test_a_callable_and_a_loader_give_the_same_search() -> None:
    model = tiny()
    batches = loader(model)

    def accuracy(module: nn.Module) -> float:
        assert not module.training
        with torch.no_grad():
            right = [(module(x).argmax(1) == labels).float().sum() for x, labels in batches]
        return float(sum(right)) / sum(len(labels) for _, labels in batches)

    by_loader, by_function = compress(model), compress(model, evaluate=accuracy)
    assert [r.keep for r in by_function.search.episodes] == [r.keep for r in by_loader.search.episodes]
    assert by_function.summary["slim"]["score"] == pytest.approx(by_loader.summary["slim"]["score"])
    assert by_function.policy == by_loader.policy


def test_a_careless_evaluate_cannot_touch_the_dense_network() -> None:
    """It neither chooses a mode nor switches gradients off; batch norms in training mode would take its images in."""
    model = tiny().train()
    before, modes = state(model), [part.training for part in model.modules()]
    compress(model, evaluate=lambda module: module(images(16, 4)).sum().tanh().item(), episodes=2)
    assert_untouched(model, before, modes)


def test_labelled_calibration_batches_and_any_finite_score_will_do() -> None:
    model = tiny()
    result = compress(model, calibration=loader(model), evaluate=lambda module: -1e6)
    assert result.summary["slim"]["score"] == -1e6


def test_several_budgets_hold_together() -> None:
    result = compress(tiny(), budget="macs<=60%, params<=45%")
    dense, slim = result.summary["dense"], result.summary["slim"]
    assert slim["macs"] <= 0.6 * dense["macs"]
    assert slim["params"] <= 0.45 * dense["params"]


def test_groups_can_be_locked_or_chosen() -> None:
    locked = compress(tiny(), lock=("a",), budget="macs<=60%")
    assert [group.name for group in locked.policy.groups] == ["b", "c"]
    assert locked.model.a.out_channels == 10
    assert {"name": "a", "size": 10, "reason": "locked by --lock"} in locked.summary["locked"]
    only = compress(tiny(), only=("a",), budget="macs<=60%")
    assert only.model.b.out_channels == 12


@pytest.mark.parametrize("agent", ["random", "uniform"])
def test_other_agents_search_too(agent: str) -> None:
    result = compress(tiny(), agent=agent, baselines=())
    assert result.summary["agent"] == agent
    assert result.summary["slim"]["macs"] <= 0.5 * result.summary["dense"]["macs"]
    assert result.summary["baselines"] == {}


def test_the_agent_begins_with_the_uniform_policy_whose_score_is_taken_over(tmp_path: Path) -> None:
    scored: list[int] = []

    def evaluate(model: nn.Module) -> float:
        scored.append(amc.count_params(model))
        return 0.5 + len(scored) / 100  # no two scores are equal

    result = compress(tiny(), evaluate=evaluate, episodes=3, run_dir=tmp_path / "run")
    (uniform,) = read_journal(tmp_path / "run" / "journal-uniform.jsonl")[1]
    first, second, third = result.search.episodes
    assert first == uniform
    assert (uniform.score, second.score, third.score) == (0.52, 0.53, 0.54)  # after the dense network's 0.51
    assert json.loads((tmp_path / "run" / "config.json").read_text())["uniform_first"] is True


def test_a_score_is_taken_over_from_a_baseline_that_an_earlier_session_scored(tmp_path: Path) -> None:
    class Stop(amc.Observer):
        def stage(self, name: str) -> None:
            if name == "search (planner)":
                raise KeyboardInterrupt

    scored: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        scored.append(model)
        return amc.count_params(model) / 1e4

    settings: dict[str, Any] = {
        "episodes": 1, "run_dir": tmp_path / "run", "evaluate": evaluate, "baselines": ("uniform",)
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), **settings, observer=Stop())
    assert len(scored) == 2  # the dense network and the uniform policy
    result = compress(tiny(), **settings, resume=True)
    assert len(scored) == 4  # the dense network again, and the result once more at the end
    assert result.search.episodes == read_journal(tmp_path / "run" / "journal-uniform.jsonl")[1]


def test_a_run_that_began_before_the_uniform_start_goes_on_without_it(tmp_path: Path) -> None:
    class Stop(amc.Observer):
        def episode(self, agent: str, record: Any, timing: Any) -> None:
            if (agent, record.episode) == ("planner", 1):
                raise KeyboardInterrupt

    whole = compress(tiny(), uniform_first=False, run_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), uniform_first=False, run_dir=tmp_path / "run", observer=Stop())
    run = RunDir.open(tmp_path / "run")
    run.write_json("config.json", {k: v for k, v in run.config().items() if k not in ("sha256", "uniform_first")})
    result = compress(tiny(), run_dir=tmp_path / "run", resume=True)
    assert result.search == whole.search
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("whole", "run")]
    assert journals[0] == journals[1]
    assert b"uniform_first" not in journals[0]
    with pytest.raises(RunError, match="was started with uniform_first False, not True"):
        compress(tiny(), run_dir=tmp_path / "whole", resume=True)


def test_baselines_are_reported_beside_the_agent() -> None:
    result = compress(tiny())
    assert set(result.summary["baselines"]) == {"uniform", "random"}
    assert result.summary["baselines"]["random"]["episodes"] == 2  # a fifth of six, and no less
    seven = compress(tiny(), episodes=35, patience=1, recover="none", finalists=0).summary["baselines"]["random"]
    assert seven["episodes"] == 7  # and no more
    random = compress(tiny(), random_share=1.0).summary["baselines"]["random"]
    assert random["episodes"] == 6
    assert random["median"] <= random["score"] <= 1
    assert random["macs"] <= 0.5 * result.summary["dense"]["macs"]


@pytest.mark.parametrize("slope", [-0.01, 0.01])
def test_a_baseline_that_does_better_than_the_search_is_no_secret(slope: float) -> None:
    calls = iter(range(100))
    # The uniform policy is scored first; the shallow agent's one policy is another than the uniform one.
    result = compress(tiny(), evaluate=lambda _: 0.5 + slope * next(calls), agent="shallow")
    told = [warning for warning in result.summary["warnings"] if "uniform baseline did better" in warning]
    scores = (result.summary["baselines"]["uniform"]["score"], result.summary["slim"]["score"])
    assert (scores[0] > scores[1]) == (slope < 0)
    expected = f"(score {scores[0]:.4f}) than the search ({scores[1]:.4f}): give it more episodes"
    assert [warning.partition("better ")[2] for warning in told] == ([expected] if slope < 0 else [])


def test_the_same_seed_gives_the_same_journal_byte_for_byte_and_another_seed_another(tmp_path: Path) -> None:
    journals = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(journals))  # the caller's generators play no part
        np.random.seed(len(journals))  # noqa: NPY002
        compress(tiny(), run_dir=tmp_path / name, seed=seed, episodes=12)
        journals.append((tmp_path / name / "journal.jsonl").read_bytes())
    assert journals[0] == journals[1]
    assert journals[0] != journals[2]


def test_a_search_leaves_the_global_generators_alone() -> None:
    model = tiny()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    compress(model, episodes=3)
    assert torch.equal(torch.rand(3), expected)


def test_the_run_directory_holds_the_record(tmp_path: Path) -> None:
    model = tiny()
    result = compress(model, run_dir=tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    assert sorted(path.name for path in run.path.iterdir()) == FILES
    config = run.config()
    assert (config["budget"], config["episodes"], config["round_to"], config["seed"]) == ("macs<=50%", 6, 1, 0)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode() + value.numpy().tobytes())
    assert config["weights_digest"] == f"2:{digest.hexdigest()}"
    header, records = read_journal(run.file("journal.jsonl"))
    assert (header["seed"], header["agent"], len(records)) == (0, "planner", 6)
    assert records == result.search.episodes
    assert amc.Policy.load(run.file("policy.json")) == result.policy
    summary = run.read_json("summary.json")
    assert summary == json.loads(json.dumps(result.summary))
    timings = run.read_jsonl("timings.jsonl")
    wanted = [("uniform", 1), ("planner", 6), ("random", 2)]
    assert [(line["agent"], line["episode"]) for line in timings] == [(name, i) for name, n in wanted for i in range(n)]
    seconds = sum(sum(line["seconds"].values()) for line in timings if line["agent"] == "planner")
    assert summary["seconds"] == pytest.approx(seconds, abs=0.051)
    assert "<html" in run.file("report.html").read_text(encoding="utf-8")


def test_an_episode_that_repeats_a_policy_takes_no_time_to_build(tmp_path: Path) -> None:
    one = {"lock": ("a", "b"), "round_to": 4, "budget": "params<=99%", "agent": "random", "baselines": ()}
    result = compress(tiny(), run_dir=tmp_path / "run", episodes=3, **one)
    assert [record.keep for record in result.search.episodes] == [(4,)] * 3  # the only policy within the budget
    seconds = [line["seconds"] for line in RunDir.open(tmp_path / "run").read_jsonl("timings.jsonl")]
    assert [parts["build"] > 0 for parts in seconds] == [True, False, False]
    assert [parts["batch norm"] > 0 for parts in seconds] == [True, False, False]


SCRIPT = """
import sys, torch, amc
from tests.tiny import EXAMPLE, Tiny, images
torch.manual_seed(99)
model = amc.load_run(sys.argv[1], Tiny(), EXAMPLE)
assert type(model) is Tiny and not model.training
with torch.no_grad():
    torch.save(model(images(16, 8)), sys.argv[2])
"""


def test_a_run_is_loaded_again_here_and_in_a_fresh_process(tmp_path: Path) -> None:
    result = compress(tiny(), run_dir=tmp_path / "run")
    x = images(16, 8)
    loaded = amc.load_run(tmp_path / "run", Tiny(), EXAMPLE)
    with torch.no_grad():
        expected = result.model(x)
        torch.testing.assert_close(loaded(x), expected)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "run", tmp_path / "out.pt"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def test_loading_says_what_it_needs(tmp_path: Path) -> None:
    compress(tiny(), run_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"from a network in Python; load it with load_run\(run, model, example_input\)"):
        amc.load_run(tmp_path / "run")
    with pytest.raises(ModelError, match="policy does not fit this network"):
        amc.load_run(tmp_path / "run", nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)), EXAMPLE)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(RunError, match=r"model\.safetensors' is not the file that summary\.json describes; restore it"):
        amc.load_run(tmp_path / "run", Tiny(), EXAMPLE)
    (tmp_path / "run" / "policy.json").unlink()
    with pytest.raises(RunError, match=r"policy\.json' is missing"):
        amc.load_run(tmp_path / "run", Tiny(), EXAMPLE)
    with pytest.raises(RunError, match="no run directory"):
        amc.load_run(tmp_path / "elsewhere", Tiny(), EXAMPLE)


class Fragile:
    """Fails in the ways a user's function can, on every network but the dense one for which `when` holds."""

    def __init__(self, when: Any, how: str = "raise") -> None:
        self.when, self.how, self.calls = when, how, 0

    def __call__(self, module: nn.Module) -> float:
        self.calls += 1
        if sum(module.head.weight.shape) + sum(module.b.weight.shape[:2]) < 34 and self.when(self.calls - 1):
            if self.how == "raise":
                raise ZeroDivisionError("boom\nsecond line")
            return {"nan": math.nan, "inf": math.inf, "none": None}[self.how]  # type: ignore[return-value]
        return module.a.out_channels / 10


REASONS = {
    "raise": "ZeroDivisionError: boom",
    "nan": "evaluate returned nan; it must return a finite number, higher for better",
    "inf": "evaluate returned inf; it must return a finite number, higher for better",
    "none": "evaluate returned a NoneType; it must return a number",
}


@pytest.mark.parametrize("how", REASONS)
def test_an_episode_that_cannot_be_scored_is_recorded_and_the_search_goes_on(how: str, tmp_path: Path) -> None:
    result = compress(tiny(), evaluate=Fragile(lambda call: call % 2 == 0, how), run_dir=tmp_path / "run", episodes=8)
    _, records = read_journal(tmp_path / "run" / "journal.jsonl")
    failed = [record for record in records if record.error]
    assert len(records) == 8
    assert 0 < len(failed) < 8
    assert {record.error for record in failed} == {REASONS[how]}
    assert all(record.score is None and record.reward is None for record in failed)
    assert result.summary["failed_episodes"] == len(failed)
    assert result.search.best.error is None
    sound = Fragile(lambda call: False, how)
    again = compress(tiny(), evaluate=sound, run_dir=tmp_path / "run", episodes=8, resume=True)
    assert again.policy == result.policy
    assert sound.calls == 2  # the dense network, and the result once more
    broken = Fragile(lambda call: True, how)
    with pytest.raises(EvaluationError, match=r"evaluate fails on the resulting network|evaluate returned"):
        compress(tiny(), evaluate=broken, run_dir=tmp_path / "run", episodes=8, resume=True)


def test_a_baseline_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    result = compress(tiny(), evaluate=Fragile(lambda call: call == 1), run_dir=tmp_path / "run")
    assert set(result.summary["baselines"]) == {"random"}
    assert read_journal(tmp_path / "run" / "journal-uniform.jsonl")[1][0].error == REASONS["raise"]
    assert result.summary["failed_episodes"] == 0
    assert RunDir.open(tmp_path / "run").has("report.html")


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_search_in_which_everything_fails_ends_with_the_reason(how: str, tmp_path: Path) -> None:
    evaluate = Fragile(lambda call: True, how)
    with pytest.raises(EvaluationError) as refusal:
        compress(tiny(), evaluate=evaluate, run_dir=tmp_path / "run", episodes=30)
    assert REASONS[how] in str(refusal.value)
    assert evaluate.calls < 20  # six random policies, and hopeless after ten of the planner's
    assert not RunDir.open(tmp_path / "run").has("summary.json")


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_an_evaluate_that_fails_on_the_dense_network_ends_the_job_before_it_began(how: str, tmp_path: Path) -> None:
    def broken(module: nn.Module) -> float:
        if how == "raise":
            raise ZeroDivisionError("boom\nsecond line")
        return math.nan

    with pytest.raises(EvaluationError) as refusal:
        compress(tiny(), evaluate=broken, run_dir=tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert ("dense network (ZeroDivisionError: boom)" if how == "raise" else "returned nan") in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_interrupting_keeps_the_journal_and_resuming_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    model = tiny()
    whole = compress(model, run_dir=tmp_path / "whole", episodes=12)

    def stop_at(episode: int) -> amc.Observer:
        class Stop(amc.Observer):
            def episode(self, agent: str, record: Any, timing: Any) -> None:
                if agent == "planner" and record.episode == episode:
                    raise KeyboardInterrupt

        return Stop()

    with pytest.raises(KeyboardInterrupt):
        compress(model, run_dir=tmp_path / "run", episodes=12, observer=stop_at(2))
    for episode in (3, 7, 11):
        with pytest.raises(KeyboardInterrupt):
            compress(model, run_dir=tmp_path / "run", episodes=12, observer=stop_at(episode), resume=True)
        assert len(read_journal(tmp_path / "run" / "journal.jsonl")[1]) == episode + 1
    result = compress(model, run_dir=tmp_path / "run", episodes=12, resume=True)
    assert result.policy == whole.policy
    for name in ("journal.jsonl", "journal-uniform.jsonl", "policy.json", "model.safetensors", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    again = compress(model, run_dir=tmp_path / "run", episodes=12, resume=True)  # a finished run: nothing changes
    assert again.policy == whole.policy


def test_a_run_is_resumed_with_its_own_weights_and_settings_only(tmp_path: Path) -> None:
    compress(tiny(), run_dir=tmp_path / "run")
    before = contents(tmp_path)
    refused: list[tuple[nn.Module, dict[str, Any], str]] = [
        (tiny(1), {}, "started with other weights; resume it with the weights of its config.json"),
        (tiny(), {"bn_images": 7}, "started with bn_images 256, not 7; resume it with the same settings"),
        (tiny(), {"ranking": "magnitude"}, "started with ranking None, not 'magnitude'"),
        (tiny(), {"episodes": 7}, "started with episodes 6, not 7"),
        (tiny(), {"seed": 1}, "started with seed 0, not 1"),
        (tiny(), {"budget": "macs<=40%"}, "started with budget 'macs<=50%', not 'macs<=40%'"),
    ]
    for model, changes, message in refused:
        with pytest.raises(RunError) as refusal:
            compress(model, run_dir=tmp_path / "run", resume=True, **changes)
        assert message in str(refusal.value)
        assert contents(tmp_path) == before


def test_a_new_search_refuses_a_directory_that_is_in_use(tmp_path: Path) -> None:
    compress(tiny(), run_dir=tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("precious")
    before = contents(tmp_path)
    evaluate = Fragile(lambda call: False)
    for name, message in (("run", "already holds a run"), ("notes", r"is not empty \(it holds thesis\.tex\)")):
        with pytest.raises(RunError, match=message):
            compress(tiny(), run_dir=tmp_path / name, evaluate=evaluate)
    with RunDir.open(tmp_path / "run").lock(), pytest.raises(RunError, match=r"another process .* is writing"):
        compress(tiny(), run_dir=tmp_path / "run", evaluate=evaluate, resume=True)
    assert evaluate.calls == 0  # found before any work
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"episode": 3}, AmcError, "unknown setting 'episode'; did you mean 'episodes'?"),
        ({"frobnicate": 3}, AmcError, "unknown setting 'frobnicate'; known: budget, method, reward"),
        ({"budget": 0.5}, AmcError, 'budget must be text such as "macs<=50%", got 0.5'),
        ({"budget": "macs<=1%"}, BudgetError, "cannot be reached"),
        ({"episodes": 0}, AmcError, "episodes must be at least 1, got 0"),
        ({"seed": -1}, AmcError, "seed must be at least 0 and below 2^63, got -1"),
        ({"seed": 2**64}, AmcError, "seed must be at least 0 and below 2^63, got 18446744073709551616"),
        ({"seed": 1.5}, AmcError, "seed must be a whole number, got 1.5"),
        ({"episodes": "5"}, AmcError, "episodes must be a whole number, got '5'"),
        ({"episodes": True}, AmcError, "episodes must be a whole number, got True"),
        ({"budget": None, "max_drop": "0.5"}, AmcError, "max_drop must be a number, got '0.5'"),
        ({"max_sparsity": "0.8"}, AmcError, "max_sparsity must be a number, got '0.8'"),
        ({"reconstruct": "no"}, AmcError, "reconstruct must be True or False, got 'no'"),
        ({"method": None}, AmcError, "method must be text, got None"),
        ({"method": 24}, AmcError, "method must be text, got 24"),
        ({"ranking": ["magnitude"]}, AmcError, "ranking must be text, got ['magnitude']"),
        ({"lock": "fc"}, AmcError, "lock must be a tuple of names, as in (\"one\",), got 'fc'"),
        ({"only": (1,)}, AmcError, "only must be a tuple of names"),
        ({"budget": "macs<=50%,"}, BudgetError, "budget 'macs<=50%,' is malformed: it has a comma too many; write for"),
        ({"agent": "ddgp"}, AmcError, "agent 'ddgp' is unknown; did you mean 'ddpg'?"),
        ({"agent": "xyz"}, AmcError, "agent 'xyz' is unknown; use one of planner, ddpg, random"),
        ({"agent": 3}, AmcError, "agent must be a name, or a function of a SearchTask"),
        ({"agent_options": {"temprature": 1}}, AmcError, "agent 'planner' has no option 'temprature'; did you mean"),
        ({"agent_options": {"temperature": "hot"}}, AmcError, "agent 'planner': temperature must be a number"),
        ({"agent_options": ("temperature",)}, AmcError, "agent-option must be NAME=VALUE, got 'temperature'"),
        ({"agent": "random", "agent_options": {"sigma": 1}}, AmcError, "agent 'random' has no options"),
        ({"method": "5:2"}, AmcError, "pattern '5:2' keeps 5 of 2 weights"),
        ({"ranking": "best"}, AmcError, "ranking must be magnitude or elimination, got 'best'"),
        ({"max_sparsity": 1.0}, AmcError, r"max-sparsity must be in [0, 1), got 1.0"),
        ({"round_to": 0}, AmcError, "round-to must be at least 1, got 0"),
        ({"baselines": ("greedy",)}, AmcError, "baselines must be"),
        ({"lock": ("layer9",)}, ModelError, "pattern 'layer9' matches no prunable group"),
        ({"calibration": []}, DataError, "calibration set is empty; give at least one batch"),
        ({"calibration": [{"x": 1}]}, DataError, "a calibration batch is a dict; give tensors, or (images, labels)"),
        ({"evaluate": []}, DataError, "set to evaluate on is empty; give it at least one image"),
        ({"evaluate": 3}, EvaluationError, "evaluate is a int; give a function module -> float or a loader"),
        ({"evaluate": [images(4, 0)]}, DataError, "must give (images, labels) tensors"),
        ({"test": []}, DataError, "set to evaluate on is empty; give it at least one image"),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_nothing_is_written(
    changes: dict[str, Any], kind: type[AmcError], message: str, tmp_path: Path
) -> None:
    model = tiny()
    before, modes = state(model), [part.training for part in model.modules()]
    with pytest.raises(kind) as refusal:
        compress(model, run_dir=tmp_path / "run", **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    assert_untouched(model, before, modes)


def test_weights_that_are_nan_are_found_before_the_search(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.b.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(EvaluationError, match="logits are NaN; check its weights"):
        compress(model, run_dir=tmp_path / "run", evaluate=loader(tiny()))
    with pytest.raises(DataError, match=r"NaN or infinite inputs to layer 'c\.weight'"):
        compress(model, run_dir=tmp_path / "run", evaluate=lambda module: 0.5)
    assert not (tmp_path / "run").exists()
