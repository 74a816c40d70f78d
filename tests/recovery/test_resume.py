"""Going on from a checkpoint gives what an uninterrupted training gives, to the bit."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc.errors import AmcError, RunError
from amc.recovery import EpochRecord, FineTuneConfig, FineTuneResult, ResumePoint, StepRecord, finetune, resume_point
from amc.recovery.checkpoint import Position, TrainingState, load, save
from amc.zoo import ImageSet
from tests.recovery.samples import half_masks, same, small_network, state, stripes

STEPS = 4  # an epoch
EPOCHS = 3
DATA = stripes(64)

VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimiser": "adamw"},
    "average": {"ema": 0.8, "momentum": 0.0},
    "all": {"optimiser": "adamw", "ema": 0.9, "precision": "bfloat16", "label_smoothing": 0.1, "distill": 0.4},
}


class Killed(BaseException):
    """Like a SIGKILL: nothing in the library handles it."""


def network(channels_last: bool = False) -> nn.Module:
    model = small_network()
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def train(model: nn.Module, variant: str, path: Path | None = None, **arguments: Any) -> FineTuneResult:
    config = FineTuneConfig(epochs=EPOCHS, batch_size=16, lr=0.02, **VARIANTS[variant])
    masks = half_masks(model) if variant == "all" else None
    return finetune(model, DATA, config, masks=masks, teacher=small_network(7), checkpoint=path, **arguments)


def killed_at(step: int) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            raise Killed

    return on_step


def scored(record: EpochRecord) -> float:
    return record.loss / 2 + float(torch.rand(()))  # draws from the generator that dropout draws from


def comparable(result: FineTuneResult) -> list[tuple[Any, ...]]:
    """Everything but the wall clock."""
    return [(record.epoch, record.loss, record.lr, record.score) for record in result.epochs]


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[dict[str, Tensor], list[tuple[Any, ...]]]]:
    found = {}
    for variant in VARIANTS:
        model = network()
        result = train(model, variant, on_epoch=scored)
        found[variant] = state(model), comparable(result)
    return found


@settings(max_examples=25)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    kills=st.lists(st.integers(1, STEPS * EPOCHS), min_size=1, max_size=3),
    every=st.integers(0, 5),
)
def test_killed_anywhere_it_ends_the_same(
    expected: dict[str, tuple[dict[str, Tensor], list[tuple[Any, ...]]]], variant: str, kills: list[int], every: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt"
        for kill in kills:
            model = network()
            done = resume_point(path)
            if done is not None and done.step >= kill:
                continue
            with pytest.raises(Killed):
                train(model, variant, path, checkpoint_every=every, on_step=killed_at(kill), on_epoch=scored)
            assert not model.training
            point = resume_point(path)
            # What a kill in step `kill` leaves: the last whole epoch, or a step after it.
            before = kill - 1
            least = max(before - before % every if every else 0, before - before % STEPS)
            assert (0 if point is None else point.step) == least
        model = network()
        result = train(model, variant, path, checkpoint_every=every, on_epoch=scored)
        assert same(state(model), expected[variant][0])
        assert comparable(result) == expected[variant][1]


def test_the_order_of_memory_is_part_of_the_state(tmp_path: Path) -> None:
    whole, resumed = network(channels_last=True), network(channels_last=True)
    train(whole, "adamw")
    with pytest.raises(Killed):
        train(resumed, "adamw", tmp_path / "ckpt", checkpoint_every=1, on_step=killed_at(6))
    resumed = network(channels_last=True)
    train(resumed, "adamw", tmp_path / "ckpt")
    assert same(state(whole), state(resumed))


def test_a_tensor_comes_back_as_it_lay_in_memory(tmp_path: Path) -> None:
    tensors = {
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "turned": torch.randn(3, 2, 4).permute(2, 0, 1),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(3).bfloat16(),
        "none": torch.empty(0, 4),
    }
    identity = {"config": {"epochs": 1}, "steps": 1}
    save(tmp_path / "c", TrainingState(Position(), tensors, {"scale": 0.1}), identity)
    loaded = load(tmp_path / "c", identity)
    assert loaded is not None
    assert (loaded.position, loaded.scaler) == (Position(), {"scale": 0.1})
    for name, tensor in tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].stride() == tensor.stride()


def test_killed_between_scoring_and_saving(tmp_path: Path) -> None:
    """The epoch's score is asked for again; it is the same."""
    model, calls = network(), []

    def on_epoch(record: EpochRecord) -> float:
        calls.append(record.epoch)
        if len(calls) == 2:
            raise Killed
        return scored(record)

    with pytest.raises(Killed):
        train(model, "average", tmp_path / "ckpt", checkpoint_every=3, on_epoch=on_epoch)
    model = network()
    result = train(model, "average", tmp_path / "ckpt", checkpoint_every=3, on_epoch=on_epoch)
    assert calls == [1, 2, 2, 3]
    assert comparable(result) == comparable(train(network(), "average", on_epoch=scored))


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    model, again = network(), network()
    first = train(model, "average", tmp_path / "ckpt", on_epoch=scored)
    second = train(again, "average", tmp_path / "ckpt", on_step=killed_at(1), on_epoch=scored)
    assert second.epochs == first.epochs
    assert same(state(model), state(again))
    assert resume_point(tmp_path / "ckpt") == ResumePoint(12, 12, 3, resume_point(tmp_path / "ckpt").config)  # type: ignore[union-attr]


