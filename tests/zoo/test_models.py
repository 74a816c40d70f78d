import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from amc.compression.scoring.evaluator import Evaluator
from amc.errors import ModelError
from amc.structure.copying import copy_model
from amc.zoo import create_model, load_data, load_weights, model_info, model_names
from amc.zoo.resnet import BasicBlock, ZeroPadShortcut

CLASSES = 10


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Torch's own count of floating-point operations, halved."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def resnet_parameters(blocks: int) -> int:
    def convolution(before: int, after: int) -> int:
        return 9 * before * after + 2 * after  # and its batch norm

    total = convolution(3, 16) + 2 * blocks * convolution(16, 16)
    for before, after in ((16, 32), (32, 64)):
        total += convolution(before, after) + (2 * blocks - 1) * convolution(after, after)
    return total + 64 * CLASSES + CLASSES


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_resnet_has_the_parameters_of_a_hand_count(depth: int) -> None:
    model = create_model(f"resnet{depth}")
    assert count_parameters(model) == resnet_parameters((depth - 2) // 6)
    assert len([part for part in model.modules() if isinstance(part, nn.Conv2d)]) == depth - 1


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 40.6),
        ("resnet56", 125.5),
        ("plain20", 40.6),
        ("mobilenet_v1_050", 12.2),
        ("vgg16_050", 78.7),
    ],
)
def test_macs_match_hand_counts(name: str, millions: float) -> None:
    assert round(count_macs(create_model(name), (3, 32, 32)) / 1e6, 1) == millions


def test_zero_pad_shortcut_keeps_every_second_pixel_between_zeros() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    out = ZeroPadShortcut(before=1, after=2)(x)
    assert out.shape == (2, 6, 2, 2)
    assert torch.equal(out[:, 1:4], x[:, :, ::2, ::2])
    assert out[:, 0].abs().sum() == 0
    assert out[:, 4:].abs().sum() == 0


def test_strided_block_pads_a_quarter_of_its_width_on_each_side() -> None:
    shortcut = BasicBlock(16, 32, 2).shortcut
    assert isinstance(shortcut, ZeroPadShortcut)
    assert (shortcut.before, shortcut.after) == (8, 8)
    assert isinstance(BasicBlock(16, 16, 1).shortcut, nn.Identity)


def test_resnet_names_are_those_of_the_public_weights() -> None:
    names = set(create_model("resnet20").state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer3.2.conv2.weight",
        "layer1.0.bn1.bias",
        "linear.bias",
    } <= names
    assert not [name for name in names if "shortcut" in name]
    assert len(names) == 19 * 6 + 2  # a weight and five batch-norm tensors a convolution, and the classifier


def test_mobilenet_strides_and_widths() -> None:
    features = create_model("mobilenet_v1", width=0.5).features
    assert isinstance(features, nn.Sequential)
    assert features[0][0].stride == (1, 1)
    assert [layer[0].stride[0] for layer in features[1:]] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert [layer[3].out_channels for layer in features[1:]] == [32, 64, 64, 128, 128] + [256] * 6 + [512] * 2
    assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 2, 2)


def test_width_suffix_is_the_width_factor() -> None:
    suffixed, factor = create_model("vgg16_025").state_dict(), create_model("vgg16", width=0.25).state_dict()
    assert {key: value.shape for key, value in suffixed.items()} == {key: value.shape for key, value in factor.items()}


@pytest.mark.parametrize("name", model_names())
def test_every_network_gives_logits_for_its_input_shape(name: str) -> None:
    info = model_info(name)
    assert info is not None
    model = create_model(name, num_classes=7).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, *info.input_shape)).shape == (2, 7)


def test_bundled_digits_network_is_right_on_97_percent_of_the_test_split() -> None:
    info = model_info("digits_cnn")
    assert info is not None
    assert info.weights is not None
    model = create_model("digits_cnn")
    load_weights(model, info.weights)
    data = load_data("digits")
    assert Evaluator(data.test)(model) >= 0.97
    assert Evaluator(data.search)(model) >= 0.97


def test_unknown_model_offers_close_names() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'resnt20'; did you mean resnet20"):
        create_model("resnt20")
    with pytest.raises(ModelError, match="known: digits_cnn"):
        model_info("zzz")
    with pytest.raises(ModelError, match="unknown model 'resnet20_050'"):
        create_model("resnet20_050")


def test_argument_that_a_network_does_not_take_is_named() -> None:
    with pytest.raises(ModelError, match="'resnet20' does not take width"):
        create_model("resnet20", width=0.5)


