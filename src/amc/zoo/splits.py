"""The splits of a data set: train, calibration, search and test.

train (fine-tuning) · calibration (a part of train) · search (the reward; held out of train) · test (the final
report only). The splits are fixed: they do not depend on the seed of a search.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from amc.errors import DataError
from amc.zoo.images import FolderSet, ImageSet

CALIBRATION_IMAGES = 2048
NAMES = ("train", "calibration", "search", "test")

Split = ImageSet | FolderSet
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataSplits:
    """The four splits. Each is loaded on its first use and cached, so a search never decodes the train images."""

    name: str  # the argument of load_data
    num_classes: int
    input_shape: tuple[int, int, int]  # C, H, W of one image
    makers: Mapping[str, Callable[[], Split]] = field(repr=False)
    warnings: tuple[str, ...] = ()  # about the data, for the user; one line each
    _loaded: dict[str, Split] = field(default_factory=dict, repr=False, init=False)

    @property
    def train(self) -> Split:
        """For fine-tuning. Contains the calibration images, but none of search or test."""
        return self._get("train")

    @property
    def calibration(self) -> ImageSet:
        """A part of train, in memory, for reconstruction and batch-norm statistics."""
        return self._in_memory("calibration")

    @property
    def search(self) -> ImageSet:
        """Held out of train, in memory. The reward is measured on it."""
        return self._in_memory("search")

    @property
    def test(self) -> Split:
        """For the final report only."""
        return self._get("test")

    def contiguous(self) -> "DataSplits":
        """The same splits with images laid out row by row, for networks that call `view` on them."""
        makers = {name: partial(self._contiguous, name) for name in self.makers}
        return DataSplits(self.name, self.num_classes, self.input_shape, makers, self.warnings)

    def _contiguous(self, name: str) -> Split:
        return replace(self._get(name), channels_last=False)

    def _get(self, name: str) -> Split:
        if name not in self._loaded:
            self._loaded[name] = self.makers[name]()
        return self._loaded[name]

    def _in_memory(self, name: str) -> ImageSet:
        split = self._get(name)
        if isinstance(split, FolderSet):
            split = self._loaded[name] = split.load()
        return split


@dataclass(frozen=True, slots=True)
class Source:
    """The labels of all images, and a function that loads only the images at given indices."""

    labels: Indices  # [N]
    pick: Callable[[Indices], Split]


@dataclass(frozen=True, slots=True)
class Plan:
    """The origin of each split."""

    train: Source
    kept: Indices  # into `train`: the images that are not held out
    search: Source  # may be the same source as train
    held: Indices  # into `search`: the images of the search split
    test: Callable[[], Split]

    def assemble(
        self, name: str, num_classes: int, input_shape: tuple[int, int, int], search_images: int | None
    ) -> DataSplits:
        """The splits, before anything is read. `search_images` limits the search split. Raises DataError."""
        if len(self.kept) == 0 or len(self.held) == 0:
            raise DataError(
                f"data '{name}' has too few images ({len(self.train.labels)}) to hold some out of train for the search"
            )
        order = balanced_order(self.search.labels[self.held])
        if search_images is not None and search_images > len(order):
            raise DataError(f"search images must be at most the {len(order)} of '{name}', got {search_images}")
        searched = self.held[order[:search_images]]
        calibrated = self.kept[balanced_order(self.train.labels[self.kept])[:CALIBRATION_IMAGES]]
        makers: dict[str, Callable[[], Split]] = {
            "train": lambda: self.train.pick(self.kept),
            "calibration": lambda: self.train.pick(calibrated),
            "search": lambda: self.search.pick(searched),
            "test": self.test,
        }
        return DataSplits(name, num_classes, input_shape, makers)


def splits_from_mapping(name: str, splits: Mapping[str, object], *, search_images: int | None = None) -> DataSplits:
    """A user's splits: at least `train` and `test`, each an ImageSet, a FolderSet or (images, labels).

    Images are [N, C, H, W]; floating-point images are unchanged, uint8 images are scaled to [0, 1]. Without `search`,
    a tenth of train is held out as search. Without `calibration`, a part of the remaining train is calibration.
    Raises DataError.
    """
    unknown, absent = set(splits) - set(NAMES), {"train", "test"} - set(splits)
    if unknown or absent:
        complaint = f"unknown splits {sorted(unknown)}" if unknown else f"no {' and no '.join(sorted(absent))}"
        raise DataError(f"data '{name}' has {complaint}; give train and test, and search and calibration if you like")
    sets = {key: _as_split(f"{name}, {key}", value) for key, value in splits.items()}
    train = _source(sets["train"])
    search, held = train, balanced_order(train.labels)[: len(train.labels) // 10]
    if "search" in sets:
        search = _source(sets["search"])
        held = np.arange(len(search.labels))
        kept = np.arange(len(train.labels))
    else:
        kept = np.setdiff1d(np.arange(len(train.labels)), held)
    images, _ = next(iter(sets["test"].batches(1)))
    shape = (images.shape[1], images.shape[2], images.shape[3])
    classes = 1 + max(int(split.labels.max()) for split in sets.values())
    assembled = Plan(train, kept, search, held, lambda: sets["test"]).assemble(name, classes, shape, search_images)
    if "calibration" not in sets:
        return assembled
    return DataSplits(name, classes, shape, {**assembled.makers, "calibration": lambda: sets["calibration"]})


def balanced_order(labels: Indices, seed: int = 0) -> Indices:
    """A shuffled order [N] of all images. Every prefix contains the classes in proportion."""
    # RandomState, because numpy promises that its numbers never change; the newer generators have no such promise.
    # Another order would put training images of the bundled checkpoint into the test split.
    random = np.random.RandomState(seed)
    shuffled = random.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        position[members] = (np.arange(len(members)) + random.random_sample()) / len(members)
    return np.argsort(position, kind="stable").astype(np.int64)


def _source(split: Split) -> Source:
    return Source(split.labels.numpy(), lambda part: split.subset(torch.from_numpy(part)))


def _as_split(name: str, value: object) -> Split:
    if isinstance(value, ImageSet | FolderSet):
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"data '{name}' is a {type(value).__name__}; give (images, labels) tensors or an ImageSet")
    try:
        images, labels = torch.as_tensor(value[0]), torch.as_tensor(value[1]).long()
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DataError(
            f"data '{name}' cannot be made a tensor ({problem}); give (images, labels) tensors"
        ) from problem
    return ImageSet(images, labels)
