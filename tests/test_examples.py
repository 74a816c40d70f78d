"""The example and the notebooks run, and do what they say."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import amc
from tests.documents import cells, smaller

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPT = FOLDER / "from_dense_to_phone.py"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


@pytest.fixture
def seen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a notebook has defined once all its cells have run, in order."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {"__name__": "__main__"}
    for number, text in enumerate(cells(request.param)):
        exec(compile(smaller(text), f"{request.param.name}, cell {number}", "exec"), seen)
    return seen


@pytest.mark.parametrize("seen", [FOLDER / "report.ipynb"], indirect=True)
def test_the_notebook_from_a_network_to_a_report_runs(seen: dict[str, Any]) -> None:
    slim, example, run = seen["result"].model, seen["example"], seen["RUN"]
    assert amc.count_macs(slim, example) <= 0.5 * amc.count_macs(seen["dense"], example)
    assert set(seen["rows"]) == {"dense", "AMC", "uniform", "random"}
    assert (run / "report.html").exists()
    assert (run / "slim.onnx").exists()


@pytest.mark.parametrize("seen", [FOLDER / "policies.ipynb"], indirect=True)
def test_the_notebook_of_policies_runs(seen: dict[str, Any]) -> None:
    macs = amc.count_macs(seen["dense"], seen["example"])
    assert seen["by_hand"].keep_counts == (8, 8, 16, 16, 32, 32)
    assert amc.count_macs(seen["sliced"], seen["example"]) == round(seen["share"] * macs) < 0.3 * macs
    for result in (seen["uniform"], *seen["found"].values()):
        assert amc.count_macs(result.model, seen["example"]) <= 0.3 * macs
    assert [result.summary["agent"] for result in seen["found"].values()] == ["random", "ddpg", "planner"]
