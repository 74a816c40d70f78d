"""Numbers that a forward computes from the shape of another tensor: a slice binds them in the calls that get them."""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import amc
from amc.cli.app import app
from amc.structure import certify, inspect, mask_model, slice_model
from amc.structure.calls import call_of
from amc.structure.copying import copy_model
from amc.zoo._torchvision import import_torchvision
from tests.structure.checks import assert_exact, assert_sliced_is_masked, outputs, random_keep

TOKENS, WIDTH, HEADS = 6, 24, 4

Spread = Callable[[Tensor, int, int, int, int], Tensor]  # [B, N, h d] -> [B, N, h, d]

SPREADS: dict[str, Spread] = {
    "reshape": lambda x, b, n, h, d: x.reshape(b, n, h, d),
    "tuple": lambda x, b, n, h, d: x.reshape((b, n, h, d)),
    "list": lambda x, b, n, h, d: x.view([b, n, h, d]),
    "view": lambda x, b, n, h, d: x.view(b, -1, h, d),
    "size": lambda x, b, n, h, d: x.view(size=(b, n, h, d)),
    "function": lambda x, b, n, h, d: torch.reshape(x, (b, n, h, d)),
    "keyword": lambda x, b, n, h, d: torch.reshape(x, shape=(b, n, h, d)),
    "unflatten": lambda x, b, n, h, d: x.unflatten(-1, (h, d)),
    "unflatten by name": lambda x, b, n, h, d: torch.unflatten(x, dim=2, sizes=(h, d)),
    "left to torch": lambda x, b, n, h, d: x.reshape(b, n, h, -1),
    "twice in a line": lambda x, b, n, h, d: x.reshape(b, n, h, d).reshape(b, n, h * d).reshape(b, n, h, d),
}


