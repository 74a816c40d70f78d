"""From keep counts to the network that keeps them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import ModelError
from amc.pruning import GroupPolicy, Policy, Pruner, calibrate
from amc.pruning.methods import apply_policy
from amc.pruning.reconstruction import DAMPING
from amc.structure import count_macs, count_params, inspect, slice_model
from tests.pruning.samples import flat, layer_inputs, patches
from tests.structure.checks import random_keep, randomise_statistics
from tests.structure.toys import CASES, Concat, Residual, image

ALL = 10**6


class Net(nn.Module):
    """A residual stream, a grouped convolution, a concatenation and a flattened linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.back = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1, bias=False)
        self.side, self.join = nn.Conv2d(8, 5, 3, padding=1), nn.Conv2d(13, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, groups=2, padding=1)
        self.hidden, self.head = nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner(x)))
        x = F.relu(self.join(torch.cat([self.side(x), x], 1)))
        x = F.adaptive_avg_pool2d(F.relu(self.grouped(x)), 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def smooth_images(count: int, seed: int, size: int = 8) -> Tensor:
    """[count, 3, size, size]: neighbouring pixels agree, as in photographs, so that channels are redundant."""
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    randomise_statistics(model)
    return model.eval()


BATCHES = [smooth_images(48, seed) for seed in (1, 2)]
HELD_OUT = smooth_images(64, 9)


@pytest.fixture(scope="module")
def structure(net: nn.Module):
    return inspect(net, HELD_OUT[:1])


@pytest.fixture(scope="module")
def calibration(net: nn.Module, structure):
    return calibrate(net, structure, BATCHES, positions=ALL)


def output_error(model: nn.Module, slim: nn.Module) -> float:
    with torch.no_grad():
        dense = model(HELD_OUT)
        return float((slim(HELD_OUT) - dense).square().sum() / dense.square().sum())


def half(structure) -> list[int]:
    return [max(1, group.size // 2) for group in structure.groups]


def test_full_keep_counts_give_the_dense_outputs(net, structure, calibration) -> None:
    slim = Pruner(net, structure, calibration).build(structure.sizes.tolist())
    assert type(slim) is Net
    assert not slim.training
    with torch.no_grad():
        assert torch.equal(slim(HELD_OUT), net(HELD_OUT))
    shared = {id(p) for p in net.parameters()} & {id(p) for p in slim.parameters()}
    assert not shared


@pytest.mark.parametrize("ranking", ["elimination", "magnitude"])
def test_reconstruction_lowers_the_output_error(net, structure, calibration, ranking) -> None:
    refitted, plain = (Pruner(net, structure, calibration, ranking=ranking, reconstruct=way) for way in (True, False))
    for counts in (half(structure), [max(1, 3 * group.size // 4) for group in structure.groups]):
        assert refitted.policy(counts) == plain.policy(counts)
        assert output_error(net, refitted.build(counts)) < 0.6 * output_error(net, plain.build(counts))


def test_elimination_lowers_the_output_error_against_magnitude(net, structure, calibration) -> None:
    pruners = [Pruner(net, structure, calibration, ranking=way) for way in ("elimination", "magnitude")]
    shares = [[max(1, round(group.size * share)) for group in structure.groups] for share in (0.4, 0.6, 0.8)]
    ours, norms = ([output_error(net, pruner.build(counts)) for counts in shares] for pruner in pruners)
    assert sum(ours) < sum(norms)


def test_every_refitted_layer_solves_its_own_least_squares(net, structure, calibration) -> None:
    """Also the layer behind the concatenation, which two groups feed, and the grouped one, tied across."""
    pruner = Pruner(net, structure, calibration)
    counts = half(structure)
    slim = pruner.build(counts)
    mask = structure.mask(pruner.policy(counts).keep)
    checked = []
    for layer in structure.layers:
        if layer.weight not in calibration.grams:
            continue
        module = net.get_submodule(layer.name)
        rows = torch.cat([patches(module, x) for x in layer_inputs(net, layer.name, BATCHES)], 1)
        kept = np.append(mask, True)
        inputs = np.flatnonzero(kept[layer.input[: layer.input.size // layer.groups]])
        outputs = torch.from_numpy(np.flatnonzero(kept[layer.output]))
        kernel = int(np.prod(layer.kernel))
        columns = [int(i) * kernel + k for i in inputs for k in range(kernel)]
        # Damping as rows of their own: λ of the mean diagonal pulls towards the dense weight.
        n = rows.shape[2]
        pull = (DAMPING * (rows.square().sum(1).mean(1))).sqrt()
        x = torch.cat([rows, pull[:, None, None] * torch.eye(n, dtype=torch.float64)], 1)
        target = x @ flat(module.weight, layer.groups)
        solution = torch.linalg.lstsq(x[:, :, columns], target).solution
        expected = torch.cat([part.T.reshape(-1, len(inputs), *layer.kernel) for part in solution])[outputs]
        torch.testing.assert_close(slim.get_submodule(layer.name).weight.double(), expected, rtol=2e-3, atol=2e-4)
        checked.append(layer.name)
    assert checked == ["inner", "back", "side", "join", "grouped", "hidden", "head"]


def test_errors_of_keep_counts_are_those_of_the_refitted_layers(net, structure, calibration) -> None:
    """Of every layer that reads one group alone: the relative error on the calibration itself."""
    pruner = Pruner(net, structure, calibration)
    choices = [sorted({1, group.size // 2, group.size}) for group in structure.groups]
    tables = pruner.errors(choices)
    inner = next(place for place, group in enumerate(structure.groups) if group.name == "inner")
    fit, gram = pruner.fits["back.weight"], calibration.grams["back.weight"].damped(DAMPING)[0]
    dense = net.back.weight.detach().double().flatten(1).T
    for count, error in zip(choices[inner], tables[inner], strict=True):
        kept = np.sort(pruner.orders["inner"][:count])
        slim = torch.zeros_like(dense)
        slim[kept] = fit.weights(kept).flatten(1).T
        lost = (slim - dense).T @ gram @ (slim - dense)
        whole = dense.T @ gram @ dense
        assert error == pytest.approx(float(lost.trace() / whole.trace()), rel=1e-6, abs=1e-9)
    for table in tables:
        assert (np.diff(table) <= 1e-12).all()
        assert table[-1] == pytest.approx(0.0, abs=1e-8)  # as the Gram matrix is conditioned
    assert Pruner(net, structure).errors(choices) == ()


def test_biases_and_norms_are_sliced_not_refitted(net, structure, calibration) -> None:
    pruner = Pruner(net, structure, calibration)
    counts = half(structure)
    slim, plain = pruner.build(counts), slice_model(net, structure, structure.mask(pruner.policy(counts).keep))
    for name, value in plain.state_dict().items():
        if name.removesuffix(".weight") + ".weight" not in pruner.fits:
            assert torch.equal(slim.state_dict()[name], value), name


def test_layers_with_all_their_inputs_keep_their_weights_bit_for_bit(net, structure, calibration) -> None:
    counts = structure.sizes.tolist()
    name = structure.groups[-1].name  # read by the head only
    counts[-1] //= 2
    slim = Pruner(net, structure, calibration).build(counts)
    assert name == "hidden"
    assert not torch.equal(slim.head.weight, net.head.weight[:, : counts[-1]])
    for other in ("inner", "join", "grouped"):
        assert torch.equal(slim.get_submodule(other).weight, net.get_submodule(other).weight)


@pytest.mark.parametrize("ranking", ["elimination", "magnitude"])
def test_policies_of_growing_counts_are_nested(net, structure, calibration, ranking) -> None:
    pruner = Pruner(net, structure, calibration, ranking=ranking)
    for index, group in enumerate(structure.groups):
        earlier: set[int] = set()
        for count in range(1, group.size + 1):
            counts = structure.sizes.tolist()
            counts[index] = count
            policy = pruner.policy(counts)
            assert policy.keep_counts == tuple(counts)
            kept = set(policy.groups[index].keep)
            assert earlier < kept
            earlier = kept


def test_the_network_and_the_pruner_stay_as_they_were(net, structure, calibration) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruner = Pruner(net, structure, calibration)
    counts = half(structure)
    first = pruner.build(counts)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()  # what a user does with one result …
    second, third = pruner.build(counts), Pruner(net, structure, calibration).build(counts)
    for name, value in third.state_dict().items():  # … does not reach the next one through the cache
        assert torch.equal(second.state_dict()[name], value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_a_given_order_replaces_the_ranking_and_is_refitted_in_the_same_way(net, structure, calibration) -> None:
    ranked = Pruner(net, structure, calibration, ranking="magnitude")
    given = Pruner(net, structure, calibration, orders=ranked.orders)
    counts = [max(1, group.size // 2) for group in structure.groups]
    assert given.policy(counts) == ranked.policy(counts) != Pruner(net, structure, calibration).policy(counts)
    for name, value in ranked.build(counts).state_dict().items():
        assert torch.equal(given.build(counts).state_dict()[name], value)


def test_values_by_the_names_of_tensors_are_sliced_as_the_network_is(net, structure, calibration) -> None:
    pruner = Pruner(net, structure, calibration, reconstruct=False)
    counts = [max(1, group.size // 2) for group in structure.groups]
    values = dict(net.state_dict())
    sliced = pruner.sliced(values, counts)
    for name, value in pruner.build(counts).state_dict().items():
        assert torch.equal(sliced[name], value)


def test_without_calibration_channels_are_ranked_by_magnitude_and_sliced(net, structure) -> None:
    pruner = Pruner(net, structure)
    counts = half(structure)
    assert pruner.policy(counts) == Pruner(net, structure, ranking="magnitude").policy(counts)
    slim = pruner.build(counts)
    expected = slice_model(net, structure, structure.mask(pruner.policy(counts).keep))
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in slim.state_dict().items())


def test_a_layer_without_room_for_its_gram_is_sliced_and_the_rest_refitted(net, structure) -> None:
    partial = calibrate(net, structure, BATCHES, positions=ALL, memory=8 * 24**2 + 8 * 12**2)
    assert 0 < len(partial.grams) < 7
    pruner = Pruner(net, structure, partial)
    assert set(pruner.fits) == set(partial.grams)
    assert output_error(net, pruner.build(half(structure))) < output_error(
        net, Pruner(net, structure, partial, reconstruct=False).build(half(structure))
    )


@pytest.mark.parametrize("name", CASES)
def test_every_toy_is_built_at_every_size_with_the_costs_foretold(name: str) -> None:
    torch.manual_seed(1)
    model, x = CASES[name]()
    structure = inspect(model.eval(), x)
    pruner = Pruner(model, structure, calibrate(model, structure, [x], positions=ALL))
    for share in (0.01, 0.5, 1.0):
        counts = [max(1, round(group.size * share)) for group in structure.groups]
        slim = pruner.build(counts)
        assert count_macs(slim, x) == structure.cost.macs(counts)
        assert count_params(slim) == structure.cost.params(counts)
        with torch.no_grad():
            assert torch.isfinite(slim(x)).all()


def test_apply_policy_is_plain_slicing() -> None:
    torch.manual_seed(0)
    model, x = Residual("padding").eval(), image()
    before = copy.deepcopy(model.state_dict())
    structure = inspect(model, x)
    keep = random_keep(structure, 4)
    policy = Policy.of(keep, {group.name: group.size for group in structure.groups})
    slim, expected = apply_policy(model, x, policy), slice_model(model, structure, structure.mask(keep))
    assert type(slim) is Residual
    with torch.no_grad():
        assert torch.equal(slim(x), expected(x))
        assert not torch.equal(slim(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(apply_policy(model, x, policy, structure)(x), slim(x))


def test_groups_a_policy_does_not_name_stay_whole() -> None:
    model, x = Residual("projection").eval(), image()
    slim = apply_policy(model, x, Policy((GroupPolicy("a1", 6, (0, 5)),)))
    assert slim.a1.weight.shape == (2, 8, 3, 3)
    assert slim.b1.weight.shape == model.b1.weight.shape
    assert torch.equal(slim.a2.weight, model.a2.weight[:, [0, 5]])


def test_a_policy_of_another_network_is_refused_by_name_and_size() -> None:
    model, x = Concat().eval(), image()
    with pytest.raises(
        ModelError, match=r"policy does not fit this network: nothing that can be pruned is called 'a1'"
    ):
        apply_policy(model, x, Policy((GroupPolicy("a1", 6, (0,)),)))
    with pytest.raises(ModelError, match=r"another network: 'stem' has 6 channels, not 8"):
        apply_policy(model, x, Policy((GroupPolicy("stem", 8, (0,)),)))
