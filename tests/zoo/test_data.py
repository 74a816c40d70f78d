import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from amc import zoo
from amc.errors import DataError
from amc.zoo import FolderSet, ImageSet, load_data, splits_from_mapping
from amc.zoo.splits import balanced_order

PER_CLASS = 20  # of the little CIFAR-10 folders


def write_folder(root: Path, *, classes: int, per_class: int, size: tuple[int, int] = (32, 32)) -> None:
    """PNG images, one grey level each: class * 16 + number, so that every image says where it came from."""
    for label in range(classes):
        folder = root / f"class{label:02d}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            image = Image.new("RGB", size, (min(255, label * 16 + number),) * 3)
            image.save(folder / f"{number:04d}.png")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar")
    write_folder(root / "train", classes=10, per_class=PER_CLASS)
    write_folder(root / "test", classes=10, per_class=2)
    return root


def numbers(split: ImageSet | FolderSet) -> list[tuple[int, int]]:
    """(class, number of the file) of every image, sorted."""
    assert isinstance(split, ImageSet)
    grey = split.images[:, 0, 0, 0].tolist()
    return sorted((label, value - 16 * label) for label, value in zip(split.labels.tolist(), grey, strict=True))


class TestBalancedOrder:
    def test_every_prefix_holds_the_classes_in_proportion(self) -> None:
        labels = np.repeat([0, 1, 2], [60, 30, 10])
        order = balanced_order(labels)
        assert sorted(order.tolist()) == list(range(100))
        for length in (10, 25, 50, 90):
            counts = np.bincount(labels[order[:length]], minlength=3)
            assert np.abs(counts - length * np.array([0.6, 0.3, 0.1])).max() <= 1

    def test_order_never_changes(self) -> None:
        assert balanced_order(np.array([0, 0, 0, 1, 1, 1])).tolist() == [5, 2, 3, 1, 4, 0]


class TestDigits:
    def test_sizes_and_shape(self) -> None:
        data = load_data("digits")
        sizes = [len(data.train), len(data.calibration), len(data.search), len(data.test)]
        assert sizes == [997, 997, 400, 400]
        assert data.input_shape == (1, 8, 8)
        assert data.num_classes == 10

    def test_images_and_labels_are_those_of_scikit_learn(self) -> None:
        theirs = load_digits()
        with np.load(Path(zoo.__file__).parent / "digits.npz", allow_pickle=False) as ours:
            assert np.array_equal(ours["images"], theirs.images)
            assert np.array_equal(ours["labels"], theirs.target)

    def test_no_image_is_in_two_splits(self) -> None:
        data = load_data("digits")
        splits = [data.train, data.search, data.test]
        seen = [row.numpy().tobytes() for split in splits for row in split.images]  # type: ignore[union-attr]
        everything = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
        assert sorted(seen) == sorted(image.tobytes() for image in everything)

    def test_classes_are_balanced_in_every_split(self) -> None:
        data = load_data("digits", search_images=50)
        assert torch.bincount(data.search.labels).tolist() == [5] * 10
        assert torch.bincount(data.test.labels).min() >= 38
        assert torch.bincount(data.test.labels).max() <= 42

    def test_train_images_are_normalised(self) -> None:
        images, _ = next(load_data("digits").train.batches(997))
        assert images.dtype == torch.float32
        assert abs(float(images.mean())) < 1e-3
        assert abs(float(images.std()) - 1) < 1e-3

    def test_smaller_search_splits_are_prefixes(self) -> None:
        small, large = load_data("digits", search_images=30).search, load_data("digits").search
        assert torch.equal(small.images, large.images[:30])