def test_a_set_that_cannot_skip_is_replayed(tmp_path: Path) -> None:
    class Own:
        """What a user writes: nothing but the protocol."""

        def __len__(self) -> int:
            return 64

        def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            return DATA.training_batches(batch_size, generator)

    config = FineTuneConfig(epochs=2, batch_size=16)
    whole, resumed = network(), network()
    finetune(whole, Own(), config)
    with pytest.raises(Killed):
        finetune(resumed, Own(), config, checkpoint=tmp_path / "c", checkpoint_every=1, on_step=killed_at(7))
    resumed = network()
    finetune(resumed, Own(), config, checkpoint=tmp_path / "c")
    assert same(state(whole), state(resumed))


def test_a_shuffled_loader_goes_on_after_the_last_whole_epoch(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(DATA.images, DATA.labels), batch_size=16, shuffle=True)

    config = FineTuneConfig(epochs=3)
    whole, resumed = network(), network()
    finetune(whole, loader(), config)
    with pytest.raises(Killed):
        finetune(resumed, loader(), config, checkpoint=tmp_path / "c", checkpoint_every=1, on_step=killed_at(7))
    point = resume_point(tmp_path / "c")
    assert point is not None
    assert (point.step, point.epoch) == (4, 1)
    resumed = network()
    finetune(resumed, loader(), config, checkpoint=tmp_path / "c")
    assert same(state(whole), state(resumed))


class TestRefused:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with pytest.raises(Killed):
            train(network(), "sgd", tmp_path / "ckpt", checkpoint_every=2, on_step=killed_at(4))
        return tmp_path / "ckpt"

    def refuse(self, path: Path, model: nn.Module | None = None, data: ImageSet = DATA, **changed: Any) -> str:
        model = model or network()
        masks = changed.pop("masks", None)
        before, content = state(model), path.read_bytes()
        config = FineTuneConfig(**{"epochs": EPOCHS, "batch_size": 16, "lr": 0.02, **changed})
        with pytest.raises(RunError) as refused:
            finetune(model, data, config, checkpoint=path, masks=masks)
        assert path.read_bytes() == content
        assert same(state(model), before) or masks
        message = str(refused.value)
        assert "\n" not in message
        assert "--restart" in message
        return message

    def test_another_configuration(self, path: Path) -> None:
        assert "was made with lr 0.02, not 0.01; give what it was made with, or remove it" in self.refuse(path, lr=0.01)
        assert "was made with optimiser 'sgd', not 'adamw'" in self.refuse(path, optimiser="adamw")

    def test_another_network(self, path: Path) -> None:
        assert "another network, or other weights to start from" in self.refuse(path, small_network(1))
        wider = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        assert "another network" in self.refuse(path, wider)
        assert "other masks" in self.refuse(path, masks=half_masks(network()))

    def test_another_data_set(self, path: Path) -> None:
        assert "was made with 64 training images or batches, not 80" in self.refuse(path, data=stripes(80))

    def test_what_is_no_checkpoint(self, path: Path) -> None:
        path.write_bytes(b"")
        assert "is damaged (" in self.refuse(path)
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
        assert "it is no checkpoint of a fine-tuning" in self.refuse(path)
        with pytest.raises(RunError, match="no checkpoint"):
            resume_point(path)

    def test_a_header_that_lies(self, path: Path) -> None:
        tensors, header = parsed(path)
        for change in ({"step": -1}, {"step": "2"}, {"records": 5}, {"records": [{}]}, {"identity": {}}, {"step": 3}):
            text = json.dumps(header | change)
            path.write_bytes(safetensors.torch.save(tensors, {"amc_finetune": text}))
            assert "is damaged (" in self.refuse(path)

    def test_any_damage_is_found(self, path: Path) -> None:
        content = path.read_bytes()
        tensors, header = parsed(path)

        def harmless() -> bool:
            """0E0 for 0.0 in the JSON, say."""
            try:
                found, text = parsed(path)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, safetensors.SafetensorError):
                return False
            return text == header and same(found, tensors)

        @settings(max_examples=60)
        @given(st.integers(0, len(content) - 1), st.integers(1, 255), st.booleans())
        def damaged(position: int, change: int, cut: bool) -> None:
            broken = bytearray(content[:position] if cut else content)
            if not cut:
                broken[position] ^= change
            path.write_bytes(broken)
            try:
                assert harmless() or "is damaged (" in self.refuse(path)
            finally:
                path.write_bytes(content)

        damaged()


