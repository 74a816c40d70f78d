"""Image folders: sixteen bits, other formats, what is not read, and how a network wants its images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amc.cli.jobs.origin import data_of, with_preprocessing
from amc.errors import DataError
from amc.run.settings import Source
from amc.zoo import create_model, load_data
from amc.zoo.decode import Decoder, list_images
from amc.zoo.preprocessing import IMAGENET, Preprocessing, preprocessing_of
from tests.commands import amc
from tests.zoo.test_data import write_folder

GREY = np.array([[0, 1, 128, 129], [256, 257, 32767, 32768], [32896, 65279, 65534, 65535], [100, 200, 300, 400]])
EIGHT = np.round(GREY / 257).astype(np.uint8)  # 65,535 levels onto 255


def decoded(path: Path) -> np.ndarray[Any, Any]:
    """[H, W, 3], uint8."""
    return Decoder().decode([str(path)])[0].permute(1, 2, 0).numpy()


class TestDecoding:
    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
    def test_sixteen_bits_become_the_nearest_of_eight(self, tmp_path: Path, name: str) -> None:
        """They were clipped: every pixel from 256 on was white."""
        Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / name)
        found = decoded(tmp_path / name)
        assert (found == EIGHT[..., None]).all()

    def test_sixteen_bits_of_the_other_order_and_of_pgm(self, tmp_path: Path) -> None:
        (tmp_path / "a.pgm").write_bytes(b"P5 4 4 65535\n" + GREY.astype(">u2").tobytes())
        assert (decoded(tmp_path / "a.pgm") == EIGHT[..., None]).all()
        Image.frombytes("I;16B", (4, 4), GREY.astype(">u2").tobytes()).save(tmp_path / "b.tif")
        assert (decoded(tmp_path / "b.tif") == EIGHT[..., None]).all()

    @pytest.mark.parametrize(
        ("kind", "mode"), [(np.float32, "floating-point"), (np.int32, "32-bit")], ids=["float", "int"]
    )
    def test_pixels_whose_white_is_not_known_are_refused(self, tmp_path: Path, kind: Any, mode: str) -> None:
        Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=rf"a\.tif' has {mode} pixels, whose white is not known; convert"):
            decoded(tmp_path / "a.tif")

    @pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "1", "CMYK"])
    @pytest.mark.filterwarnings("error")
    def test_other_modes_keep_their_colours(self, tmp_path: Path, mode: str) -> None:
        colour = Image.new("RGB", (4, 4), (255, 0, 0))
        colour.paste((0, 0, 255), (0, 0, 2, 4))
        image = colour.convert(mode)
        suffix, options = (".tif", {}) if mode == "CMYK" else (".png", {})
        if mode == "P":
            options = {"transparency": bytes([0, 128] + [255] * 254)}  # which Pillow warns about
        image.save(tmp_path / f"a{suffix}", **options)
        expected = np.array(image.convert("RGBA" if mode == "P" else mode).convert("RGB"))
        assert (decoded(tmp_path / f"a{suffix}") == expected).all()

    @pytest.mark.parametrize("suffix", [".bmp", ".webp", ".ppm", ".TIF", ".tiff"])
    def test_formats_that_are_read(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / "cat").mkdir()
        Image.new("RGB", (4, 4), (10, 200, 30)).save(tmp_path / "cat" / f"a{suffix}", lossless=True)
        listed = list_images(tmp_path)
        assert listed.warnings == ()
        assert (decoded(Path(listed.paths[0])) == [10, 200, 30]).all()

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 30, b"II*\0" + b"\xff" * 40])
    def test_a_damaged_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png' cannot be decoded \(.+\); remove or replace it") as refusal:
            decoded(path)
        assert "\n" not in str(refusal.value)


class TestPassedOver:
    def test_files_and_folders_that_are_not_read_are_counted(self, tmp_path: Path) -> None:
        write_folder(tmp_path, classes=2, per_class=2)
        for name in ("notes.txt", "class00/a.txt", "class00/b.xml", "class01/raw"):
            (tmp_path / name).write_text("")
        for name in ("class01/Thumbs.db", "class01/.hidden"):  # what systems leave behind is not counted
            (tmp_path / name).write_text("")
        (tmp_path / "class01" / "more").mkdir()
        (tmp_path / ".cache").mkdir()
        listed = list_images(tmp_path)
        assert len(listed.paths) == 4
        assert listed.warnings == (
            f"data folder '{tmp_path}': not read: 4 other files (2 .txt, 1 .xml, 1 no ending); images are .jpg, "
            ".jpeg, .png, .bmp, .webp, .ppm, .pgm, .tif, .tiff, in a folder for each class",
            f"data folder '{tmp_path}': not read: 1 folder inside the classes (class01/more); move their images up "
            "into the folder of their class",
        )

    def test_a_class_with_folders_alone(self, tmp_path: Path) -> None:
        (tmp_path / "cat" / "one").mkdir(parents=True)
        with pytest.raises(DataError, match=r"cat' has no images .*; folders in it, such as cat/one, are not searched"):
            list_images(tmp_path)

    def test_the_warnings_come_with_the_data(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            write_folder(tmp_path / part, classes=2, per_class=20)
        assert load_data(f"imagefolder:{tmp_path}").warnings == ()
        (tmp_path / "train" / "class00" / "a.txt").write_text("")
        (tmp_path / "val" / "class01" / "deep").mkdir()
        warnings = load_data(f"imagefolder:{tmp_path}").warnings
        assert ["not read: 1 other file (1 .txt)" in warnings[0], "class01/deep" in warnings[1]] == [True, True]


class Wants(torch.nn.Module):
    """A network that says how it wants its images, as timm's do."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.pretrained_cfg = config