class TestCifar10:
    def test_the_last_tenth_of_each_class_is_the_search_split(self, cifar: Path) -> None:
        data = load_data(f"cifar10:{cifar}")
        assert numbers(data.search) == [(label, number) for label in range(10) for number in (18, 19)]
        assert numbers(data.train) == [(label, number) for label in range(10) for number in range(18)]
        assert numbers(data.test) == [(label, number) for label in range(10) for number in (0, 1)]
        assert set(numbers(data.calibration)) == set(numbers(data.train))
        assert (data.num_classes, data.input_shape) == (10, (3, 32, 32))

    def test_a_search_decodes_no_other_split(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", classes=10, per_class=10)
        write_folder(tmp_path / "test", classes=10, per_class=1)
        for number in range(9):  # all but the images of the search split
            (tmp_path / "train" / "class03" / f"{number:04d}.png").write_bytes(b"damaged")
        (tmp_path / "test" / "class05" / "0000.png").write_bytes(b"damaged")
        data = load_data(f"cifar10:{tmp_path}")
        assert len(data.search) == 10
        with pytest.raises(DataError, match=r"class03.000\d.png' cannot be decoded"):
            _ = data.train
        with pytest.raises(DataError, match=r"class05.0000.png' cannot be decoded"):
            _ = data.test

    def test_normalisation(self, cifar: Path) -> None:
        split = load_data(f"cifar10:{cifar}").test
        assert isinstance(split, ImageSet)
        images, labels = next(split.batches(3))
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        expected = (split.images[:3].float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.tolist() == [0, 0, 1]

    def test_binary_version(self, tmp_path: Path) -> None:
        folder = tmp_path / "cifar-10-batches-bin"
        folder.mkdir()
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (120, 3072), dtype=np.uint8)
        labels = np.tile(np.arange(10, dtype=np.uint8), 12)[:, None]
        records = np.hstack([labels, pixels])
        for i in range(5):
            records[20 * i : 20 * (i + 1)].tofile(folder / f"data_batch_{i + 1}.bin")
        records[100:].tofile(folder / "test_batch.bin")
        data = load_data(f"cifar10:{tmp_path}")
        assert isinstance(data.test, ImageSet)
        assert torch.equal(data.test.images.reshape(20, 3072), torch.from_numpy(pixels[100:]))
        assert sorted(data.search.labels.tolist()) == list(range(10))
        last = {pixels[90 + i].tobytes() for i in range(10)}  # the tenth image of each class
        assert {image.contiguous().numpy().tobytes() for image in data.search.images} == last
        (folder / "data_batch_2.bin").write_bytes(b"123")
        with pytest.raises(DataError, match="has 3 bytes, not a multiple of 3073"):
            load_data(f"cifar10:{tmp_path}")

    def test_the_pickled_version_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(pickle.dumps({"data": 1}))
        for root in (tmp_path, folder):
            with pytest.raises(DataError, match="is a pickle, which can run code"):
                load_data(f"cifar10:{root}")

    def test_other_sizes_and_class_counts_point_to_imagefolder(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "a" / "train", classes=10, per_class=10, size=(40, 32))
        write_folder(tmp_path / "a" / "test", classes=10, per_class=1)
        with pytest.raises(DataError, match="images are 40x32, not 32x32; for other data write imagefolder:"):
            _ = load_data(f"cifar10:{tmp_path / 'a'}").search
        write_folder(tmp_path / "b" / "train", classes=3, per_class=10)
        write_folder(tmp_path / "b" / "test", classes=3, per_class=1)
        with pytest.raises(DataError, match="train/ has 3 classes and test/ 3"):
            load_data(f"cifar10:{tmp_path / 'b'}")


class TestImageFolder:
    def test_splits_with_val_only(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", classes=3, per_class=10, size=(50, 40))
        write_folder(tmp_path / "val", classes=3, per_class=2, size=(30, 60))
        data = load_data(f"imagefolder:{tmp_path}", image_size=24)
        assert (data.num_classes, data.input_shape) == (3, (3, 24, 24))
        assert [len(split) for split in (data.train, data.search, data.test)] == [27, 3, 6]
        assert sorted(data.search.labels.tolist()) == [0, 1, 2]
        assert data.search.images.shape == (3, 3, 24, 24)
        assert isinstance(data.train, FolderSet)
        held = set(numbers(data.search))
        assert not held & set(numbers(data.train.load()))
        assert numbers(data.calibration) == numbers(data.train.load())

    def test_with_val_and_test_the_search_is_on_val(self, tmp_path: Path) -> None:
        for name, count in (("train", 4), ("val", 3), ("test", 2)):
            write_folder(tmp_path / name, classes=2, per_class=count)
        data = load_data(f"imagefolder:{tmp_path}", image_size=16, search_images=4)
        assert [len(split) for split in (data.train, data.search, data.test)] == [8, 4, 4]

    def test_the_centre_is_what_is_left(self, tmp_path: Path) -> None:
        """A square in the middle of 64x32: at size 28 the crop is 28/32 of the short side, inside it."""
        write_folder(tmp_path / "train", classes=1, per_class=10)
        image = Image.new("RGB", (64, 32), (255, 0, 0))
        image.paste((0, 255, 0), (16, 0, 48, 32))
        (tmp_path / "val" / "class00").mkdir(parents=True)
        image.save(tmp_path / "val" / "class00" / "a.png")
        split = load_data(f"imagefolder:{tmp_path}", image_size=28).test
        assert isinstance(split, FolderSet)
        assert (split.load().images == torch.tensor([0, 255, 0]).view(3, 1, 1)).all()

    def test_training_batches_cover_an_epoch_and_follow_the_seed(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", classes=2, per_class=10, size=(20, 20))
        write_folder(tmp_path / "val", classes=2, per_class=1)
        train = load_data(f"imagefolder:{tmp_path}", image_size=8).train
        first = list(train.training_batches(4, torch.Generator().manual_seed(3)))
        again = list(train.training_batches(4, torch.Generator().manual_seed(3)))
        other = list(train.training_batches(4, torch.Generator().manual_seed(4)))
        assert [images.shape for images, _ in first] == [(4, 3, 8, 8)] * 4  # 18 images: the last two wait
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))

    def test_stopping_early_leaves_no_thread_waiting(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", classes=2, per_class=10)
        write_folder(tmp_path / "val", classes=2, per_class=1)
        batches = load_data(f"imagefolder:{tmp_path}", image_size=8).train.batches(2)
        images, _ = next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert images.shape == (2, 3, 8, 8)

    def test_differing_classes_and_missing_folders(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", classes=3, per_class=10)
        with pytest.raises(DataError, match="must hold train/ and val/ or test/"):
            load_data(f"imagefolder:{tmp_path}")
        write_folder(tmp_path / "val", classes=2, per_class=1)
        with pytest.raises(DataError, match=r"differ in classes .class02."):
            load_data(f"imagefolder:{tmp_path}")
        (tmp_path / "val" / "class02").mkdir()
        with pytest.raises(DataError, match="class02' has no images"):
            load_data(f"imagefolder:{tmp_path}")


class TestAugmentation:
    def test_shifts_and_flips_are_exact(self) -> None:
        """Every augmented image is one of the shifted, perhaps mirrored, zero-padded originals."""
        from amc.zoo import Augmentation

        images = torch.randint(1, 256, (64, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        out = Augmentation(pad=1, flip=True)(images, torch.Generator().manual_seed(1))
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
        found = set()
        for i in range(64):
            options = {}
            for top in range(3):
                for left in range(3):
                    crop = padded[i, :, top : top + 4, left : left + 4]
                    options[(top, left, False)] = crop
                    options[(top, left, True)] = crop.flip(2)
            matches = [key for key, crop in options.items() if torch.equal(crop, out[i])]
            assert len(matches) == 1
            found.add(matches[0])
        assert len(found) >= 14  # of the 18: every image draws its own
        assert {flip for _, _, flip in found} == {True, False}

    def test_an_epoch_shows_every_image_once(self) -> None:
        images = torch.arange(10, dtype=torch.float32).view(10, 1, 1, 1)
        split = ImageSet(images, torch.arange(10))
        batches = list(split.training_batches(5, torch.Generator().manual_seed(0)))
        assert sorted(torch.cat([x.flatten() for x, _ in batches]).tolist()) == list(range(10))
        assert all(torch.equal(x.flatten().long(), y) for x, y in batches)
        assert [len(y) for _, y in split.training_batches(4, torch.Generator())] == [4, 4]
        assert [len(y) for _, y in split.training_batches(64, torch.Generator())] == [10]
        assert torch.equal(images.flatten(), torch.arange(10.0))  # untouched


class TestMapping:
    def test_search_and_calibration_come_out_of_train(self) -> None:
        images = torch.arange(100.0).view(100, 1, 1, 1)
        labels = torch.arange(100) % 5
        data = splits_from_mapping("mine", {"train": (images, labels), "test": (images[:7], labels[:7])})
        values = {
            name: set(split.images.flatten().tolist())
            for name, split in (
                ("train", data.train),
                ("search", data.search),
                ("calibration", data.calibration),
            )
        }  # type: ignore[union-attr]
        assert len(values["search"]) == 10
        assert values["train"] | values["search"] == set(range(100))
        assert values["calibration"] == values["train"]
        assert torch.bincount(data.search.labels).tolist() == [2] * 5
        assert (data.num_classes, data.input_shape, len(data.test)) == (5, (1, 1, 1), 7)

    def test_given_splits_are_used_as_they_are(self) -> None:
        parts = {
            name: (torch.full((4, 1, 2, 2), float(i)), torch.arange(4))
            for i, name in enumerate(("train", "search", "calibration", "test"))
        }
        data = splits_from_mapping("mine", parts, search_images=2)
        assert [len(data.train), len(data.search), len(data.calibration), len(data.test)] == [4, 2, 4, 4]
        assert float(data.search.images.max()) == 1
        assert float(data.calibration.images.max()) == 2

    def test_bytes_are_scaled(self) -> None:
        split = splits_from_mapping(
            "mine",
            {
                "train": (torch.full((20, 1, 1, 1), 51, dtype=torch.uint8), torch.zeros(20)),
                "test": (torch.zeros(1, 1, 1, 1), torch.zeros(1)),
            },
        ).search
        assert next(split.batches(1))[0].item() == pytest.approx(0.2)

    @pytest.mark.parametrize(
        ("splits", "complaint"),
        [
            ({"train": (torch.zeros(9, 1, 1, 1), torch.zeros(9))}, "has no test"),
            ({"train": 1, "test": 2, "trian": 3}, "unknown splits .'trian'."),
            ({"train": 1, "test": 2}, "'mine, train' is a int"),
            ({"train": (torch.zeros(0, 1, 1, 1), torch.zeros(0)), "test": 2}, "empty"),
            (
                {"train": (torch.zeros(9, 1, 1, 1), torch.zeros(8)), "test": 2},
                r"labels \[8\] do not belong together",
            ),
            (
                {name: (torch.zeros(5, 1, 1, 1), torch.zeros(5)) for name in ("train", "test")},
                r"too few images \(5\)",
            ),
        ],
    )
    def test_misuse(self, splits: dict[str, object], complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            splits_from_mapping("mine", splits)

    def test_factory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_data_file.py").write_text(
            "import torch\n"
            "def make():\n"
            "    part = (torch.zeros(30, 1, 2, 2), torch.arange(30) % 3)\n"
            "    return {'train': part, 'test': part}\n"
            "def wrong(): return 5\n"
        )
        monkeypatch.chdir(tmp_path)
        data = load_data("my_data_file:make", search_images=2)
        assert (data.name, data.num_classes, len(data.search), len(data.train)) == (
            "my_data_file:make",
            3,
            2,
            27,
        )
        with pytest.raises(DataError, match="returned a int"):
            load_data("my_data_file:wrong")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("digit", "unknown data 'digit'; did you mean digits"),
        ("cifar10", "needs a folder: write cifar10:ROOT"),
        ("imagefolder:", "needs a folder: write imagefolder:ROOT"),
        ("cifar10:/no/such/folder", "folder '/no/such/folder' not found"),
        ("no_such_package_anywhere:data", "cannot be imported"),
    ],
)
def test_unusable_data_is_named(spec: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_data(spec)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold train/<class>/ and test/<class>/"):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("count", [0, -1, 401])
def test_search_images_out_of_range(count: int) -> None:
    with pytest.raises(DataError, match=f"got {count}"):
        load_data("digits", search_images=count)
