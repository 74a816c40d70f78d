"""A policy's score: of the network that the user gets, the same every time, measured once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc.compression.scoring.evaluator import as_evaluator
from amc.compression.scoring.policy import PolicyScorer, Scored, ScoreTiming
from amc.pruning import Pruner, calibrate
from amc.structure import inspect
from tests.tiny import EXAMPLE, images, labelled, tiny

BATCHES = [images(32, seed) for seed in (1, 2)]


def scorer_of(evaluate, batches=()) -> PolicyScorer:
    model = tiny().eval()
    structure = inspect(model, EXAMPLE)
    return PolicyScorer(Pruner(model, structure, calibrate(model, structure, BATCHES)), evaluate, batches)


def test_the_score_is_that_of_the_network_that_is_built() -> None:
    evaluate = as_evaluator(labelled(tiny(), 96, 3))
    scorer = scorer_of(evaluate, BATCHES)
    for policy in [(10, 12, 8), (5, 6, 4), (3, 9, 8)]:
        assert scorer(policy) == evaluate(scorer.build(policy))
    assert scorer((10, 12, 8)) > 0.7 > scorer((2, 2, 2))  # the labels are the dense network's answers


def test_full_keep_counts_without_new_statistics_score_as_the_dense_network() -> None:
    evaluate = as_evaluator(labelled(tiny(), 96, 3))
    assert scorer_of(evaluate)((10, 12, 8)) == evaluate(tiny()) == 1.0


def test_a_policy_that_keeps_everything_keeps_its_batch_norms() -> None:
    evaluate = as_evaluator(labelled(tiny(), 96, 3))
    model = tiny().eval()
    structure = inspect(model, EXAMPLE)
    pruner = Pruner(model, structure, calibrate(model, structure, BATCHES))
    scorer = PolicyScorer(pruner, evaluate, [images(8, 9)], dense=structure.sizes.tolist())
    assert scorer((10, 12, 8)) == 1.0
    assert torch.equal(scorer.build((10, 12, 8)).norm_a.running_var, model.norm_a.running_var)
    assert not torch.equal(scorer.build((10, 12, 7)).norm_a.running_var, model.norm_a.running_var)


def test_batch_norms_get_the_statistics_of_the_sliced_network() -> None:
    scorer = scorer_of(lambda module: 0.0, BATCHES)
    slim = scorer.build((4, 6, 8))
    with torch.no_grad():
        inputs = [slim.a(batch) for batch in BATCHES]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(slim.norm_a.running_mean, mean)
    torch.testing.assert_close(slim.norm_a.running_var, variance)
    kept = scorer_of(lambda module: 0.0).build((4, 6, 8))
    assert not torch.allclose(kept.norm_b.running_mean, slim.norm_b.running_mean, atol=1e-3)
    assert not slim.training


def test_a_policy_is_measured_once() -> None:
    calls: list[tuple[int, int]] = []

    def evaluate(module: nn.Module) -> float:
        calls.append((module.a.out_channels, module.b.out_channels))
        return len(calls) / 10

    scorer = scorer_of(evaluate)
    assert [scorer(policy) for policy in [(4, 6, 8), (5, 6, 8), (4, 6, 8)]] == [0.1, 0.2, 0.1]
    assert calls == [(4, 6), (5, 6)]
    assert scorer.scored((4, 6, 8)) == Scored(0.1, ScoreTiming(build=0.0, batch_norm=0.0, evaluate=0.0))


def test_a_score_comes_with_its_seconds_and_leaves_nothing_behind() -> None:
    scorer = scorer_of(lambda module: 0.5, BATCHES)
    before = set(vars(scorer))
    scored = scorer.scored((6, 6, 8))
    assert scored.score == 0.5
    assert min(scored.timing.build, scored.timing.batch_norm, scored.timing.evaluate) > 0
    assert scorer((6, 6, 8)) == 0.5
    assert scored.timing.build > 0  # a record: what follows does not change it
    assert set(vars(scorer)) == before


def test_errors_of_evaluate_pass_and_are_not_remembered() -> None:
    answers = iter([None, 0.5])

    def evaluate(module: nn.Module) -> float:
        answer = next(answers)
        if answer is None:
            raise ValueError("flaky")
        return answer

    scorer = scorer_of(evaluate)
    with pytest.raises(ValueError, match="flaky"):
        scorer((4, 6, 8))
    assert scorer((4, 6, 8)) == 0.5


def test_networks_of_one_and_three_dimensions_are_scored() -> None:
    for model, shape in [
        (nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 2, 3)), (2, 9)),
        (nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.Conv3d(6, 2, 1)), (2, 4, 5, 4)),
    ]:
        torch.manual_seed(0)
        batch = [torch.randn(8, *shape)]
        structure = inspect(model.eval(), batch[0][:1])
        scorer = PolicyScorer(
            Pruner(model, structure, calibrate(model, structure, batch)),
            lambda module, x=batch[0]: float(module(x).detach().square().mean()),
            batch,
        )
        assert 0 < scorer((3,)) < 10
        assert scorer.build((3,))[1].num_features == 3
