"""Image files -> uint8 tensors, on a pool of threads (Pillow frees the interpreter lock while it decodes)."""

import math
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, features
from torch import Tensor

from amc.errors import DataError, one_line
from amc.run.cores import usable_cores
from amc.zoo.remembered import Decoding, Pixels, Shape, remembered

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_CLUTTER = ("thumbs.db", "desktop.ini")  # files that operating systems create
_RESAMPLING = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")
}
INTERPOLATIONS = tuple(_RESAMPLING)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Image files, with one folder per class, sorted by class and file name."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]  # index into `classes` of each path
    warnings: tuple[str, ...] = ()  # one line per kind of skipped entry

    def pick(self, indices: npt.NDArray[np.int64]) -> "ImageFiles":
        """The files at `indices`, in that order."""
        chosen = indices.tolist()
        paths, targets = tuple(self.paths[i] for i in chosen), tuple(self.targets[i] for i in chosen)
        return ImageFiles(self.classes, paths, targets)


def list_images(root: Path) -> ImageFiles:
    """The images in root/<class>/. Other entries are skipped; `warnings` names those that are not hidden.

    Raises DataError if a class has no image.
    """
    top = _visible(root)
    classes = [entry.name for entry in top if entry.is_dir()]
    if not classes:
        raise DataError(f"data folder '{root}' has no folders in it; it must hold one for each class")
    paths: list[str] = []
    targets: list[int] = []
    others, nested = [entry.name for entry in top if not entry.is_dir()], list[str]()
    for index, name in enumerate(classes):
        inside = _visible(root / name)
        folders = [f"{name}/{entry.name}" for entry in inside if entry.is_dir()]
        files = [entry for entry in inside if not entry.is_dir()]
        images = [entry.path for entry in files if entry.name.lower().endswith(_EXTENSIONS)]
        if not images:
            where = f"; folders in it, such as {folders[0]}, are not searched" if folders else ""
            raise DataError(
                f"data folder '{root / name}' has no images ({', '.join(_EXTENSIONS)}){where}; add some or remove it"
            )
        paths += images
        targets += [index] * len(images)
        nested += folders
        others += [entry.name for entry in files if not entry.name.lower().endswith(_EXTENSIONS)]
    return ImageFiles(tuple(classes), tuple(paths), tuple(targets), tuple(_skipped(root, others, nested)))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER]


def _skipped(root: Path, others: Sequence[str], nested: Sequence[str]) -> Iterator[str]:
    """A warning about skipped files, counted by extension, and one about folders inside classes."""
    if others:
        endings = Counter(Path(name).suffix.lower() or "no ending" for name in others)
        listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(_SHOWN))
        yield (
            f"data folder '{root}': not read: {_count(others, 'other file')} ({listed}); images are "
            f"{', '.join(_EXTENSIONS)}, in a folder for each class"
        )
    if nested:
        yield (
            f"data folder '{root}': not read: {_count(nested, 'folder')} inside the classes "
            f"({', '.join(nested[:_SHOWN])}); move their images up into the folder of their class"
        )


def _count(entries: Sequence[str], what: str) -> str:
    return f"{len(entries)} {what}{'s' if len(entries) != 1 else ''}"


@dataclass(frozen=True, slots=True)
class CropBox:
    """A random resized crop, relative to an image of any size."""

    area: float  # share of the image's area, in [0.08, 1)
    log_ratio: float  # log of width over height, in [log 3/4, log 4/3)
    left: float  # share of the free width to the left of the crop, in [0, 1)
    top: float  # share of the free height above the crop, in [0, 1)
    flip: bool


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """[count, 5]: numbers in [0, 1) for `crop_box`. A million are drawn at once, so they are no objects yet."""
    drawn = torch.empty(count, 5)
    for row in drawn:
        torch.rand(5, generator=generator, out=row)
    return drawn


