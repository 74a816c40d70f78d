"""Masks of weights that are used through functions, of stacks of experts and of recurrent layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.errors import BudgetError
from amc.pruning import calibrate
from amc.pruning.compensation import compensate
from amc.pruning.methods import MaskedMethod, MethodOptions, create_method, problem_of
from amc.structure import count_macs, count_params, inspect
from tests.structure.sequences import Experts, Gpt, Recogniser, Stepwise

NETS: dict[str, tuple[type[nn.Module], dict[str, Any], Tensor]] = {
    "gpt": (Gpt, {}, torch.randint(0, 50, (16, 6), generator=torch.Generator().manual_seed(0))),
    "experts": (Experts, {}, torch.randn(16, 6, generator=torch.Generator().manual_seed(0))),
    "lstm": (Recogniser, {"bidirectional": True}, torch.randn(16, 1, 8, 7, generator=torch.Generator().manual_seed(0))),
    "cells": (Stepwise, {"kind": nn.GRUCell}, torch.randn(16, 4, 6, generator=torch.Generator().manual_seed(0))),
}


def made(name: str, method: str, **options: Any) -> tuple[nn.Module, MaskedMethod, Tensor]:
    torch.manual_seed(0)
    kind, arguments, x = NETS[name]
    model = kind(**arguments).eval()
    found = create_method(method, model, inspect(model, x), MethodOptions(**options))
    assert isinstance(found, MaskedMethod)
    return model, found, x


@pytest.mark.parametrize("method", ["fine-grained", "1:2", "rows", "columns", "blocks:2x2"])
@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_the_masked_network(name: str, method: str) -> None:
    """The weights kept of every layer are as promised, and each is used equally often."""
    model, found, x = made(name, method)
    names = {decision.name for decision in found.decisions}
    expected = {
        "gpt": {"h.0.c_attn", "h.1.c_fc", "h.1.c_out", "head"},
        "experts": {"up", "down"},
        "lstm": {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l0_reverse", "rnn.weight_hh_l0_reverse"},
        "cells": {"inside", "cell.weight_ih", "cell.weight_hh"},
    }[name]
    assert expected - set(found.whole) <= names
    assert expected & names
    builder = found.builder(calibrate(model, found.structure, [x], layers=found.calibrated()))
    problem = problem_of(found, ())
    for counts in ([d.choices[len(d.choices) // 2] for d in found.decisions], [d.choices[0] for d in found.decisions]):
        slim = builder.build(counts)
        claimed = {str(metric): value for metric, value in problem.policy_costs(counts).items()}
        recounted = found.recount(slim, x)
        assert recounted["macs"] == claimed["macs"]
        assert recounted["params"] == claimed["params"]
        assert recounted["size"] <= claimed["size"]
    assert recounted["macs"] < count_macs(model, x)
    assert recounted["params"] < count_params(model)


def test_a_weight_that_is_stored_in_out_is_masked_along_its_inputs() -> None:
    """2:4 keeps two of four consecutive *inputs*, the rows of a [in, out] weight."""
    model, found, _ = made("gpt", "2:4", reconstruct=False)
    slim = found.builder(None).build([decision.choices[0] for decision in found.decisions])
    weight, dense = slim.h[0].c_fc.weight, model.h[0].c_fc.weight
    assert weight.shape == (24, 40)
    assert ((weight.reshape(6, 4, 40) != 0).sum(1) == 2).all()
    largest = dense.reshape(6, 4, 40).abs().topk(2, dim=1).indices.sort(1).values
    kept = weight.reshape(6, 4, 40).abs().topk(2, dim=1).indices.sort(1).values
    assert torch.equal(kept, largest)


def test_kept_weights_compensate_for_masked_ones_in_every_layout() -> None:
    """As for the same weight of a linear layer, [out, in]."""
    model, found, x = made("gpt", "fine-grained")
    gathered = calibrate(model, found.structure, [x], layers=found.calibrated())
    counts = [decision.choices[len(decision.choices) // 2] for decision in found.decisions]
    slim = found.builder(gathered).build(counts)
    weight, dense = slim.h[1].c_out.weight.T, model.h[1].c_out.weight.T
    expected = compensate(dense.contiguous(), weight != 0, gathered.grams["h.1.c_out.weight"].damped())
    torch.testing.assert_close(weight, expected.float())
    assert not torch.equal(weight, dense * (weight != 0))


def test_every_expert_is_compensated_with_its_own_inputs() -> None:
    model, found, x = made("experts", "fine-grained")
    gathered = calibrate(model, found.structure, [x], layers=found.calibrated())
    counts = [decision.choices[len(decision.choices) // 2] for decision in found.decisions]
    slim = found.builder(gathered).build(counts)
    for expert in range(3):
        weight, dense = slim.down[expert].T, model.down[expert].T
        gram = gathered.grams["down"].damped()[expert : expert + 1]
        torch.testing.assert_close(weight, compensate(dense.contiguous(), weight != 0, gram).float())


def test_a_recurrent_layer_still_runs_on_its_masked_weights() -> None:
    """nn.LSTM keeps a list of its weights beside its attributes: both must be the masked ones."""
    _, found, x = made("lstm", "fine-grained", reconstruct=False)
    slim = found.builder(None).build([decision.choices[0] for decision in found.decisions])
    plain = Recogniser(bidirectional=True).eval()
    plain.load_state_dict(slim.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(slim(x), plain(x))
    assert int(torch.count_nonzero(slim.rnn.weight_hh_l0)) < slim.rnn.weight_hh_l0.numel()


def test_a_network_without_layers_is_reported() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = Scaled().eval()
    found = create_method("fine-grained", model, inspect(model, torch.randn(4, 6)))
    with pytest.raises(BudgetError, match="no parameter is the weight of a convolution, a product or a recurrent"):
        problem_of(found, ())
