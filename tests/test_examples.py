"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import torch

import amc


def test_own_network_is_halved_and_loads_again(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "examples" / "own_network.py"
    spec = importlib.util.spec_from_file_location("own_network", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.main(tmp_path / "run", episodes=4, epochs=2)
    x = torch.zeros(1, 1, 8, 8)
    assert amc.count_macs(result.model, x) <= 0.5 * amc.count_macs(example.Branches(), x)
    assert type(result.model) is example.Branches
    loaded = amc.load_run(tmp_path / "run", example.Branches(), x)
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in result.model.parameters()]
