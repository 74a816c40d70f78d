"""Batch-norm statistics by difference: what pruning changes on a few images, added to what training gathered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amc.compression.scoring.batchnorm import correct_batchnorm_, reestimate_batchnorm_, statistics_on
from amc.compression.scoring.policy import PolicyScorer
from amc.errors import DataError
from amc.pruning import Pruner, calibrate
from amc.pruning.methods import MethodOptions, create_method
from amc.structure import inspect
from amc.structure.copying import copy_model
from tests.tiny import EXAMPLE, compress, images, tiny

BATCHES = [images(32, seed) for seed in (1, 2)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def test_the_dense_network_keeps_its_statistics_to_the_last_bit() -> None:
    model = tiny().eval()
    corrected = copy_model(model)
    correct_batchnorm_(corrected, BATCHES, statistics_on(model, BATCHES))
    for name, value in statistics(model).items():
        assert torch.equal(statistics(corrected)[name], value)
    replaced = copy_model(model)
    reestimate_batchnorm_(replaced, BATCHES)
    assert not torch.allclose(replaced.norm_a.running_mean, model.norm_a.running_mean, atol=1e-3)


def test_a_mean_changes_by_the_difference_and_a_variance_by_the_difference_up_and_the_ratio_down() -> None:
    def norm(mean: list[float], variance: list[float]) -> nn.BatchNorm1d:
        part = nn.BatchNorm1d(3).eval()
        part.running_mean, part.running_var = torch.tensor(mean), torch.tensor(variance)
        return part

    slim = norm([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    seen = {"running_mean": torch.tensor([0.5, 0.0, 0.0]), "running_var": torch.tensor([2.0, 8.0, 0.0])}
    batch = torch.tensor([[0.0, -1.0, 7.0], [4.0, 1.0, 7.0]])  # means 2, 0, 7; variances 8, 2, 0
    correct_batchnorm_(slim, [batch], seen)
    assert slim.running_mean is not None
    assert slim.running_mean.tolist() == [1 + 1.5, 2 + 0, 3 + 7]
    assert slim.running_var is not None
    assert slim.running_var.tolist() == [4 + 6, 4 * 2 / 8, 4 + 0]


@pytest.mark.parametrize("rest", [0.0, 1e-12, 1.0])
def test_a_variance_is_never_negative_and_never_more_than_both_together(rest: float) -> None:
    slim = nn.BatchNorm1d(4).eval()
    slim.running_var = torch.tensor([0.0, 1e-9, 1.0, 100.0])
    batch = rest * torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    correct_batchnorm_(slim, [batch], {"running_mean": torch.zeros(4), "running_var": torch.full((4,), 0.5)})
    limit = torch.tensor([0.0, 1e-9, 1.0, 100.0]) + batch.var(0)
    assert bool((slim.running_var >= 0).all())
    assert bool((slim.running_var <= limit * (1 + 1e-6)).all())


def test_a_policy_is_scored_with_the_statistics_of_the_channels_that_it_keeps() -> None:
    model, keep = tiny().eval(), (4, 6, 8)
    structure = inspect(model, EXAMPLE)
    pruner = Pruner(model, structure, calibrate(model, structure, BATCHES))
    scorer = PolicyScorer(pruner, lambda module: 0.0, BATCHES, norms=statistics_on(model, BATCHES))
    slim, plain = scorer.build(keep), pruner.build(keep)
    kept = torch.tensor(pruner.policy(keep).keep[structure.groups[1].name])
    assert len(kept) == 6
    with torch.no_grad():  # the second norm, whose inputs pruning changes; the first one normalises by the batch
        inside: list[list[Tensor]] = []
        for network in (model, plain):
            first = copy_model(network)
            first.norm_a.train()
            inside.append([first.b(first.norm_a(first.a(batch)).relu()) for batch in BATCHES])
    dense, pruned = (torch.stack([x.mean((0, 2, 3)) for x in each]).mean(0) for each in inside)
    expected = model.norm_b.running_mean[kept] + pruned - dense[kept]
    torch.testing.assert_close(slim.norm_b.running_mean, expected)
    assert not torch.allclose(slim.norm_b.running_mean, pruned, atol=1e-3)
    first_kept = torch.tensor(pruner.policy(keep).keep[structure.groups[0].name])
    torch.testing.assert_close(slim.norm_a.running_mean, model.norm_a.running_mean[first_kept])


def test_a_masked_network_is_corrected_too() -> None:
    model = tiny().eval()
    structure = inspect(model, EXAMPLE)
    method = create_method("fine-grained", model, structure, MethodOptions())
    builder = method.builder(calibrate(model, structure, BATCHES, layers=method.calibrated()))
    norms = statistics_on(model, BATCHES)
    scorer = PolicyScorer(builder, lambda module: 0.0, BATCHES, norms=norms)
    keep = [decision.choices[0] for decision in method.decisions]
    slim, replaced = scorer.build(keep), builder.build(keep)
    reestimate_batchnorm_(replaced, BATCHES)
    expected = model.norm_b.running_mean + replaced.norm_b.running_mean - norms["norm_b.running_mean"]
    torch.testing.assert_close(slim.norm_b.running_mean, expected)


class Kin(nn.Module):
    """A norm of any kind, used once or twice, behind a layer that is pruned."""

    def __init__(self, layer: nn.Module, norm: nn.Module, out: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.out, self.twice = layer, norm, out, twice
        self.unused = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = self.norm(self.layer(x)).relu()
        x = self.norm(x) if self.twice else x
        out: Tensor = self.out(x if shift is None else x + shift)
        return out


def flat(norm: nn.Module, twice: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Kin(nn.Linear(5, 8), norm, nn.Linear(8, 2), twice), (torch.randn(24, 5),)


KINDS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "1d": lambda: flat(nn.BatchNorm1d(8)),
    "3d": lambda: (
        Kin(nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1)),
        (torch.randn(6, 2, 4, 5, 4),),
    ),
    "without affine": lambda: flat(nn.BatchNorm1d(8, affine=False)),
    "cumulative": lambda: flat(nn.BatchNorm1d(8, momentum=None)),
    "synchronised": lambda: flat(nn.SyncBatchNorm(8)),
    "used twice": lambda: flat(nn.BatchNorm1d(8), twice=True),
    "frozen": lambda: flat(nn.BatchNorm1d(8).requires_grad_(False)),
    "two inputs": lambda: (flat(nn.BatchNorm1d(8))[0], (torch.randn(24, 5), torch.randn(24, 1))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_norm_is_corrected(kind: str) -> None:
    torch.manual_seed(0)
    model, inputs = KINDS[kind]()
    model.norm.running_mean += torch.linspace(-1, 1, 8)  # as after training on other images
    batches = [inputs]
    structure = inspect(model.eval(), tuple(part[:1] for part in inputs))
    pruner = Pruner(model, structure, calibrate(model, structure, batches))
    scorer = PolicyScorer(pruner, lambda module: 0.0, batches, norms=statistics_on(model, batches))
    (group,) = structure.groups
    whole, slim = scorer.build((8,)), scorer.build((3,))
    for name, value in statistics(model).items():
        assert torch.equal(statistics(whole)[name], value)
    kept = torch.tensor(pruner.policy((3,)).keep[group.name])
    assert slim.norm.running_mean.shape == (3,)
    assert torch.isfinite(slim.norm.running_var).all()
    if kind != "used twice":  # the inputs of its second use are pruned channels of the first one, which change nothing
        torch.testing.assert_close(slim.norm.running_mean, model.norm.running_mean[kept])
        torch.testing.assert_close(slim.norm.running_var, model.norm.running_var[kept])


def test_a_norm_without_statistics_needs_none() -> None:
    model, batches = flat(nn.BatchNorm1d(8, track_running_stats=False))
    assert set(statistics_on(model.eval(), [batches])) == {"unused.running_mean", "unused.running_var"}
    correct_batchnorm_(nn.BatchNorm1d(8, track_running_stats=False), [torch.randn(4, 8)], {})


def test_batches_from_which_no_statistics_follow_are_refused_before_the_search() -> None:
    model, (x,) = flat(nn.BatchNorm1d(8))
    with pytest.raises(DataError, match=r"batch norms cannot take statistics .* give batches of several images"):
        statistics_on(model.eval(), x.split(1))


def test_a_hardly_pruned_network_loses_less_than_with_new_statistics() -> None:
    model = tiny()
    found = {}
    for rule in ("difference", "replace"):
        result = compress(model, budget="macs<=99%", bn_rule=rule, agent="uniform", baselines=(), episodes=1)
        found[rule] = result.summary["slim"]["score"]
    assert found["difference"] > found["replace"]
