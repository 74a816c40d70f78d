"""A whole search on networks as users hold them: wrapped, compiled, hooked, with caches. Theirs stays as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amc

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(64) % 4


class Net(nn.Module):
    """Counts its calls for all of its instances, and remembers the last output."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3))
        self.head, self.last = nn.Linear(16, 4), None

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        self.last = self.head(self.body(x).mean((2, 3)))
        return self.last


def compiled_in_place() -> nn.Module:
    model = Net()
    model.compile()
    return model


def compiled_part() -> nn.Module:
    model = Net()
    model.body = torch.compile(model.body)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bare": Net,
    "parallel": lambda: nn.DataParallel(Net()),
    "compiled": lambda: torch.compile(Net()),
    "compiled in place": compiled_in_place,
    "compiled part": compiled_part,
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(Net())),
}


def search(model: nn.Module, run_dir: Path, **more: object) -> amc.Result:
    return amc.compress(
        model,
        IMAGES[:1],
        calibration=[(IMAGES, LABELS)],
        evaluate=[(IMAGES, LABELS)],
        budget="macs<=60%",
        episodes=3,
        keep_sets=1,
        run_dir=run_dir,
        **more,
    )


@pytest.mark.parametrize("method", ["channel", "fine-grained"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapped_network_is_searched_and_its_run_loads_again(name: str, method: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    result = search(model, tmp_path / "run", method=method)
    assert type(result.model) is Net
    assert not any("module" in key or "_orig_mod" in key for key in result.model.state_dict())
    with torch.no_grad():
        expected = result.model(IMAGES)
    for given in (model, NETWORKS[name](), Net()):
        loaded = amc.load_run(tmp_path / "run", given, IMAGES[:1])
        assert type(loaded) is Net
        with torch.no_grad():
            torch.testing.assert_close(loaded(IMAGES), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert search(model, tmp_path / "run", method=method, resume=True).policy.to_json() == result.policy.to_json()


def test_the_users_network_and_random_states_are_as_before(tmp_path: Path) -> None:
    model, seen = Net(), []
    model.body[0].register_forward_hook(lambda module, args, out: seen.append(out))
    kept = copy.copy(vars(model))
    Net.calls = 0
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    result = search(model, tmp_path / "run")
    assert vars(model) == kept
    assert (model.last, seen, Net.calls) == (None, [], 0)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # noqa: NPY002
    assert result.summary["slim"]["macs"] <= 0.6 * result.summary["dense"]["macs"]


def test_a_forward_that_writes_into_its_input_is_scored_as_if_it_did_not(tmp_path: Path) -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    class Copies(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2)

    images = IMAGES.clone()
    scores = [search(kind(), tmp_path / kind.__name__).summary for kind in (Writes, Copies)]
    assert scores[0]["dense"]["score"] == scores[1]["dense"]["score"]
    assert scores[0]["slim"] == scores[1]["slim"]
    assert torch.equal(images, IMAGES)


class SizesItself(Net):
    """Makes a buffer of the input's size, and keeps a tensor of its own channels, at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.ones: Tensor | None = None
        self.register_buffer("grid", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.grid.shape[0] != x.shape[-1]:
            self.grid = torch.ones(x.shape[-1])
        if self.ones is None:
            self.ones = torch.ones_like(self.body[3].bias)
        return self.head(self.body(x * self.grid).mean((2, 3)) * self.ones)


@pytest.mark.parametrize("method", ["channel", "fine-grained"])
def test_state_that_a_forward_stores_in_the_network_is_not_sliced(method: str, tmp_path: Path) -> None:
    result = search(SizesItself(), tmp_path / "run", method=method, test=[(IMAGES, LABELS)])
    plain = search(Net(), tmp_path / "plain", method=method, test=[(IMAGES, LABELS)])
    assert result.summary["groups"] == plain.summary["groups"]
    assert result.summary["slim"]["test"] == plain.summary["slim"]["test"]
    assert result.summary["failed_episodes"] == 0


class Head(nn.Module):
    """A head that can be made anew for another number of classes, as timm's can."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features, self.fc = in_features, nn.Linear(in_features, 4)

    def reset(self, classes: int) -> None:
        self.fc = nn.Linear(self.in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_sizes_that_the_network_declares_are_those_of_the_slim_network(tmp_path: Path) -> None:
    model = Net()
    model.head = Head(16)
    result = search(model, tmp_path / "run")
    for slim in (result.model, amc.load_run(tmp_path / "run", model, IMAGES[:1])):
        assert slim.head.in_features == slim.body[3].out_channels < 16
        slim.head.reset(7)
        assert slim(IMAGES).shape == (64, 7)
    assert model.head.in_features == 16
