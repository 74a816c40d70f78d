"""Data sets by name: the built-in digits, CIFAR-10 on disk, a folder of images, or a user's factory."""

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from amc.errors import DataError
from amc.zoo._import import call_factory
from amc.zoo.decode import Decoder, ImageFiles, list_images
from amc.zoo.images import Augmentation, FolderSet, ImageSet, Normalisation
from amc.zoo.preprocessing import IMAGENET, Preprocessing
from amc.zoo.splits import DataSplits, Indices, Plan, Source, balanced_order, splits_from_mapping

DIGITS = Normalisation((0.3056,), (0.3766,))  # of the train split
DIGITS_SEARCH = DIGITS_TEST = 400  # of 1,797 images; 997 remain for training
FOLDER_SEARCH = 3000  # images held out of a folder's train/, as in the paper for ImageNet; at most a tenth of them
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes of one image in the binary version: label, then three colour planes


def load_data(
    spec: str,
    *,
    search_images: int | None = None,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> DataSplits:
    """The data set that `spec` names. Files are listed now; a split is decoded on its first use.

    `digits` (built in) · `cifar10:ROOT` (train/<class>/ and test/<class>/ of 32x32 images, or the binary
    version) · `imagefolder:ROOT` (train/<class>/ and val/ or test/, resized and cropped to `image_size`) ·
    `package.module:factory`, which returns a DataSplits or a mapping for `splits_from_mapping`.

    `search_images` limits the search split to that number of images. They are drawn evenly from the classes and are
    always the same. `image_size` and `preprocessing` apply to an imagefolder. By default its images are prepared for
    torchvision's networks: 224 pixels, ImageNet's mean and standard deviation.
    Raises DataError.
    """
    if search_images is not None and search_images < 1:
        raise DataError(f"search images must be at least 1, got {search_images}; the reward is measured on them")
    kind, colon, rest = spec.partition(":")
    if spec == "digits":
        return _digits(search_images)
    if kind in ("cifar10", "imagefolder"):
        root = Path(rest).expanduser()
        if not rest:
            raise DataError(f"data '{spec}' needs a folder: write {kind}:ROOT")
        if not root.is_dir():
            raise DataError(f"data '{spec}': folder '{root}' not found; check the path")
        if kind == "cifar10":
            return _cifar10(spec, root, search_images)
        prepared = preprocessing or Preprocessing()
        prepared = prepared if image_size is None else prepared.resized(image_size)
        return _imagefolder(spec, root, search_images, prepared)
    close = difflib.get_close_matches(kind, ["digits", "cifar10", "imagefolder"], n=1)
    if colon:
        try:
            return _from_factory(spec, search_images)
        except DataError as error:
            if not close or (kind.isidentifier() and importlib.util.find_spec(kind) is not None):
                raise
            raise DataError(f"unknown data '{spec}'; did you mean {close[0]}:{rest}? As a factory: {error}") from error
    hint = f"did you mean {close[0]}? " if close else ""
    raise DataError(
        f"unknown data '{spec}'; {hint}known: digits, cifar10:ROOT, imagefolder:ROOT, package.module:factory"
    )


def _from_factory(spec: str, search_images: int | None) -> DataSplits:
    result = call_factory(spec, DataError)
    if isinstance(result, DataSplits):
        if search_images is not None:
            raise DataError(f"factory '{spec}' returns its own splits; limit the search images ({search_images}) there")
        return result
    if isinstance(result, Mapping):
        return splits_from_mapping(spec, result, search_images=search_images)
    raise DataError(
        f"factory '{spec}' returned a {type(result).__name__}; it must return a mapping of splits or DataSplits"
    )


def _digits(search_images: int | None) -> DataSplits:
    with np.load(Path(__file__).parent / "digits.npz", allow_pickle=False) as digits:  # see DIGITS.md beside it
        levels, labels = digits["images"], digits["labels"].astype(np.int64)
    # Seventeen grey levels, scaled to [0, 255] like every other image.
    images = torch.from_numpy(np.round(levels * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    everything = ImageSet(images, torch.from_numpy(labels), DIGITS, Augmentation(pad=1, flip=False))

    def pick(part: Indices) -> ImageSet:
        return everything.subset(torch.from_numpy(part))

    test, held, kept = np.split(balanced_order(labels), [DIGITS_TEST, DIGITS_TEST + DIGITS_SEARCH])
    source = Source(labels, pick)
    return Plan(source, kept, source, held, lambda: pick(test)).assemble("digits", 10, (1, 8, 8), search_images)


def _cifar10(spec: str, root: Path, search_images: int | None) -> DataSplits:
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / "data_batch_1.bin").is_file():
            return _cifar10_binary(spec, folder, search_images)
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        pickled = (root / "cifar-10-batches-py").is_dir() or (root / "data_batch_1").is_file()
        why = "the python version of CIFAR-10 is a pickle, which can run code, and is not read; " if pickled else ""
        raise DataError(
            f"data '{spec}': {why}'{root}' must hold train/<class>/ and test/<class>/ with images, "
            "or the binary version of CIFAR-10 (data_batch_1.bin ...)"
        )
    train, test = list_images(root / "train"), list_images(root / "test")
    if train.classes != test.classes or len(train.classes) != 10:
        raise DataError(
            f"data '{spec}': train/ has {len(train.classes)} classes and test/ {len(test.classes)}; "
            f"CIFAR-10 has the same 10 in both; for other data write imagefolder:{root}"
        )

    def read(files: ImageFiles) -> ImageSet:
        images = Decoder().decode(files.paths)
        if images.shape[2:] != (32, 32):
            size = f"{images.shape[3]}x{images.shape[2]}"
            raise DataError(f"data '{spec}': images are {size}, not 32x32; for other data write imagefolder:{root}")
        return replace(_cifar_set(images, torch.tensor(files.targets)), classes=tuple(files.classes))

    source = Source(np.array(train.targets), lambda part: read(train.pick(part)))
    splits = _cifar_plan(source, lambda: read(test)).assemble(spec, 10, (3, 32, 32), search_images)
    return replace(splits, warnings=_warnings(train, test))


def _cifar10_binary(spec: str, folder: Path, search_images: int | None) -> DataSplits:
    def read(*names: str) -> ImageSet:
        records = np.concatenate([_read_records(spec, folder / name) for name in names])
        images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
        return _cifar_set(images.contiguous(memory_format=torch.channels_last), torch.from_numpy(records[:, 0]).long())

    train = read(*(f"data_batch_{i}.bin" for i in range(1, 6)))  # fast: nothing to decode
    source = Source(train.labels.numpy(), lambda part: train.subset(torch.from_numpy(part)))
    return _cifar_plan(source, lambda: read("test_batch.bin")).assemble(spec, 10, (3, 32, 32), search_images)


def _read_records(spec: str, path: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as problem:
        raise DataError(f"data '{spec}': '{path}' cannot be read ({problem.strerror}); download it again") from problem
    if len(content) == 0 or len(content) % _CIFAR_RECORD:
        raise DataError(
            f"data '{spec}': '{path}' has {len(content)} bytes, not a multiple of {_CIFAR_RECORD}; download it again"
        )
    return content.reshape(-1, _CIFAR_RECORD)


def _cifar_set(images: torch.Tensor, labels: torch.Tensor) -> ImageSet:
    return ImageSet(images, labels, IMAGENET, Augmentation(pad=4, flip=True))


def _cifar_plan(source: Source, test: Callable[[], ImageSet]) -> Plan:
    """The last tenth of every class of train (500 of 5,000) is the search split."""
    members = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    held = np.concatenate([images[len(images) - len(images) // 10 :] for images in members])
    kept = np.setdiff1d(np.arange(len(source.labels)), held)
    return Plan(source, kept, source, held, test)


def _imagefolder(spec: str, root: Path, search_images: int | None, prepared: Preprocessing) -> DataSplits:
    """test/ is the test split, else val/. With both, val/ is the search split; else a part of train/ is."""
    present = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in present or len(present) < 2:
        raise DataError(f"data '{spec}': '{root}' must hold train/ and val/ or test/, each with one folder a class")
    listed = {name: list_images(root / name) for name in present}
    classes = listed["train"].classes
    for name, files in listed.items():
        if files.classes != classes:
            odd = ", ".join(sorted(set(files.classes) ^ set(classes))[:3])
            raise DataError(f"data '{spec}': {name}/ and train/ differ in classes ({odd}); make them the same")

    def source(files: ImageFiles) -> Source:
        return Source(np.array(files.targets), lambda part: folder(files.pick(part)))

    def folder(files: ImageFiles) -> FolderSet:
        return FolderSet(
            files.paths, files.targets, prepared.decoder, prepared.normalisation, classes=tuple(files.classes)
        )

    train = search = source(listed["train"])
    count = len(train.labels)
    if len(present) == 3:
        search = source(listed["val"])
        held, kept = np.arange(len(search.labels)), np.arange(count)
    else:
        held = balanced_order(train.labels)[: min(FOLDER_SEARCH, count // 10)]
        kept = np.setdiff1d(np.arange(count), held)
    plan = Plan(train, kept, search, held, lambda: folder(listed[present[-1]]))
    splits = plan.assemble(spec, len(classes), (3, prepared.size, prepared.size), search_images)
    return replace(splits, warnings=_warnings(*listed.values()))


def _warnings(*listed: ImageFiles) -> tuple[str, ...]:
    return tuple(line for files in listed for line in files.warnings)