def parsed(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and header of a checkpoint."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, json.loads(file.metadata()["amc_finetune"])


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "ckpt", os.write

    def fill(record: StepRecord) -> None:
        if record.step == 5:  # the checkpoint of step 4 is there, that of step 6 does not fit
            monkeypatch.setattr(os, "write", full)

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 1000:
            return write(descriptor, bytes(data)[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"no space left to write '.*ckpt'; free some"):
        train(network(), "sgd", path, checkpoint_every=2, on_step=fill)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["ckpt"]
    point = resume_point(path)
    assert point is not None
    assert (point.step, point.epoch) == (4, 1)
    whole, resumed = network(), network()
    train(whole, "sgd")
    train(resumed, "sgd", path)
    assert same(state(whole), state(resumed))


@pytest.mark.parametrize("variant", ["sgd", "average"])
def test_a_loss_that_turns_nan_keeps_checkpoint_and_network(tmp_path: Path, variant: str) -> None:
    model, path = network(), tmp_path / "ckpt"
    results: list[dict[str, Tensor]] = []

    def poison(record: StepRecord) -> None:
        if record.step == 7:
            with torch.no_grad():
                model[6].bias.fill_(float("nan"))  # type: ignore[index,union-attr,operator]

    with pytest.raises(AmcError) as told:
        train(
            model, variant, path, checkpoint_every=2, on_step=poison,
            on_epoch=lambda record: results.append(state(model)),
        )  # fmt: skip
    assert str(told.value) == (
        "fine-tuning diverged: the loss is nan in epoch 2; lower the learning rate (0.02). The network is as it was "
        f"before that epoch; '{path}' keeps the last good state"
    )
    assert not model.training
    assert len(results) == 1
    assert same(state(model), results[0])
    point = resume_point(path)
    assert point is not None
    assert point.step == 6


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "ckpt"

    def poison(record: StepRecord) -> None:
        if record.step == 6:
            with torch.no_grad():
                model[6].bias.fill_(float("inf"))  # type: ignore[index,union-attr,operator]

    with pytest.raises(AmcError, match=r"diverged: '6\.bias' is no longer finite in epoch 2"):
        train(model, "sgd", path, checkpoint_every=2, on_step=poison)
    point = resume_point(path)
    assert point is not None
    assert point.step == 4


def test_misuse(tmp_path: Path) -> None:
    with pytest.raises(AmcError, match="checkpoint_every must be at least 0 steps, got -1"):
        train(network(), "sgd", tmp_path / "ckpt", checkpoint_every=-1)
    with pytest.raises(RunError, match="cannot be written"):
        train(network(), "sgd", tmp_path / "nowhere" / "ckpt")
    assert resume_point(tmp_path / "ckpt") is None
