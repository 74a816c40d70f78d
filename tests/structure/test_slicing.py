"""A slice is a new, plain module; the model it comes from stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from amc.errors import ModelError
from amc.structure import inspect, mask_model, slice_model
from tests.structure.checks import assert_exact, random_keep
from tests.structure.toys import CASES, Residual, Shared, image


def small() -> tuple[nn.Module, torch.Tensor]:
    return Residual("projection"), image()


def test_a_slice_keeps_exactly_the_rows_and_columns_asked_for() -> None:
    model, x = small()
    structure = inspect(model, x)
    slim = slice_model(model, structure, structure.mask({"stem": [0, 3], "a1": [2], "b2": [1, 4, 11]}))
    assert type(slim) is type(model)
    torch.testing.assert_close(slim.a1.weight, model.a1.weight[[2]][:, [0, 3]], rtol=0, atol=0)
    torch.testing.assert_close(slim.b2.bias, model.b2.bias[[1, 4, 11]], rtol=0, atol=0)
    torch.testing.assert_close(slim.norm.running_var, model.norm.running_var[[1, 4, 11]], rtol=0, atol=0)
    torch.testing.assert_close(slim.head.weight, model.head.weight[:, [1, 4, 11]], rtol=0, atol=0)
    assert (slim.stem.out_channels, slim.a1.in_channels, slim.norm.num_features, slim.head.in_features) == (2, 2, 3, 3)


def test_a_mask_zeroes_every_entry_of_a_dropped_channel() -> None:
    model, x = small()
    structure = inspect(model, x)
    masked = mask_model(model, structure, structure.mask({"b2": list(range(1, 12))}))
    for tensor in (masked.b2.weight[0], masked.b2.bias[0], masked.norm.weight[0], masked.head.weight[:, 0]):
        assert (tensor == 0).all()
    torch.testing.assert_close(masked.b2.weight[1:], model.b2.weight[1:], rtol=0, atol=0)
    assert masked.b2.weight.shape == model.b2.weight.shape


def test_the_model_is_untouched_by_everything() -> None:
    model, x = small()
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    calls: list[int] = []
    handle = model.a1.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    attributes = {path: dict(vars(module)) for path, module in model.named_modules()}
    structure = inspect(model, x)
    slice_model(model, structure, structure.mask(random_keep(structure, 0)))
    mask_model(model, structure, structure.mask(random_keep(structure, 0)))
    assert [m.training for m in (model, model.stem, model.norm)] == [True, True, False]
    assert not model.stem.weight.requires_grad
    assert model.a1.weight.grad is None
    assert list(model.a1._forward_hooks) == [handle.id]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for path, module in model.named_modules():
        assert {k: (type(v), v) for k, v in vars(module).items() if isinstance(v, int)} == {
            k: (type(v), v) for k, v in attributes[path].items() if isinstance(v, int)
        }


def test_a_slice_shares_no_memory_with_its_model_even_where_nothing_is_dropped() -> None:
    model, x = small()
    structure = inspect(model, x)
    slim = slice_model(model, structure, structure.mask({}))
    ours = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    theirs = {t.untyped_storage().data_ptr() for t in (*slim.parameters(), *slim.buffers())}
    assert ours.isdisjoint(theirs)


def test_a_slice_keeps_modes_gradients_flags_precision_and_ties() -> None:
    model, x = Shared(), image()
    model.loop.weight.requires_grad_(False)
    model.half().eval()
    structure = inspect(model, x.half())
    slim = slice_model(model, structure, structure.mask({g.name: [0, 1] for g in structure.groups}))
    assert not slim.training
    assert not slim.loop.weight.requires_grad
    assert slim.stem.weight.requires_grad
    assert slim.a.weight is slim.b.weight
    assert slim.a.weight.dtype == torch.float16
    assert slim.a.weight.is_contiguous()


def test_replacement_weights_are_taken_as_given() -> None:
    model, x = small()
    structure = inspect(model, x)
    mask = structure.mask({"a1": [0, 1]})
    given = torch.full((8, 2, 3, 3), 0.25, dtype=torch.float64)
    slim = slice_model(model, structure, mask, {"a2.weight": given})
    assert slim.a2.weight.dtype == torch.float32
    torch.testing.assert_close(slim.a2.weight.data, given.float())


def test_slices_save_load_and_pickle() -> None:
    model, x = CASES["yolo block"]()
    structure = inspect(model, x)
    slim = slice_model(model, structure, structure.mask({"cv1": [1, 2]})).eval()
    file = io.BytesIO()
    torch.save(slim.state_dict(), file)
    file.seek(0)
    again = pickle.loads(pickle.dumps(slim))
    nn.init.zeros_(again.cv1.weight)
    again.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(again(x), slim(x), rtol=0, atol=0)


def test_another_model_is_refused() -> None:
    model, x = small()
    structure = inspect(model, x)
    with pytest.raises(ModelError, match="inspect this model again"):
        slice_model(Residual("padding"), inspect(Shared(), x), inspect(Shared(), x).mask({}))
    model.a1 = nn.Conv2d(8, 7, 3, padding=1)
    with pytest.raises(ModelError, match=r"'a1.weight' has shape \(7, 8, 3, 3\)"):
        slice_model(model, structure, structure.mask({}))


def test_pruning_masks_are_sliced_with_their_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for index in (0, 2):
        prune.random_unstructured(model[index], "weight", amount=0.3)
    structure = assert_exact(model, image(), policies=3)
    assert [g.size for g in structure.groups] == [6, 8]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("apply", [weight_norm, parametrizations.weight_norm])
def test_weight_norm_is_locked_with_the_remedy_and_the_rest_is_pruned(apply: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), apply(nn.Conv2d(6, 8, 3)), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1))
    structure = assert_exact(model, image(), policies=2)
    assert [(g.name, g.size) for g in structure.groups] == [("2", 5)]
    assert any("remove it first" in locked.lock.reason for locked in structure.locked)


def test_spectral_norm_is_locked_with_its_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), parametrizations.spectral_norm(nn.Conv2d(6, 8, 3)), nn.Conv2d(8, 4, 1))
    structure = inspect(model, image())
    assert structure.groups == ()
    reasons = {locked.name: locked.lock.reason for locked in structure.locked}
    assert "SpectralNorm computes this weight" in reasons["1"]
    assert "remove_parametrizations(model.1, 'weight')" in reasons["1"]
