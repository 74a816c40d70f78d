"""Pruned networks in folders and on the Hugging Face hub, whose client is replaced by one that keeps folders."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression import hub
from amc.errors import ModelError, RunError
from amc.report.tables import format_count
from tests.commands import AS_PRUNED
from tests.commands import amc as command

X = torch.randn(4, 1, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu().flatten(1))
        return y


@pytest.fixture(scope="module")
def pruned() -> amc.Result:
    torch.manual_seed(0)
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(3, (32,)))]
    return amc.compress(
        Net(), X[:1], calibration=batches, evaluate=batches, budget="macs<=50%", episodes=2, recover="none", finalists=0
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that has a name, in which most weights are zero."""
    path = tmp_path_factory.mktemp("hub") / "run"
    options = ("--method", "fine-grained", "--budget", "params<=30%", "--episodes", 2, "--out", path)
    finished = command("search", "digits_cnn", *options, *AS_PRUNED)
    assert finished.code == 0, finished.stderr
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(a(X), b(X))


def test_a_network_of_ones_own_comes_back_from_a_folder(pruned: amc.Result, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path / "deep" / "folder")
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "README.md", "amc.json", "model.safetensors", "policy.json"
    ]  # fmt: skip
    slim = amc.from_hub(tmp_path / "deep" / "folder", Net(), X[:1])
    assert same(slim, pruned.model)
    assert not slim.training
    with pytest.raises(RunError, match=r"load it with from_hub\(repo, model, example_input\)"):
        amc.from_hub(tmp_path / "deep" / "folder")
    with pytest.raises(ModelError):
        amc.from_hub(tmp_path / "deep" / "folder", nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), X[:1])


def test_the_card_has_the_table_and_code_that_runs(pruned: amc.Result, run: Path, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path / "own")
    card = (tmp_path / "own" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: pytorch\n")
    assert f"| MACs | {format_count(amc.count_macs(Net(), X[:1]))} |" in card
    assert "macs<=50%" in card
    assert 'amc.from_hub("USER/NAME", MyNet(), torch.zeros(1, 3, 224, 224))' in card
    hub.write_run(run, tmp_path / "named")
    card = (tmp_path / "named" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("USER/NAME", str(tmp_path / "named"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert same(names["net"], amc.load_run(run))


def test_a_run_with_a_name_is_built_from_it_and_stays_compact(run: Path, tmp_path: Path) -> None:
    finished = command("push", run, tmp_path / "out", "--folder")
    assert (finished.code, finished.stdout.split()) == (0, ["written", str(tmp_path / "out")])
    assert (tmp_path / "out/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    net = amc.from_hub(tmp_path / "out")
    assert same(net, amc.load_run(run))
    about = json.loads((tmp_path / "out/amc.json").read_text())
    assert (about["model"], about["input_shape"]) == ("digits_cnn", [1, 8, 8])


def test_masked_weights_of_a_result_are_compact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(3, (32,)))]
    options: dict[str, Any] = {"episodes": 2, "recover": "none", "finalists": 0, "method": "fine-grained"}
    result = amc.compress(
        Net(), X[:1], calibration=batches, evaluate=batches, budget="params<=30%", run_dir=tmp_path / "run", **options
    )
    result.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "run/model.safetensors").read_bytes()
    assert same(amc.from_hub(tmp_path / "out", Net(), X[:1]), result.model)


@pytest.fixture
def client(monkeypatch: Any, tmp_path: Path) -> dict[str, Any]:
    """What the hub's client was asked; repositories are folders below `tmp_path`."""
    asked: dict[str, Any] = {}
    real: Any = pytest.importorskip("huggingface_hub")

    def bound(function: Any, *args: Any, **options: Any) -> None:
        inspect.signature(function).bind(*args, **options)  # the real client takes these, too

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            asked["token"] = token

        def create_repo(self, repo: str, **options: Any) -> str:
            bound(real.HfApi.create_repo, self, repo, **options)
            asked.update(options)
            return f"https://hub/{repo}"

        def upload_folder(self, **options: Any) -> None:
            bound(real.HfApi.upload_folder, self, **options)
            shutil.copytree(options["folder_path"], tmp_path / options["repo_id"], dirs_exist_ok=True)

    def snapshot_download(repo: str, **options: Any) -> str:
        bound(real.snapshot_download, repo, **options)
        asked.update(options)
        if not (tmp_path / repo).is_dir():
            raise OSError("404")
        return str(tmp_path / repo)

    monkeypatch.setattr(hub, "_library", lambda: SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download))
    return asked


def test_a_result_goes_to_the_hub_and_comes_back(pruned: amc.Result, client: dict[str, Any], tmp_path: Path) -> None:
    assert pruned.push_to_hub("me/small", private=True, token="t") == "https://hub/me/small"
    assert (client["token"], client["private"], client["exist_ok"]) == ("t", True, True)
    assert 'from_hub("me/small"' in (tmp_path / "me/small/README.md").read_text()
    assert same(amc.from_hub("me/small", Net(), X[:1], revision="v1"), pruned.model)
    assert client["revision"] == "v1"
    assert set(client["allow_patterns"]) == {"model.safetensors", "policy.json", "amc.json"}


def test_a_repository_that_is_not_there_is_one_clear_line(client: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"'me/nothing' cannot be loaded from the hub \(.*404.*\); check the name"):
        amc.from_hub("me/nothing", Net(), X[:1])


def test_without_the_client_it_says_what_to_install(monkeypatch: Any) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RunError, match=r"pip install 'amc-compress\[hub\]'"):
        amc.from_hub("me/small", Net(), X[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "os:system"},
        {"model": "timm:local-dir:/etc"},
        {"model": "timm:hf-hub:evil/net"},
        {"model": "hf:evil/net"},
        {"model": "../net"},
        {"model": ["digits_cnn"]},
        {"model_args": {"weights": "x.pt"}},
        {"model_args": {"num_classes": 10**9}},
        {"model_args": {"width": 1e9}},
        {"model_args": {"num_classes": True}},
        {"input_shape": [1, 10**6, 10**6]},
        {"input_shape": [1, -8, 8]},
        {"input_shape": []},
        {"input_shape": "8"},
    ],
)
def test_a_strangers_file_builds_nothing_but_known_networks(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    hub.write_run(run, tmp_path / "out")
    about = json.loads((tmp_path / "out/amc.json").read_text())
    about.pop("sha256")
    (tmp_path / "out/amc.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(RunError, match="names a network that cannot be built safely from a name alone"):
        amc.from_hub(tmp_path / "out")


@pytest.mark.parametrize("name", ["policy.json", "amc.json", "model.safetensors"])
def test_a_file_that_is_damaged_or_missing_is_named(run: Path, tmp_path: Path, name: str) -> None:
    hub.write_run(run, tmp_path / "out")
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises((RunError, ModelError), match=name):
        amc.from_hub(tmp_path / "out")
    file.unlink()
    with pytest.raises((RunError, ModelError), match=name):
        amc.from_hub(tmp_path / "out")


def test_a_run_of_several_rounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"schedule": [0.8, 0.5]}))
    with pytest.raises(RunError, match="was pruned in rounds"):
        hub.write_run(tmp_path, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told(pruned: amc.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another folder"):
        pruned.save_pretrained(tmp_path / "file" / "folder")
