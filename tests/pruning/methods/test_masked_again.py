"""Fine-grained pruning of a network that has been masked before, as every round of a schedule but the first does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from amc.pruning import calibrate
from amc.pruning.methods import MethodOptions, create_method
from amc.structure import inspect
from tests.tiny import EXAMPLE, images, tiny


def masked_before() -> nn.Module:
    """About half of all weights are zero."""
    model = tiny().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= torch.rand(parameter.shape, generator=generator) < 0.5
    return model


@pytest.mark.parametrize("reconstruct", [False, True])
def test_masked_weights_stay_zero_and_cost_nothing(reconstruct: bool) -> None:
    model = masked_before()
    structure = inspect(model, EXAMPLE)
    method = create_method("fine-grained", model, structure, MethodOptions(reconstruct=reconstruct))
    builder = method.builder(calibrate(model, structure, [images(64, 1)], layers=method.calibrated()))
    named = dict(model.named_parameters())
    generator = np.random.default_rng(0)
    policies = [[decision.size for decision in method.decisions]]
    policies += [[int(generator.choice(decision.choices)) for decision in method.decisions] for _ in range(10)]
    for keep in policies:
        slim = builder.build(keep)
        found = method.recount(slim, EXAMPLE)
        for metric in ("macs", "params"):
            assert method.costs[metric](np.array(keep)) == found[metric]  # type: ignore[index]
        for name, weight in slim.named_parameters():
            assert not weight[named[name] == 0].any()
    whole = builder.build(policies[0])
    assert all(torch.equal(value, named[name]) for name, value in whole.named_parameters())


def test_a_layer_at_its_least_is_still_masked_when_the_method_is_made_again() -> None:
    """Fine-tuning knows from the network alone which weights must stay zero."""
    model = tiny().eval()
    method = create_method("fine-grained", model, inspect(model, EXAMPLE), MethodOptions())
    least = [decision.choices[0] for decision in method.decisions]
    slim = method.builder(None).build(least)
    again = create_method("fine-grained", slim, inspect(slim, EXAMPLE), MethodOptions())
    assert again.weights() == method.weights()  # type: ignore[attr-defined]
    assert again.recount(slim, EXAMPLE) == method.recount(slim, EXAMPLE)
    assert [decision.choices for decision in again.decisions] == [(count,) for count in least]