def test_factory_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_network_file.py").write_text(
        "import torch\n"
        "def make(width=2): return torch.nn.Linear(width, 3)\n"
        "def broken(): raise ValueError('no such width')\n"
        "def wrong(): return 5\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path_before = list(sys.path)
    model = create_model("my_network_file:make", width=4)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 4
    assert model_info("my_network_file:make") is None
    assert sys.path == path_before
    for spec, complaint in (
        ("my_network_file:broken", "failed .ValueError: no such width."),
        ("my_network_file:wrong", "returned a int"),
        ("my_network_file:number", "is a int, not a callable"),
        ("my_network_file:absent", "cannot be imported .AttributeError"),
        ("no_such_package_anywhere:make", "cannot be imported .ModuleNotFoundError"),
        (":make", "must be written package.module:factory"),
    ):
        with pytest.raises(ModelError, match=complaint):
            create_model(spec)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="the extra 'vision' is not installed")
def test_factory_of_torchvision() -> None:
    assert count_parameters(create_model("torchvision.models:resnet18")) == 11_689_512


class TestLoadWeights:
    def state(self, width: int = 4) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return {key: torch.randn_like(value) for key, value in nn.Linear(3, width).state_dict().items()}

    def test_safetensors_and_torch_files_give_the_same(self, tmp_path: Path) -> None:
        state = self.state()
        save_file(state, tmp_path / "w.safetensors")
        torch.save(state, tmp_path / "w.pt")
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
            tmp_path / "w.ckpt",
        )
        for name in ("w.safetensors", "w.pt", "w.ckpt"):
            model = nn.Linear(3, 4)
            load_weights(model, tmp_path / name)
            assert torch.equal(model.weight, state["weight"])
            assert torch.equal(model.bias, state["bias"])

    def test_misfit_names_keys_and_shapes_and_changes_nothing(self, tmp_path: Path) -> None:
        state = self.state(width=5)
        state["extra"] = state.pop("bias")
        save_file(state, tmp_path / "w.safetensors")
        model = nn.Linear(3, 4)
        before = model.weight.detach().clone()
        with pytest.raises(ModelError) as raised:
            load_weights(model, tmp_path / "w.safetensors")
        text = str(raised.value)
        assert "missing: bias" in text
        assert "unexpected: extra" in text
        assert "weight [5, 3] instead of [4, 3]" in text
        assert "\n" not in text
        assert torch.equal(model.weight, before)

    def test_many_missing_keys_are_counted(self, tmp_path: Path) -> None:
        save_file(self.state(), tmp_path / "w.safetensors")
        with pytest.raises(ModelError, match=r"missing: conv1.weight, bn1.weight, bn1.bias and \d+ more"):
            load_weights(create_model("resnet20"), tmp_path / "w.safetensors")

    def test_absent_batch_counters_are_no_misfit(self, tmp_path: Path) -> None:
        state = {key: value for key, value in nn.BatchNorm1d(3).state_dict().items() if "num_batches" not in key}
        state["running_mean"] = torch.tensor([1.0, 2.0, 3.0])
        save_file(state, tmp_path / "w.safetensors")
        model = nn.BatchNorm1d(3)
        load_weights(model, tmp_path / "w.safetensors")
        assert model.running_mean is not None
        assert model.running_mean.tolist() == [1.0, 2.0, 3.0]

    def test_a_pickled_object_is_not_run(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (Path.touch, (Path(tmp_path / "sprung"),))  # type: ignore[return-value]

        torch.save({"state_dict": Trap()}, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="not unpickled, for safety"):
            load_weights(nn.Linear(3, 4), tmp_path / "w.pt")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02garbage"])
    def test_damaged_file(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"w\.(safetensors|pt)"):
            load_weights(nn.Linear(3, 4), tmp_path / name)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.pt", tmp_path):
            with pytest.raises(ModelError, match="not found"):
                load_weights(nn.Linear(3, 4), path)

    def test_file_without_a_state_dict(self, tmp_path: Path) -> None:
        torch.save([torch.zeros(2)], tmp_path / "w.pt")
        with pytest.raises(ModelError, match="hold no state dict"):
            load_weights(nn.Linear(3, 4), tmp_path / "w.pt")


class Holder(nn.Module):
    """A network whose own names begin with what DataParallel would add."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def with_wrapped_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    model[1] = nn.DataParallel(model[1])
    return model


SAVED = {
    "parallel": lambda: nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))),
    "both": lambda: torch.compile(nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))),
    "own name": Holder,
    "own name, parallel": lambda: nn.DataParallel(Holder()),
    "a part": with_wrapped_part,
}


@pytest.mark.parametrize("name", SAVED)
def test_names_that_wrappers_add_are_taken_off_and_those_of_the_network_are_not(name: str, tmp_path: Path) -> None:
    wrapped = SAVED[name]()
    bare = copy_model(wrapped)
    for parameter in bare.parameters():
        nn.init.zeros_(parameter)
    save_file(wrapped.state_dict(), tmp_path / "weights.safetensors")
    load_weights(bare, tmp_path / "weights.safetensors")
    for given, loaded in zip(wrapped.parameters(), bare.parameters(), strict=True):
        assert torch.equal(given, loaded)
    load_weights(SAVED[name](), tmp_path / "weights.safetensors")  # and into a wrapped one
