"""Recovery as a stage of every search: on by default, resumed to the byte, never a worse network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression.ending import _told
from amc.compression.scoring.evaluator import PairedEvaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.errors import AmcError
from amc.recovery import distillation
from amc.recovery.distillation import Plan, Recovery
from amc.run import files
from amc.run.directory import RunDir
from amc.search.statistics import PairedDrop
from tests.threads import one_thread
from tests.tiny import EXAMPLE, images, labelled, tiny

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """A short search whose networks are not refitted, so that training has something to mend on any processor."""
    return {
        "calibration": [images(64, seed) for seed in range(8)], "evaluate": labelled(tiny(), 600, 5),
        "test": labelled(tiny(), 200, 9), "episodes": 4, "round_to": 1, "keep_sets": 0,
        "reconstruct": False,
    }  # fmt: skip


def digests(run: Path) -> dict[str, str]:
    recorded: dict[str, str] = RunDir.open(run).read_json(files.SUMMARY)["files"]
    return recorded


def test_a_search_recovers_its_result_and_says_by_how_much(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, budget="macs<=30%", **options)
    plain = amc.compress(tiny(), EXAMPLE, budget="macs<=30%", recover="none", finalists=0, **options)
    recovery, slim = result.summary["recovery"], result.summary["slim"]
    assert (recovery["outcome"], recovery["reason"]) == ("recovered", None)
    assert recovery["distance_after"] < recovery["distance_before"]
    assert {"score", "score_recovered", "test", "test_recovered"} <= set(slim)
    assert "recovery" not in plain.summary
    right = sum(int((result.model(x).argmax(1) == labels).sum()) for x, labels in options["test"])
    assert slim["test_recovered"] == right / 200


def test_finalists_are_compared_on_images_that_the_search_never_scored(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, **options)
    finalists = result.summary["finalists"]
    assert finalists["images"] == 150  # a quarter of 600
    best = sorted((record for record in result.search.episodes), key=lambda record: -(record.reward or 0.0))
    assert finalists["trials"][0]["keep"] == list(best[0].keep)
    taken = next(trial for trial in finalists["trials"] if trial["chosen"])
    assert [group["kept"] for group in result.summary["groups"]] == taken["keep"]
    assert taken["score_recovered"] == max(trial["score_recovered"] for trial in finalists["trials"])


@pytest.mark.parametrize("count", [96, 399])
def test_few_images_are_all_left_to_the_search(options: dict[str, Any], count: int) -> None:
    result = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": labelled(tiny(), count, 5)})
    assert result.summary["finalists"]["images"] is None
    assert result.summary["finalists"]["overrated"] is None


@pytest.mark.parametrize("changes", [{"finalists": 0}, {"recover": "none", "evaluate": lambda model: 0.5}])
def test_without_finalists_the_best_of_the_search_is_the_result(
    options: dict[str, Any], changes: dict[str, Any]
) -> None:
    result = amc.compress(tiny(), EXAMPLE, **{**options, **changes})
    assert "finalists" not in result.summary
    best = max(result.search.episodes, key=lambda record: record.reward or 0.0)
    assert result.policy.keep_counts == best.keep


def test_a_function_of_the_users_measures_the_finalists(options: dict[str, Any]) -> None:
    scored: list[int] = []

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        scored.append(sum(parameter.numel() for parameter in model.parameters()))
        return 1 / (1 + float((model(images(64, 3)) - tiny().eval()(images(64, 3))).square().mean()))

    result = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": evaluate, "test": None})
    assert result.summary["finalists"]["images"] is None
    assert result.summary["slim"]["score_recovered"] >= result.summary["slim"]["score"]


def resumed(run: Path, **settings: Any) -> amc.Result:
    """The run of which the end is lost, gone on with."""
    for name in (files.SUMMARY, files.MODEL, files.POLICY):
        (run / name).unlink()
    return amc.compress(tiny(), EXAMPLE, run_dir=run, resume=True, **settings)


def test_a_recovery_that_is_repeated_makes_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    run = tmp_path / "run"
    amc.compress(tiny(), EXAMPLE, run_dir=run, **options)
    before, plans = digests(run), (run / files.RECOVERY).read_bytes()
    resumed(run, **options)
    assert digests(run) == before
    assert (run / files.RECOVERY).read_bytes() == plans


def test_a_run_that_is_resumed_trains_as_long_as_was_planned(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast the machine is now: a time limit made the first plan."""
    run, planned = tmp_path / "run", list[Plan | None]()
    limited = distillation._Distillation._completed  # the plan that the time allows

    def slow(self: Any, plan: Plan, pruned: Mapping[str, Tensor]) -> Plan:
        limited(self, plan, pruned)
        return replace(plan, steps=3, limited=True)

    monkeypatch.setattr(distillation._Distillation, "_completed", slow)
    amc.compress(tiny(), EXAMPLE, run_dir=run, **options)
    before = digests(run)
    monkeypatch.setattr(distillation._Distillation, "_completed", limited)
    monkeypatch.setattr(
        "amc.compression.recovering.distill_",
        lambda *args, **kwargs: (planned.append(kwargs["plan"]), distillation.distill_(*args, **kwargs))[1],
    )
    result = resumed(run, **options)
    assert digests(run) == before
    assert {plan.steps for plan in planned if plan} == {3}
    assert result.summary["recovery"]["planned"]["limited"] is True


