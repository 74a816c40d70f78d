"""Gram matrices: exactly what the layers see, in bounded memory, and the network as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import DataError
from amc.pruning import calibrate, reconstructible
from amc.structure import inspect
from tests.pruning.samples import layer_inputs, patches

ALL = 10**6  # positions: every one


def between(layer: nn.Module, stem: nn.Module, head: nn.Module) -> nn.Sequential:
    """`layer` as module "1" with prunable inputs and outputs, in eval mode."""
    return nn.Sequential(stem, layer, head).eval()


def conv2d(channels: int, outputs: int, kernel: int | tuple[int, int], **settings: object) -> nn.Sequential:
    layer = nn.Conv2d(channels, outputs, kernel, **settings)  # type: ignore[arg-type]
    return between(layer, nn.Conv2d(3, channels, 1), nn.Conv2d(outputs, 2, 1))


IMAGE = (3, 9, 8)
CASES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "kernel 1": (lambda: conv2d(6, 5, 1), IMAGE),
    "kernel 3": (lambda: conv2d(4, 5, 3, padding=1), IMAGE),
    "uneven kernel": (lambda: conv2d(4, 5, (3, 2), padding=(0, 1)), IMAGE),
    "stride": (lambda: conv2d(4, 5, 3, stride=2, padding=1), IMAGE),
    "strided 1x1": (lambda: conv2d(4, 5, 1, stride=2), IMAGE),
    "uneven stride": (lambda: conv2d(4, 5, 3, stride=(1, 3)), IMAGE),
    "dilation": (lambda: conv2d(4, 5, 3, dilation=2, padding=2), IMAGE),
    "dilation and stride": (lambda: conv2d(4, 5, 2, dilation=(1, 3), stride=2, padding=2), IMAGE),
    "same padding": (lambda: conv2d(4, 5, 4, padding="same"), IMAGE),
    "reflected": (lambda: conv2d(4, 5, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "same, replicated": (lambda: conv2d(4, 5, 3, padding="same", padding_mode="replicate"), IMAGE),
    "circular": (lambda: conv2d(4, 5, 3, padding=2, padding_mode="circular"), IMAGE),
    "groups": (lambda: conv2d(8, 6, 3, padding=1, groups=2), IMAGE),
    "one dimension": (
        lambda: between(nn.Conv1d(5, 4, 3, stride=2, padding=1), nn.Conv1d(3, 5, 1), nn.Conv1d(4, 2, 1)),
        (3, 11),
    ),
    "three dimensions": (
        lambda: between(nn.Conv3d(3, 4, 2, padding=1), nn.Conv3d(2, 3, 1), nn.Conv3d(4, 2, 1)),
        (2, 4, 5, 3),
    ),
    "linear": (lambda: between(nn.Linear(6, 5), nn.Linear(4, 6), nn.Linear(5, 2)), (4,)),
    "linear on sequences": (lambda: between(nn.Linear(6, 5), nn.Linear(4, 6), nn.Linear(5, 2)), (7, 4)),
}


def batches_of(shape: tuple[int, ...], count: int = 2, size: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, *shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", CASES)
def test_gram_is_that_of_every_patch_the_layer_sees(name: str) -> None:
    make, shape = CASES[name]
    model, batches = make(), batches_of(shape)
    gram = calibrate(model, inspect(model, batches[0]), batches, positions=ALL).grams["1.weight"]
    rows = torch.cat([patches(model[1], x) for x in layer_inputs(model, "1", batches)], 1)
    assert gram.samples == rows.shape[1]
    torch.testing.assert_close(gram.matrix, rows.mT @ rows, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gram.mean(), rows.mT @ rows / rows.shape[1], rtol=1e-5, atol=1e-5)


def test_gram_equals_torch_unfold() -> None:
    model = conv2d(4, 5, 3, stride=2, padding=1, dilation=2)
    batches = batches_of(IMAGE)
    gram = calibrate(model, inspect(model, batches[0]), batches, positions=ALL).grams["1.weight"]
    unfolded = torch.cat(
        [F.unfold(x.double(), 3, padding=1, stride=2, dilation=2) for x in layer_inputs(model, "1", batches)]
    )
    rows = unfolded.mT.flatten(0, 1)
    torch.testing.assert_close(gram.matrix[0], rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_dense_output_is_the_patches_times_the_weight_without_the_bias() -> None:
    """The oracle itself: patches times the flattened weight are the layer's output."""
    module, x = nn.Conv2d(6, 4, 3, 2, 1, groups=2, padding_mode="reflect").double(), torch.randn(2, 6, 7, 7).double()
    weight = module.weight.reshape(2, 2, -1).mT
    expected = (module(x) - module.bias[:, None, None]).flatten(2).unflatten(1, (2, 2))
    computed = (patches(module, x) @ weight).unflatten(1, (2, -1)).permute(1, 0, 3, 2)
    torch.testing.assert_close(computed, expected)


def test_as_many_positions_as_outputs_are_all_of_them_once() -> None:
    model = conv2d(3, 2, 2)  # 2x3 images: two outputs
    batch = batches_of((3, 2, 3), count=1, size=4)
    for seed in range(3):
        gram = calibrate(model, inspect(model, batch[0]), batch, positions=2, seed=seed).grams["1.weight"]
        rows = patches(model[1], layer_inputs(model, "1", batch)[0])
        assert gram.samples == 8
        torch.testing.assert_close(gram.matrix, rows.mT @ rows, rtol=1e-5, atol=1e-5)