class Heads(nn.Module):
    """Attention that takes the number of its features from its input."""

    def __init__(self, way: str = "reshape", *, scaled: str = "shape") -> None:
        super().__init__()
        self.num_heads, self.way, self.scaled = HEADS, way, scaled
        self.scale = (WIDTH // HEADS) ** -0.5
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        spread = SPREADS[self.way]
        q, k, v = (
            spread(layer(x), b, n, self.num_heads, c // self.num_heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scale = (c // self.num_heads) ** -0.5 if self.scaled == "shape" else self.scale
        x = (q * scale @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Blocks(nn.Module):
    """Two blocks of attention between a linear layer and logits."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.attentions = nn.ModuleList(attentions)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in attentions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.leave(x.mean(1))


EXAMPLE, OTHER = torch.randn(1, TOKENS, 5), torch.randn(3, TOKENS + 5, 5)


def sizes(structure: amc.Structure) -> list[int]:
    return [group.size for group in structure.groups]


@pytest.mark.parametrize("scaled", ["shape", "attribute"])
@pytest.mark.parametrize("way", SPREADS)
def test_heads_that_take_their_size_from_the_input_are_pruned_exactly(way: str, scaled: str) -> None:
    model = Blocks(Heads(way, scaled=scaled), Heads(way, scaled=scaled))
    structure = assert_exact(model, EXAMPLE, certified=True)
    assert sizes(structure) == [HEADS, HEADS]
    assert structure.bound
    slim = assert_sliced_is_masked(model, structure, OTHER, random_keep(structure, 1))  # of other sizes, too
    assert [each.num_heads for each in slim.attentions] == [len(keep) for keep in random_keep(structure, 1).values()]  # type: ignore[operator]


def test_a_size_that_follows_by_itself_is_not_bound() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            result: Tensor = self.last(x)
            return result

    model, image = Shuffle().eval(), torch.randn(1, 3, 4, 4)
    structure = inspect(model, image)
    assert structure.groups
    assert structure.bound == ()
    slim = slice_model(model, structure, structure.mask({structure.groups[0].name: [0, 2]}))
    assert all("forward" not in vars(module) for module in slim.modules())


class Branching(Heads):
    """Attention that is written anew for long inputs, as the shifted windows of a Swin for large images."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if n > TOKENS:
            x = x.reshape(b, n, 1, c).reshape(b, n, c)  # other calls before the ones that are bound
        return super().forward(x)


def test_a_call_is_known_by_its_place_whatever_runs_before_it() -> None:
    model = Blocks(Branching("twice in a line")).eval()
    structure = inspect(model, EXAMPLE)
    keep = {group.name: [1, 3] for group in structure.groups}
    assert_sliced_is_masked(model, structure, OTHER, keep)


def test_a_module_that_runs_twice_is_bound_once() -> None:
    shared = Heads()
    assert sizes(assert_exact(Blocks(shared, shared), EXAMPLE, certified=True)) == [HEADS]


class Nested(nn.Module):
    """Attention inside attention of the same class."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = Heads(), Heads()
        self.outer.v = nn.Sequential(self.inner, self.outer.v)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.outer(x)
        return result


def test_the_calls_of_a_module_inside_another_are_its_own() -> None:
    model = Blocks(Nested()).eval()
    structure = assert_exact(model, EXAMPLE, certified=True)
    assert sizes(structure) == [HEADS, WIDTH]  # the heads of both go together, as one line gives both their number
    heads, features = (group.name for group in structure.groups)
    for keep in ({heads: [0]}, {features: [0]}, {heads: [0, 1, 2], features: [3, 20]}):
        assert_sliced_is_masked(model, structure, OTHER, keep)


def patched(model: Blocks) -> Blocks:
    """The network with a forward of one object's own, around that of its class."""
    attention = model.attentions[0]
    own = attention.forward
    attention.forward = lambda x: own(2 * x)
    return model


def test_a_forward_that_the_user_patched_is_bound_too() -> None:
    model = patched(Blocks(Heads(), Heads())).eval()
    structure, _ = certify(model, inspect(model, EXAMPLE), EXAMPLE)
    assert sizes(structure) == [HEADS, HEADS]
    mask = structure.mask({group.name: [1, 3] for group in structure.groups})
    slim, expected = slice_model(model, structure, mask), mask_model(model, structure, mask)
    torch.testing.assert_close(slim(OTHER), expected(OTHER))
    torch.testing.assert_close(copy_model(slim)(OTHER), expected(OTHER))


def test_a_size_that_no_reshape_takes_stays_literal() -> None:
    class Added(Heads):
        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            v = self.v(x).reshape(b, n, self.num_heads, c // self.num_heads)
            v = v + torch.ones(b, n, self.num_heads, c // self.num_heads)
            return self.proj(v.reshape(b, n, c))

    model = Blocks(Added()).eval()
    structure, _ = certify(model, inspect(model, EXAMPLE), EXAMPLE)
    assert HEADS not in sizes(structure)


def test_a_network_of_a_notebook_s_cell_is_bound() -> None:
    scope: dict[str, Any] = {"nn": nn}
    source = (
        "class Cell(nn.Module):\n"
        "    def __init__(self, other):\n"
        "        super().__init__()\n"
        "        self.v, self.proj, self.heads = other.v, other.proj, other.num_heads\n"
        "    def forward(self, x):\n"
        "        b, n, c = x.shape\n"
        "        v = self.v(x).reshape(b, n, self.heads, c // self.heads)\n"
        "        return self.proj(v.softmax(-1).reshape(b, n, c))\n"
    )
    exec(compile(source, "<ipython-input-1>", "exec"), scope)
    assert sizes(assert_exact(Blocks(scope["Cell"](Heads())), EXAMPLE, certified=True)) == [HEADS]


class Literals(nn.Module):
    """Sizes that the source says in figures."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b, self.c = way, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.way == "view":
            x = x.view(-1, 8, 4, 6)
        elif self.way == "expand":
            x = x.expand(-1, 8, 4, 6)
        elif self.way == "flatten":
            x = x.reshape(-1, 192).view(-1, 8, 4, 6)
        result: Tensor = self.c(self.b(x).mean((2, 3)))
        return result


@pytest.mark.parametrize("way", ["view", "expand", "flatten"])
def test_literal_sizes_are_bound_too(way: str) -> None:
    model = Literals(way)
    structure = assert_exact(model, torch.randn(2, 3, 4, 6), certified=True)
    assert sizes(structure) == [8, 5]
    assert_sliced_is_masked(model, structure, torch.randn(5, 3, 4, 6), {"a": [1, 2, 6]})


def test_a_module_without_weights_is_bound() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = HEADS

        def forward(self, x: Tensor, like: Tensor) -> Tensor:
            b, n, c = like.shape
            return x.reshape(b, n, self.heads, c // self.heads).softmax(-1).reshape(b, n, -1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.spread, self.last = nn.Linear(WIDTH, WIDTH), Spread(), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.spread(self.v(x), x))
            return result

    assert sizes(assert_exact(Net(), torch.randn(2, 5, WIDTH), certified=True)) == [HEADS]


@pytest.mark.parametrize("side", [(12, 12), (2, 12)])  # pooled to 4 x 4, and to 1 x 4
def test_a_flattened_image_whose_size_is_written_down(side: tuple[int, int]) -> None:
    """As in many tutorials: `x.view(-1, 16 * 5 * 5)`."""

    class Tutorial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.last = nn.Conv2d(3, 6, 1), nn.Linear(6 * area, 10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), (side[0] // 3 or 1, 4))
            result: Tensor = self.last(self.first(x.view(-1, 6 * area)).relu())
            return result

    area = 4 * (side[0] // 3 or 1)
    model = Tutorial()
    structure = assert_exact(model, torch.randn(1, 3, *side), certified=True)
    assert sizes(structure) == [6, 10]
    assert_sliced_is_masked(model, structure, torch.randn(4, 3, *side), {"conv": [0, 4]})


@pytest.fixture(scope="module")
def sliced() -> tuple[nn.Module, list[Tensor]]:
    """A slice, and what the masked network answers on `OTHER`."""
    model = Blocks(Heads(), Heads("list")).eval()
    structure = inspect(model, EXAMPLE)
    mask = structure.mask({group.name: [1, 3] for group in structure.groups})
    return slice_model(model, structure, mask), outputs(mask_model(model, structure, mask), OTHER)


def same(network: Any, expected: list[Tensor]) -> None:
    torch.testing.assert_close(network(OTHER), expected[0].float(), rtol=1e-4, atol=1e-5)


def test_a_slice_is_copied_and_pickled_with_its_bindings(sliced: tuple[nn.Module, list[Tensor]]) -> None:
    slim, expected = sliced
    copied = copy.deepcopy(slim)
    same(copied, expected)
    assert all(each.forward.module is each for each in copied.attentions)  # type: ignore[operator, union-attr]
    buffer = io.BytesIO()
    torch.save(slim, buffer)
    buffer.seek(0)
    same(torch.load(buffer, weights_only=False), expected)


def test_a_slice_can_be_exported(sliced: tuple[nn.Module, list[Tensor]], tmp_path: Path) -> None:
    slim, expected = sliced
    free = torch.export.Dim.AUTO
    program = torch.export.export(slim, (OTHER,), dynamic_shapes=({0: free, 1: free},))
    same(program.module(), expected)
    torch.testing.assert_close(program.module()(EXAMPLE.repeat(2, 1, 1)), slim(EXAMPLE.repeat(2, 1, 1)))
    same(torch.jit.trace(slim, OTHER), expected)
    assert amc.export(slim, EXAMPLE, tmp_path / "slim.onnx")


def test_a_slice_can_be_compiled(sliced: tuple[nn.Module, list[Tensor]]) -> None:
    slim, expected = sliced
    same(torch.compile(slim, backend="eager"), expected)


def test_a_slice_can_be_trained_and_sliced_again(sliced: tuple[nn.Module, list[Tensor]]) -> None:
    slim = copy.deepcopy(sliced[0])
    slim.train()(OTHER).sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    slim.zero_grad()
    structure = assert_exact(slim, EXAMPLE, certified=True)
    assert sizes(structure) == [2, 2]
    smaller = assert_sliced_is_masked(slim, structure, OTHER, {group.name: [1] for group in structure.groups})
    assert [each.num_heads for each in smaller.attentions] == [1, 1]  # type: ignore[operator, union-attr]


def test_the_result_of_a_search_and_of_its_run_is_bound(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Blocks(Heads(), Heads()).eval()
    data = [(torch.randn(16, TOKENS, 5), torch.randint(0, 3, (16,))) for _ in range(4)]
    result = amc.compress(
        model, EXAMPLE, calibration=[images for images, _ in data], evaluate=data, budget="macs<=60%", episodes=4,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    assert any(size < HEADS for size in (each.num_heads for each in result.model.attentions))  # type: ignore[operator, union-attr]
    loaded = amc.load_run(tmp_path / "run", model, EXAMPLE)
    torch.testing.assert_close(loaded(OTHER), result.model(OTHER))


def swin(v2: bool) -> nn.Module:
    import_torchvision()
    from torchvision.models import swin_transformer as kinds

    settings: dict[str, Any] = {
        "patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
        "num_classes": 5,
    }  # fmt: skip
    if v2:
        settings |= {"block": kinds.SwinTransformerBlockV2, "downsample_layer": kinds.PatchMergingV2}
    return kinds.SwinTransformer(**settings)


def test_shifted_windows() -> None:
    for v2 in (False, True):
        model, image = swin(v2), torch.randn(1, 3, 48, 32)
        structure = assert_exact(model, image, certified=True)
        assert structure.prunable_macs() > 0.8
        heads = [group for group in structure.groups if group.name.endswith(("attn.qkv", "cpb_mlp.2"))]
        assert [group.size for group in heads] == [2, 2, 4, 4]
        assert_sliced_is_masked(model, structure, torch.randn(2, 3, 48, 40), random_keep(structure, 3))


OF_TIMM: dict[str, Callable[[], nn.Module]] = {
    "beit": lambda: timm("beit").Beit(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5),
    "cait": lambda: timm("cait").Cait(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5, depth_token_only=1
    ),
    "davit": lambda: timm("davit").DaVit(
        depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, num_classes=5
    ),
    "xcit": lambda: timm("xcit").Xcit(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5, eta=1.0
    ),
    "twins": lambda: timm("twins").Twins(
        img_size=64, patch_size=4, embed_dims=(16, 32), num_heads=(2, 4), mlp_ratios=(2, 2), depths=(2, 2),
        sr_ratios=(2, 1), wss=(4, 4), num_classes=5,
    ),
}  # fmt: skip


def timm(name: str) -> Any:
    import_torchvision()  # timm imports it, too
    return importlib.import_module(f"timm.models.{name}")


@pytest.mark.parametrize("name", OF_TIMM)
def test_attention_of_timm(name: str) -> None:
    model, image = OF_TIMM[name](), torch.randn(1, 3, 64 if name == "twins" else 32, 64 if name == "twins" else 32)
    structure = assert_exact(model, image, certified=True)
    assert structure.bound
    attention = [layer for layer in structure.layers if ".attn." in layer.name]
    prunable = [layer for layer in attention if (layer.input >= 0).any() or (layer.output >= 0).any()]
    assert len(prunable) >= 0.7 * len(attention)


def test_thirds_of_a_dimension_are_parts_as_halves_are() -> None:
    class Thirds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            third = x.shape[-1] // 3
            x[..., third : 2 * third].zero_()
            result: Tensor = self.last(x[..., :third] * x[..., 2 * third :] + x[..., third : 2 * third])
            return result

    structure = assert_exact(Thirds(), torch.randn(2, 5), certified=True)
    assert sizes(structure) == [4]


def test_the_names_of_bound_calls_do_not_depend_on_the_lines_above() -> None:
    def at(source: str) -> str:
        scope: dict[str, Any] = {}
        code = "import sys\nfrom amc.structure.calls import call_of\n" + source
        exec(compile(code, "<cell>", "exec"), scope)
        return str(scope["forward"]())

    forward = "def forward():\n    return call_of(len, sys._getframe())\n"
    assert at(forward) == at("\n\n# moved\n" + forward) != ""
    assert at(forward) != at("def forward():\n\n    return call_of(len, sys._getframe())\n")
    assert at(forward) != at(forward.replace("len", "sum"))
    assert call_of(len, None) == ""


def test_numpy_counts_are_plain_integers() -> None:
    model = Blocks(Heads()).eval()
    structure = inspect(model, EXAMPLE)
    slim = slice_model(model, structure, structure.mask({structure.groups[0].name: np.array([2])}))
    bound = slim.attentions[0].forward.calls  # type: ignore[operator, union-attr, index]
    assert {type(number) for call in bound.values() for number in call.values()} <= {int, float}


def test_a_literal_size_elsewhere_does_not_bind_what_follows_by_itself() -> None:
    """The first slice does not run, so the modules behind the literal size are tried one by one."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            result: Tensor = self.mix(x.reshape(b, c * h, w).reshape(b, c, h, w))
            return result

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.flat = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), Flat()
            self.tokens, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 2)
            self.heads = Heads(scaled="attribute")

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x).narrow(1, 0, 8))
            x = self.tokens(self.flat(x).mean(3).transpose(1, 2))
            result: Tensor = self.last((x + self.heads(x)).mean(1))
            return result

    model, image = Net().eval(), torch.randn(1, 3, 4, 6)
    structure, certificate = certify(model, inspect(model, image), image)
    assert [name for name, _ in certificate.failed] == ["first"]
    assert {each.module for each in structure.bound} == {"heads"}
    assert_sliced_is_masked(model, structure, torch.randn(2, 3, 5, 7), random_keep(structure, 2))


def test_a_number_that_depends_on_the_data_is_not_bound() -> None:
    class Scaled(Heads):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x)
            return found * (float(x.shape[1]) if torch.compiler.is_exporting() else 2 + float(found.detach().mean()))

    structure = inspect(Blocks(Scaled()).eval(), EXAMPLE)
    assert [each.value for each in structure.bound if isinstance(each.value, float)] == [(WIDTH // HEADS) ** -0.5]


def three() -> nn.Module:
    """A factory for the command line."""
    return Blocks(Heads(), Heads(), Heads())


def test_amc_inspect_names_the_modules() -> None:
    told = CliRunner().invoke(app, ["inspect", f"{__name__}:three", "--input", f"{TOKENS}x5"])
    assert told.exit_code == 0, told.output
    line = "sizes from the input's shape, which a slice binds: in attentions.0, attentions.1 +1"
    assert line in " ".join(told.output.split())