def test_a_run_of_before_goes_on_as_it_began(tmp_path: Path, options: dict[str, Any]) -> None:
    """Its config.json has none of the newer settings."""
    run = tmp_path / "run"
    amc.compress(tiny(), EXAMPLE, run_dir=run, recover="none", finalists=0, **options)
    before, directory = digests(run), RunDir.open(run)
    config = {name: value for name, value in directory.config().items() if name not in ("recover", "finalists")}
    directory.write_json(files.CONFIG, config)
    result = resumed(run, **options)
    assert digests(run) == before
    assert "recovery" not in result.summary
    for name in (files.SUMMARY, files.MODEL, files.POLICY):
        (run / name).unlink()
    with pytest.raises(AmcError, match="was started with finalists 0, not 2"):
        amc.compress(tiny(), EXAMPLE, run_dir=run, resume=True, finalists=2, **options)


def test_a_recovered_network_that_scores_less_is_not_taken(options: dict[str, Any]) -> None:
    """The user's score may look at something that recovery does not: here at how alike the weights are."""
    start = {name: value.clone() for name, value in tiny().state_dict().items()}

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        bias = model.get_parameter("head.bias")  # no method changes it but training
        return 1 - float((bias - start["head.bias"]).abs().max())

    result = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": evaluate, "test": None})
    assert torch.equal(result.model.get_parameter("head.bias"), start["head.bias"])
    assert result.summary["recovery"]["reason"].startswith("recovered, it scores 0.")
    assert result.summary["recovery"]["outcome"] == "scores less"
    assert any("the result is the network as pruned" in warning for warning in result.summary["warnings"])


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"), [(3, 1, "recovered"), (0, 4, "recovered"), (12, 3, "scores less")]
)
def test_a_loss_within_the_noise_of_few_images_is_not_believed(
    lost: int, gained: int, outcome: str, options: dict[str, Any], monkeypatch: Any
) -> None:
    """Two of 150 images more wrong than right say little; nine do."""
    asked: list[int] = []

    def between(self: Any, before: nn.Module, after: nn.Module) -> PairedDrop:
        asked.append(self.images)
        return PairedDrop(150, lost, gained)

    monkeypatch.setattr(PairedEvaluator, "between", between)
    result = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": labelled(tiny(), 600, 5)})
    assert result.summary["recovery"]["outcome"] == outcome
    assert asked == [150]  # those that the search never scored
    assert ("score_recovered" in result.summary["slim"]) == (outcome == "recovered")