def test_sampled_positions_are_patches_of_their_own_image_and_follow_the_seed() -> None:
    model = conv2d(4, 3, 3, padding=1, stride=2)
    structure, batch = inspect(model, torch.zeros(1, *IMAGE)), batches_of(IMAGE, count=1, size=1)
    rows = patches(model[1], layer_inputs(model, "1", batch)[0])[0]
    seen = set()
    for seed in range(12):
        gram = calibrate(model, structure, batch, positions=1, seed=seed).grams["1.weight"]
        assert gram.samples == 1
        distance = (rows[:, :, None] * rows[:, None, :] - gram.matrix).abs().amax((1, 2))
        assert distance.min() < 1e-5  # the outer product of one patch, whole
        seen.add(int(distance.argmin()))
        again = calibrate(model, structure, batch, positions=1, seed=seed).grams["1.weight"]
        assert torch.equal(again.matrix, gram.matrix)
    assert len(seen) > 3  # not always the same place


def test_sampled_rows_of_a_sequence_are_as_many_as_asked_for() -> None:
    model = CASES["linear on sequences"][0]()
    batches = batches_of((50, 4), count=2, size=3)
    gram = calibrate(model, inspect(model, batches[0]), batches, positions=5).grams["1.weight"]
    assert gram.samples == 2 * 3 * 5


def test_labels_are_ignored_and_batches_add_up() -> None:
    model, batches = conv2d(4, 3, 3), batches_of(IMAGE)
    structure = inspect(model, batches[0])
    plain = calibrate(model, structure, batches, positions=ALL).grams["1.weight"]
    labelled = calibrate(model, structure, [(x, torch.zeros(3)) for x in batches], positions=ALL).grams["1.weight"]
    joined = calibrate(model, structure, [torch.cat(batches)], positions=ALL).grams["1.weight"]
    assert torch.equal(plain.matrix, labelled.matrix)
    assert joined.samples == plain.samples
    torch.testing.assert_close(joined.matrix, plain.matrix, rtol=1e-5, atol=1e-4)


def test_a_layer_called_twice_adds_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.loop, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.loop(self.loop(self.stem(x)).relu()))

    model, batches = Twice().eval(), batches_of(IMAGE)
    gram = calibrate(model, inspect(model, batches[0]), batches, positions=ALL).grams["loop.weight"]
    rows = torch.cat([patches(model.loop, x)[0] for x in layer_inputs(model, "loop", batches)])
    assert gram.samples == rows.shape[0] == 2 * 6 * 72
    torch.testing.assert_close(gram.matrix[0], rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_memory_bound_skips_layers_that_do_not_fit_and_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)).eval()
    structure = inspect(model, torch.zeros(1, *IMAGE))
    memory = 8 * (8**2 + 16**2)  # for the two last layers; the 3x3 one wants 8 * 576² bytes
    chosen, skipped = reconstructible(structure, memory=memory)
    assert list(chosen) == ["2.weight", "3.weight"]
    assert skipped == {"1.weight": "its Gram matrix of 2 MiB exceeds the memory left for calibration"}
    found = calibrate(model, structure, batches_of(IMAGE), memory=memory)
    assert list(found.grams) == ["2.weight", "3.weight"]
    assert found.skipped == skipped
    assert sum(8 * gram.matrix.numel() for gram in found.grams.values()) == memory


def test_layers_that_cannot_be_refitted_are_named_with_the_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 2, 1)
    ).eval()
    _, skipped = reconstructible(inspect(model, torch.zeros(1, *IMAGE)))
    assert skipped == {
        "1.weight": "a convolution pruned by whole groups loses no input of the groups that stay",
        "2.weight": "a transposed convolution is sliced without refitting",
    }


MODES: list[bool] = []  # of the batch norm, at every call of any copy


class Moody(nn.Module):
    """Dropout and batch norm, which training mode would show; fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.out, self.fail = nn.Conv2d(6, 2, 1), False

    def forward(self, x: Tensor) -> Tensor:
        MODES.append(self.norm.training)
        x = F.dropout(self.norm(self.stem(x)), 0.5, self.training)
        if self.fail:
            raise RuntimeError("no")
        return self.out(x)


@pytest.mark.parametrize("fail", [False, True])
def test_calibration_runs_in_eval_mode_and_does_not_change_the_model(fail: bool) -> None:
    model = Moody()
    structure, batches = inspect(model.eval(), torch.zeros(1, *IMAGE)), batches_of(IMAGE)
    model.train()
    model.norm.eval()  # a mixture of modes must come back
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fail = fail
    MODES.clear()
    if fail:
        with pytest.raises(DataError, match=r"Moody fails on a calibration batch \(RuntimeError: no\)"):
            calibrate(model, structure, batches)
    else:
        gram = calibrate(model, structure, batches, positions=ALL).grams["out.weight"]
        rows = torch.cat([patches(model.out, x)[0] for x in layer_inputs(model, "out", batches)])
        torch.testing.assert_close(gram.matrix[0], rows.T @ rows, rtol=1e-5, atol=1e-4)
    assert set(MODES) == {False}
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_set_is_refused() -> None:
    model = conv2d(4, 3, 3)
    with pytest.raises(DataError, match="calibration set is empty; give at least one batch"):
        calibrate(model, inspect(model, torch.zeros(1, *IMAGE)), [])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(poison: float) -> None:
    model, batches = conv2d(4, 3, 3), batches_of(IMAGE)
    batches[1][0, 0] = poison
    with pytest.raises(DataError, match=r"NaN or infinite inputs to layer '1\.weight'"):
        calibrate(model, inspect(model, batches[0]), batches, positions=ALL)
