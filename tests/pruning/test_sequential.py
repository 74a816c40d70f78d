"""Least squares on the pruned network's own inputs, layer after layer, against `torch.linalg.lstsq`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.pruning import Pruner, calibrate, reconstructible
from amc.pruning.sequential import SAMPLES, DenseOutputs, fitted
from amc.structure import inspect
from amc.structure.trace import Example
from tests.pruning.samples import patches
from tests.tiny import EXAMPLE, compress, images, tiny


class Flat(nn.Module):
    """Three linear layers, so that every example is one sample and nothing is drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))
        return out


def flat() -> tuple[Flat, Tensor]:
    torch.manual_seed(0)
    return Flat().eval(), torch.randn(400, 6)


def pruner_of(model: nn.Module, x: Tensor) -> Pruner:
    structure = inspect(model, x[:1])
    outputs = DenseOutputs.of(model, reconstructible(structure)[0], Example.of(x))
    return Pruner(model, structure, calibrate(model, structure, [x]), outputs=outputs)


def test_without_damping_the_solution_is_that_of_lstsq() -> None:
    torch.manual_seed(0)
    rows, target = torch.randn(2, 50, 6), torch.randn(2, 50, 3, dtype=torch.float64)
    solution = fitted(rows, target, torch.zeros(2, 6, 3, dtype=torch.float64), damping=0.0)
    torch.testing.assert_close(solution, torch.linalg.lstsq(rows.double(), target).solution)


def test_damping_pulls_towards_the_dense_weights() -> None:
    torch.manual_seed(0)
    rows, start = torch.randn(1, 50, 6), torch.randn(1, 6, 3, dtype=torch.float64)
    target = torch.randn(1, 50, 3, dtype=torch.float64)
    ridge = (rows.double().square().mean((0, 1)).mean() * 50 * 0.5).sqrt() * torch.eye(6, dtype=torch.float64)[None]
    expected = torch.linalg.lstsq(torch.cat([rows.double(), ridge], 1), torch.cat([target, ridge @ start], 1)).solution
    torch.testing.assert_close(fitted(rows, target, start, damping=0.5), expected)
    torch.testing.assert_close(fitted(rows, target, start, damping=1e9), start, atol=1e-6, rtol=0)


def test_every_layer_is_fitted_to_inputs_that_come_from_the_layers_refitted_before_it() -> None:
    model, x = flat()
    pruner = pruner_of(model, x)
    keep = (6, 4)
    slim = pruner.build(keep)
    assert pruner.outputs is not None
    kept = {group.name: torch.tensor(pruner.policy(keep).keep[group.name]) for group in pruner.structure.groups}
    first, second = kept["a"], kept["b"]
    with torch.no_grad():
        dense = F.relu(F.batch_norm(model.a(x), None, None, model.norm.weight, model.norm.bias, training=True))
        own = F.relu(F.batch_norm(slim.a(x), None, None, slim.norm.weight, slim.norm.bias, training=True))
        targets = [dense @ model.b.weight.T, F.relu(model.b(dense)) @ model.c.weight.T]
        b = fitted(own[None], targets[0].double()[None], model.b.weight.double().T[first][None])[0]
        torch.testing.assert_close(slim.b.weight, b.T[second].float(), atol=1e-5, rtol=1e-4)
        hidden = F.relu(slim.b(own))  # of the refitted layer
        c = fitted(hidden[None], targets[1].double()[None], model.c.weight.double().T[second][None])[0]
        torch.testing.assert_close(slim.c.weight, c.T.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [(6, 4), (9, 8), (3, 2)])
def test_the_output_error_falls_against_fitting_every_layer_alone(keep: tuple[int, int]) -> None:
    model, x = flat()
    both = pruner_of(model, x)
    alone = Pruner(model, both.structure, calibrate(model, both.structure, [x]), orders=both.orders)
    model.norm.train()  # the statistics of the batch, as in the fit
    errors = []
    with torch.no_grad():
        wanted = model(x)
        for pruner in (both, alone):
            slim = pruner.build(keep)
            slim.norm.train()
            errors.append(float((slim(x) - wanted).square().mean()))
    assert errors[0] < errors[1]


def test_convolutions_are_fitted_at_the_same_places_of_both_networks() -> None:
    """A 3x3 map has fewer places than are sampled, so all of them count, as in `patches`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(64, 2, 3, 3)
    pruner = pruner_of(model.eval(), x)
    slim = pruner.build((5, 4))
    kept = torch.tensor(pruner.policy((5, 4)).keep["0"])
    with torch.no_grad():
        inputs, own = F.relu(model[0](x)), F.relu(slim[0](x))
        target = patches(model[2], inputs) @ model[2].weight.double().flatten(1).T
        start = model[2].weight.double()[:, kept].flatten(1).T
        expected = fitted(patches(slim[2], own), target, start[None])[0]
    torch.testing.assert_close(slim[2].weight.flatten(1), expected.T.float(), atol=1e-5, rtol=1e-4)


def test_layers_with_few_samples_and_layers_that_run_twice_keep_their_fit() -> None:
    class Twice(Flat):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
            return self.c(x) + self.c(x.flip(0))

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(400, 6)
    pruner = pruner_of(model, x)
    assert pruner.outputs is not None
    assert set(pruner.outputs.outputs) == {"b.weight"}
    few, narrow = flat()[0], torch.randn(SAMPLES * 6 - 1, 6)
    structure = inspect(few, narrow[:1])
    alone = Pruner(few, structure, calibrate(few, structure, [narrow]))
    both = Pruner(
        few, structure, calibrate(few, structure, [narrow]), orders=alone.orders,
        outputs=DenseOutputs.of(few, reconstructible(structure)[0], Example.of(narrow)),
    )  # fmt: skip
    assert torch.equal(both.build((6, 4)).b.weight, alone.build((6, 4)).b.weight)
    assert not torch.equal(both.build((6, 4)).c.weight, alone.build((6, 4)).c.weight)  # 4 columns are few enough


def test_nothing_else_of_a_network_changes() -> None:
    model = tiny().eval()
    structure, x = inspect(model, EXAMPLE), images(64, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration = calibrate(model, structure, [x])
    outputs = DenseOutputs.of(model, reconstructible(structure)[0], Example.of(x))
    pruner = Pruner(model, structure, calibration, outputs=outputs)
    slim, alone = pruner.build((5, 6, 4)), Pruner(model, structure, calibration).build((5, 6, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in slim.state_dict().items() if not torch.equal(value, alone.state_dict()[name])}
    assert changed == {"b.weight", "c.weight", "head.weight"}
    assert not any(part.training for part in slim.modules())
    assert all(norm.track_running_stats for norm in (slim.norm_a, slim.norm_b))
    again = pruner.build((5, 6, 4))
    assert all(torch.equal(value, slim.state_dict()[name]) for name, value in again.state_dict().items())
    whole = pruner.build((10, 12, 8))
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_a_search_refits_its_networks_in_sequence_if_asked() -> None:
    plain, sequential = (compress(tiny(), sequential=way, seed=1, bn_images=64) for way in (False, True))
    assert plain.summary["slim"]["score"] != sequential.summary["slim"]["score"]
    assert sequential.summary["slim"]["macs"] <= 0.5 * sequential.summary["dense"]["macs"]