def test_max_drop_confirms_the_network_that_is_recovered(options: dict[str, Any]) -> None:
    settings = {**options, "evaluate": labelled(tiny(), 1200, 5), "max_drop": 30.0, "episodes": 6}
    result = amc.compress(tiny(), EXAMPLE, **settings)
    guarantee, slim = result.summary["guarantee"], result.model
    assert "finalists" not in result.summary
    assert result.summary["recovery"]["outcome"] == "recovered"
    from amc.compression.scoring.evaluator import Evaluator

    confirming = Evaluator(settings["evaluate"]).divided(0.5)[1]
    dense = Evaluator(settings["evaluate"]).divided(0.5)[1](tiny())
    assert guarantee["drop"] == pytest.approx(100 * (dense - confirming(slim)))


def test_masks_hold_in_a_recovered_network(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, method="fine-grained", budget="params<=30%", **options)
    assert result.summary["recovery"]["outcome"] == "recovered"
    assert result.masks
    for name, mask in result.masks.items():
        assert not result.model.get_parameter(name)[~mask].any()


class Pair(nn.Module):
    """Two outputs, in a dictionary, of the tiny network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.net(x)
        return {"logits": y, "sum": y.sum(1)}


def test_the_users_own_loss_is_minimised(options: dict[str, Any]) -> None:
    asked: list[Any] = []

    def loss(student: Any, teacher: Any) -> Tensor:
        asked.append((student, teacher))
        return (student["logits"] - teacher["logits"]).square().mean()

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return -float((model(images(64, 3))["logits"] - Pair().eval()(images(64, 3))["logits"]).square().mean())

    settings = {**options, "evaluate": evaluate, "test": None, "distill_loss": loss}
    result = amc.compress(Pair(), EXAMPLE, **settings)
    tried = [student for student, teacher in asked if torch.equal(student["logits"], teacher["logits"])]
    assert len(tried) == 1  # before the search, and not again for each network
    assert asked[0][0] is tried[0]
    assert result.summary["recovery"]["outcome"] == "recovered"
    assert result.summary["slim"]["score_recovered"] > result.summary["slim"]["score"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [("kl", "distill_loss must be a function"), (lambda student, teacher: 1.0, "distill_loss")],
)
def test_a_loss_that_is_none_is_refused_before_the_search(options: dict[str, Any], loss: Any, message: str) -> None:
    class Listener(amc.Observer):
        def episode(self, agent: str, record: Any, timing: Any) -> None:
            raise AssertionError("the search has begun")

    with pytest.raises(AmcError, match=message):
        amc.compress(tiny(), EXAMPLE, distill_loss=loss, observer=Listener(), **options)


def test_too_few_images_are_no_warning(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, **{**options, "calibration": [images(16, 1)]})
    assert result.summary["recovery"]["outcome"] == "too few images"
    assert not [warning for warning in result.summary["warnings"] if "pruned" in warning]


def test_a_time_that_is_too_short_is_said(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, recover_time=1e-9, **options)
    assert result.summary["recovery"]["outcome"] == "no time"
    assert any(warning.startswith("the result is the network as pruned") for warning in result.summary["warnings"])


def test_nothing_is_recovered_where_nothing_is_pruned(options: dict[str, Any]) -> None:
    dense = tiny()
    result = amc.compress(copy.deepcopy(dense), EXAMPLE, **{**options, "budget": "macs<=100%", "agent": "uniform"})
    assert result.policy.keep_counts == (10, 12, 8)
    assert "recovery" not in result.summary
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize(
    ("outcome", "reason", "stopped", "told"),
    [
        ("recovered", None, None, 0),
        ("recovered", None, "the time is over", 1),
        ("too few images", "16 images are too few", None, 0),
        ("failed", "training fails", None, 1),
    ],
)
def test_what_is_told_of_a_recovery(outcome: Any, reason: str | None, stopped: str | None, told: int) -> None:
    recovery = Recovery(outcome, 64, 8, Plan(), 4, False, (1.0, 0.5), 1.0, reason, stopped)
    assert len(_told(recovery)) == told


@pytest.mark.parametrize(
    "damage", [lambda line: line.replace(b'"steps": ', b'"steps": -'), lambda line: b"[1]\n", lambda line: b"{}\n"]
)
def test_a_damaged_plan_is_named(tmp_path: Path, options: dict[str, Any], damage: Callable[[bytes], bytes]) -> None:
    run = tmp_path / "run"
    amc.compress(tiny(), EXAMPLE, run_dir=run, **options)
    lines = (run / files.RECOVERY).read_bytes().splitlines(keepends=True)
    (run / files.RECOVERY).write_bytes(damage(lines[0]) + b"".join(lines[1:]))
    with pytest.raises(AmcError, match=r"recovery\.jsonl' line 1 is damaged"):
        resumed(run, **options)


def test_without_recovery_a_finalist_has_one_score(options: dict[str, Any]) -> None:
    result = amc.compress(tiny(), EXAMPLE, recover="none", **options)
    trials = result.summary["finalists"]["trials"]
    assert [trial["score_recovered"] for trial in trials] == [None] * len(trials)
    taken = next(trial for trial in trials if trial["chosen"])
    assert taken["score_unseen"] == max(trial["score_unseen"] for trial in trials)


@pytest.mark.parametrize("changes", [{}, {"finalists": 0}, {"recover": "none", "finalists": 0}, {"max_drop": 30.0}])
def test_a_network_of_the_end_is_built_once(
    options: dict[str, Any], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[int, ...]] = []
    build = PolicyScorer.build
    monkeypatch.setattr(PolicyScorer, "build", lambda self, keep: (built.append(tuple(keep)), build(self, keep))[1])
    result = amc.compress(tiny(), EXAMPLE, **{**options, **changes})
    assert result.policy.keep_counts in built
    assert len(built) == len(set(built))
    if not changes:
        assert built == [tuple(trial["keep"]) for trial in result.summary["finalists"]["trials"]]


def failing_once_trained(answer: Callable[[], float]) -> Callable[[nn.Module], float]:
    """The score of a network whose bias is the dense one's; of any other, what `answer` does."""
    start = tiny().head.bias.detach().clone()  # no method changes it but training

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        if not torch.equal(model.get_parameter("head.bias"), start):
            return answer()
        return 1 / (1 + float((model(images(64, 3)) - tiny().eval()(images(64, 3))).square().mean()))

    return evaluate