class TestPreprocessing:
    def test_a_network_of_timm_says_how_it_wants_its_images(self) -> None:
        model = create_model("timm:test_vit")
        found = preprocessing_of(model)
        assert found == Preprocessing(160, 0.95, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert Preprocessing.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert preprocessing_of(create_model("resnet20")) is None

    @pytest.mark.parametrize(
        "config",
        [
            {"input_size": (1, 28, 28)}, {"mean": (0.5,)}, {"std": (0, 1, 1)}, {"mean": "grey"}, {"input_size": 7},
            {"crop_pct": 2.0}, {"mean": (float("nan"),) * 3},
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_not_taken(self, config: dict[str, Any]) -> None:
        assert preprocessing_of(Wants(**config)) is None

    def test_what_is_left_out_is_as_usual(self) -> None:
        assert preprocessing_of(Wants(interpolation="random", std=(0.5, 0.25, 1))) == Preprocessing(std=(0.5, 0.25, 1))

    def test_images_are_normalised_and_cropped_as_the_network_wants(self, tmp_path: Path) -> None:
        """A grey level g is (g / 255 - mean) / std, the mean being the network's own."""
        for part in ("train", "val"):
            write_folder(tmp_path / part, classes=2, per_class=20)
        spec = f"imagefolder:{tmp_path}"
        model = Wants(input_size=(3, 16, 16), mean=(0.5, 0.25, 0), std=(0.5, 0.25, 1), crop_pct=0.8)
        source = with_preprocessing(Source("tests.tiny:factory", data=spec), model)
        assert source.preprocessing is not None
        assert source.preprocessing["mean"] == (0.5, 0.25, 0)
        data = data_of(Source.from_json(json.loads(json.dumps(source.to_json()))))  # as from a run's config.json
        assert data.input_shape == (3, 16, 16)
        images, labels = next(iter(data.test.batches(40)))
        grey = (labels * 16 + torch.arange(20).repeat(2)) / 255
        for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 0.25), (0, 1)]):
            torch.testing.assert_close(images[:, channel], ((grey - mean) / std)[:, None, None].expand(-1, 16, 16))
        usual, _ = next(iter(load_data(spec).test.batches(40)))
        torch.testing.assert_close(usual[:, 0, 0, 0], (grey - IMAGENET.mean[0]) / IMAGENET.std[0])
        assert data_of(replace(source, image_size=20)).input_shape == (3, 20, 20)

    def test_an_old_run_keeps_its_preparation_and_other_data_has_none(self, tmp_path: Path) -> None:
        wants = Wants(mean=(0.5, 0.5, 0.5))
        other = Source("digits_cnn", data="digits")
        assert with_preprocessing(other, wants) == other
        assert "preprocessing" not in other.to_json()
        kept = Source("a:b", data=f"imagefolder:{tmp_path}", preprocessing=Preprocessing().to_json())
        assert with_preprocessing(kept, wants) == kept

    @pytest.mark.parametrize("damage", [{"mean": 3}, {"std": [0, 0, 0]}, {"size": "x"}, {"size": 0}, {"crop": None}])
    def test_a_damaged_record_is_refused(self, damage: dict[str, Any]) -> None:
        with pytest.raises(DataError):
            Preprocessing.from_json({**Preprocessing().to_json(), **damage})
        with pytest.raises(DataError):
            Preprocessing.from_json([])

    def test_the_centre_is_that_of_the_share(self, tmp_path: Path) -> None:
        """A gradient 100 wide, resized to floor(20 / 0.8) = 25 and cropped to 20: pixels 10 to 90 of the 100."""
        levels = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))
        Image.fromarray(levels).convert("RGB").save(tmp_path / "a.png")
        row = Preprocessing(20, 0.8).decoder.decode([str(tmp_path / "a.png")])[0, 0, 10]
        expected = torch.arange(20) * 8 + 2 * (10 + 1.5)  # the middle of every four columns
        torch.testing.assert_close(row[1:-1].float(), expected[1:-1].float(), atol=1, rtol=0)


def test_a_search_prepares_its_images_as_the_network_wants_and_says_what_it_does_not_read(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_folder(tmp_path / "data" / part, classes=2, per_class=24)
    (tmp_path / "data" / "train" / "class00" / "notes.txt").write_text("")
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def network():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),\n"
        "                        nn.Flatten(), nn.Linear(8, 2))\n"
        "    net.pretrained_cfg = {'input_size': (3, 16, 16), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'crop_pct': 0.8}\n"
        "    with torch.no_grad():\n"
        "        net[5].bias[0] += 100  # one answer for all\n"
        "    return net\n"
    )
    search = ("search", "own:network", "--data", f"imagefolder:{tmp_path / 'data'}", "--out", "run", "--episodes", 2)
    done = amc(*search, "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "warning: data folder" in done.stderr
    assert "not read: 1 other file (1 .txt)" in done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["preprocessing"]["size"], config["preprocessing"]["mean"]) == (16, [0.5, 0.5, 0.5])
    assert config["input_shape"] == [3, 16, 16]
    assert done.json["dense"]["score"] == 0.5
    assert any("the dense network scores 0.5, which may be chance (0.5)" in line for line in done.json["warnings"])
    tuned = amc("finetune", "run", "--epochs", 1, "--json", cwd=tmp_path)
    assert tuned.code == 0, tuned.stderr
