"""The example runs, and does what it says."""

import importlib.util
from pathlib import Path

import pytest
import torch

import amc

SCRIPT = Path(__file__).parent.parent / "examples" / "from_dense_to_phone.py"


def test_a_network_of_ones_own_goes_from_dense_to_phone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("from_dense_to_phone", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    run, x = tmp_path / "run", torch.zeros(1, 1, 8, 8)

    result = example.main(run, episodes=4, epochs=2, rounds=3, max_seconds=0)

    assert amc.count_macs(result.model, x) <= 0.5 * amc.count_macs(example.Branches(), x)
    assert type(result.model) is example.Branches
    loaded = amc.load_run(run, example.Branches(), x)
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in result.model.parameters()]
    assert (run / "report.html").exists()
    assert (run / "slim.onnx").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    told = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert told == ["dense network", "network", "search", "fine-tuning", "file", "latency", "report"]
    assert f"search: {result}" in lines
    assert "  Group(wide.0.0.0: 32 channels)" in lines


def test_the_story_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 80