def crop_box(drawn: Tensor) -> CropBox:
    """The crop of Inception training (Szegedy et al., arXiv 1409.4842, section 6) and a random flip, from [5]."""
    area, ratio, left, top, coin = drawn.tolist()
    limit = math.log(4 / 3)
    return CropBox(0.08 + 0.92 * area, limit * (2 * ratio - 1), left, top, coin < 0.5)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes image files to `[3, H, W]` uint8.

    `size` None: images keep their size, and all must have the same. Otherwise the short side is resized to `short`
    (None: size / 0.875) and the centre is cropped to `size`, as in the evaluation of ImageNet. Values of 16 bits are
    rounded to 8.
    """

    size: int | None = None
    short: int | None = None
    interpolation: str = "bilinear"  # one of INTERPOLATIONS
    threads: int = 0  # 0: one per processor

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for `submit`. They end with the block."""
        with ThreadPoolExecutor(self.threads or usable_cores()) as pool:
            yield pool

    def submit(
        self, pool: ThreadPoolExecutor, files: Sequence[str], boxes: Sequence[CropBox] | None
    ) -> list[Future[Tensor]]:
        """One future per file. `boxes` are their random crops; None crops the centre."""
        return [pool.submit(self._tensor, file, boxes[i] if boxes else None) for i, file in enumerate(files)]

    def decode(self, files: Sequence[str]) -> Tensor:
        """All files, `[N, 3, H, W]`, mapped from the cache, into which they are decoded first (`amc.zoo.remembered`).

        Raises DataError if a file is not an image or has another size, or if there is no room for the images.
        """
        settings = (
            f"Pillow {PIL.__version__} jpeg {features.version('jpg')} {self.size} {self.short} {self.interpolation}"
        )
        decoding = Decoding(files, settings, lambda: self._shape(files), partial(self._chunks, files))
        return remembered(decoding).permute(0, 3, 1, 2)  # channels-last in memory, the networks' format

    def _shape(self, files: Sequence[str]) -> Shape:
        """H, W and 3 of every image."""
        return (self.size, self.size, 3) if self.size is not None else self._array(files[0], None).shape

    def _chunks(self, files: Sequence[str], shape: Shape, start: int) -> Generator[Pixels]:
        """The images from number `start` on, in order, some at a time; a few more are decoded ahead."""
        count = max(1, min(_CHUNK, _CHUNK_BYTES // math.prod(shape)))

        def decoded(first: int) -> Pixels:
            part = files[first : first + count]
            out = np.empty((len(part), *shape), dtype=np.uint8)
            for place, file in zip(out, part, strict=True):
                array = self._array(file, None)
                if array.shape != shape:
                    raise DataError(
                        f"image '{file}' is {array.shape[1]}x{array.shape[0]} and '{files[0]}' "
                        f"{shape[1]}x{shape[0]}; use imagefolder:ROOT, which resizes"
                    )
                place[...] = array
            return out

        with self.pool() as pool:
            try:
                begun = (pool.submit(decoded, first) for first in range(start, len(files), count))
                for future in drawn_ahead(begun, 2 * (self.threads or usable_cores())):
                    yield future.result()
            finally:  # also if the consumer stops early
                pool.shutdown(cancel_futures=True)

    def _tensor(self, file: str, box: CropBox | None) -> Tensor:
        return torch.from_numpy(self._array(file, box)).permute(2, 0, 1)

    def _array(self, file: str, box: CropBox | None) -> "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]":
        try:
            with Image.open(file) as image:
                pixels = _rgb(image, file)
        except (DataError, MemoryError):
            raise
        except Exception as problem:  # Pillow raises anything on a damaged file
            raise DataError(
                f"image '{file}' cannot be decoded ({one_line(str(problem))}); remove or replace it"
            ) from problem
        if self.size is not None:
            how = _RESAMPLING[self.interpolation]
            short = self.short or round(self.size / 0.875)
            pixels = _centre(pixels, self.size, short, how) if box is None else _random(pixels, self.size, box, how)
        return np.array(pixels, dtype=np.uint8)


_SHOWN = 3  # extensions or folders named in a warning
_CHUNK = 256  # files per task: one small image takes less time than starting a task
_CHUNK_BYTES = 4 << 20  # of a task's images, at most: several tasks wait for the one that is written


def drawn_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The items, each drawn `count` items before it is given: what its drawing has begun goes on meanwhile."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _rgb(image: Image.Image, file: str) -> Image.Image:
    """Three channels of eight bits, without transparency. Raises DataError for pixels of unknown range."""
    wide = image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits in older versions of Pillow and in PPM
    if image.mode.startswith("I;16") or wide:
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise DataError(f"image '{file}' has {kind} pixels, whose white is not known; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    return image.convert("RGB")


def _centre(image: Image.Image, size: int, short: int, how: Image.Resampling) -> Image.Image:
    scale = short / min(image.size)
    width, height = max(short, round(image.width * scale)), max(short, round(image.height * scale))
    left, top = (width - size) / 2 / scale, (height - size) / 2 / scale
    # Resizing only the cropped box gives the same pixels and is faster.
    box = (left, top, min(image.width, left + size / scale), min(image.height, top + size / scale))
    return image.resize((size, size), how, box=box)


def _random(image: Image.Image, size: int, crop: CropBox, how: Image.Resampling) -> Image.Image:
    area = crop.area * image.width * image.height
    width = min(image.width, math.sqrt(area * math.exp(crop.log_ratio)))
    height = min(image.height, math.sqrt(area / math.exp(crop.log_ratio)))
    left, top = crop.left * (image.width - width), crop.top * (image.height - height)
    out = image.resize((size, size), how, box=(left, top, left + width, top + height))
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else out