def refusing() -> float:
    raise KeyError("head")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: math.nan, "evaluate returned nan; it must return a finite number, higher for better"),
        (
            refusing,
            "evaluate fails on the recovered network (KeyError: 'head'); it must return a number for any network",
        ),
    ],
)
@pytest.mark.parametrize("changes", [{"finalists": 0}, {}, {"max_drop": 30.0}])
def test_a_recovered_network_without_a_score_is_not_taken(
    options: dict[str, Any], answer: Callable[[], float], why: str, changes: dict[str, Any]
) -> None:
    settings = {**options, "evaluate": failing_once_trained(answer), "test": None, **changes}
    result = amc.compress(tiny(), EXAMPLE, **settings)
    assert torch.equal(result.model.get_parameter("head.bias"), tiny().head.bias)
    recovery = result.summary["recovery"]
    assert recovery["outcome"] == "no score"
    assert recovery["reason"].startswith(f"the recovered network has no score: {why}")
    assert f"the result is the network as pruned: {recovery['reason']}" in result.summary["warnings"]
    assert "score_recovered" not in result.summary["slim"]


def test_a_function_of_the_users_may_spoil_what_it_scores(options: dict[str, Any]) -> None:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        score = 1 / (1 + float((model(images(64, 3)) - tiny().eval()(images(64, 3))).square().mean()))
        for parameter in model.parameters():
            parameter.zero_()
        return score

    slim = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": evaluate, "test": None}).summary["slim"]
    assert slim["score_recovered"] > slim["score"]


def test_a_function_of_the_users_scores_each_network_of_the_end_once(options: dict[str, Any]) -> None:
    """But for the result as pruned, whose score is confirmed."""
    scored: list[bytes] = []

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        scored.append(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
        return -float((model(images(64, 3)) - tiny().eval()(images(64, 3))).square().mean())

    result = amc.compress(tiny(), EXAMPLE, **{**options, "evaluate": evaluate, "test": None, "finalists": 0})
    slim = b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())
    assert scored.count(slim) == 1
    assert sorted(scored.count(network) for network in set(scored))[-2:] == [1, 2]
