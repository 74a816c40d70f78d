"""The same job on a CUDA device: skipped where there is none."""

import pytest
import torch
from torch import nn

import amc
from amc.compression.scoring.evaluator import Evaluator
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.distillation import distill_
from amc.structure.trace import Example
from amc.zoo import create_model, load_data, load_weights, model_info
from tests.recovery.test_distances import Recurrent, Tied
from tests.recovery.test_distillation import damaged


@pytest.mark.gpu
def test_the_whole_job_on_a_cuda_device() -> None:
    info, data = model_info("digits_cnn"), load_data("digits")
    assert info is not None
    assert info.weights is not None
    model = create_model("digits_cnn").eval()
    load_weights(model, info.weights)
    model, example = model.cuda(), torch.zeros(1, 1, 8, 8, device="cuda")
    result = amc.compress(
        model, example, calibration=data.calibration.batches(256), evaluate=data.search, episodes=8, seed=0
    )
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cuda"}
    assert 0.49 <= amc.count_macs(result.model, example) / amc.count_macs(model, example) <= 0.5
    assert result.summary["slim"]["score"] > 0.7
    finetune(result.model, data.train, FineTuneConfig(epochs=2))
    assert Evaluator(data.search)(result.model) > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Recurrent, Tied])  # cuDNN has gradients for a recurrent layer in training mode alone
def test_recovery_on_a_cuda_device(kind: type[nn.Module]) -> None:
    dense = kind().eval()
    slim = damaged(dense)
    batches = [Example.of(torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))) for seed in range(8)]
    found = distill_(slim.cuda(), dense.cuda(), batches, classes=False)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]
