"""Image files -> uint8 tensors, on a pool of threads (Pillow frees the interpreter lock while it decodes)."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from amc.errors import DataError
from amc.judging import one_line

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_CLUTTER = ("thumbs.db", "desktop.ini")  # what systems leave behind
_RESAMPLING = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")
}
INTERPOLATIONS = tuple(_RESAMPLING)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files of images, one folder a class, in the order of classes and names."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]  # index into `classes` of each path
    warnings: tuple[str, ...] = ()  # what was passed over, a line each

    def pick(self, indices: npt.NDArray[np.int64]) -> "ImageFiles":
        """The files at `indices`, in that order."""
        chosen = indices.tolist()
        paths, targets = tuple(self.paths[i] for i in chosen), tuple(self.targets[i] for i in chosen)
        return ImageFiles(self.classes, paths, targets)


def list_images(root: Path) -> ImageFiles:
    """The images in root/<class>/; what else lies there is passed over, and named in `warnings` unless hidden.

    Raises DataError where a class has no image.
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
        found = [entry.path for entry in files if entry.name.lower().endswith(_EXTENSIONS)]
        if not found:
            where = f"; folders in it, such as {folders[0]}, are not searched" if folders else ""
            raise DataError(
                f"data folder '{root / name}' has no images ({', '.join(_EXTENSIONS)}){where}; add some or remove it"
            )
        paths += found
        targets += [index] * len(found)
        nested += folders
        others += [entry.name for entry in files if not entry.name.lower().endswith(_EXTENSIONS)]
    return ImageFiles(tuple(classes), tuple(paths), tuple(targets), tuple(_passed_over(root, others, nested)))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without what is hidden."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER]


def _passed_over(root: Path, others: Sequence[str], nested: Sequence[str]) -> Iterator[str]:
    """A line about files that were not read, by the endings of their names, and one about folders inside classes."""
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


def _count(things: Sequence[str], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) != 1 else ''}"


@dataclass(frozen=True, slots=True)
class CropBox:
    """A random resized crop: numbers in [0, 1) that become pixels once the image's size is known."""

    area: float  # of the image, in [0.08, 1)
    log_ratio: float  # log of width over height, in [log 3/4, log 4/3)
    left: float  # of the free play
    top: float
    flip: bool


def random_crop_box(generator: torch.Generator) -> CropBox:
    """The crop of Inception training (Szegedy et al., arXiv 1409.4842, section 6) and a coin to flip."""
    area, ratio, left, top, coin = torch.rand(5, generator=generator).tolist()
    limit = math.log(4 / 3)
    return CropBox(0.08 + 0.92 * area, limit * (2 * ratio - 1), left, top, coin < 0.5)


@dataclass(frozen=True, slots=True)
class Decoder:
    """How a file becomes `[3, H, W]` uint8.

    `size` None: as it is, every image of one size. Else the short side is resized to `short` (None: size / 0.875) and
    the centre cropped to `size`, as ImageNet is evaluated. Sixteen bits a pixel become the nearest of eight.
    """

    size: int | None = None
    short: int | None = None
    interpolation: str = "bilinear"  # one of INTERPOLATIONS
    threads: int = 0  # 0: one for each processor

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for `submit`; they are gone when the block ends."""
        with ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as pool:
            yield pool

    def submit(
        self, pool: ThreadPoolExecutor, files: Sequence[str], boxes: Sequence[CropBox] | None
    ) -> list[Future[Tensor]]:
        """One future a file; `boxes` are their random crops, None for the centre."""
        return [pool.submit(self._tensor, file, boxes[i] if boxes else None) for i, file in enumerate(files)]

    def decode(self, files: Sequence[str]) -> Tensor:
        """All files, `[N, 3, H, W]`. Raises DataError for a file that is no image or of another size."""
        first = self._array(files[0], None)
        out = np.empty((len(files), *first.shape), dtype=np.uint8)

        def fill(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(files))):
                array = self._array(files[i], None)
                if array.shape != first.shape:
                    raise DataError(
                        f"image '{files[i]}' is {array.shape[1]}x{array.shape[0]} and '{files[0]}' "
                        f"{first.shape[1]}x{first.shape[0]}; use imagefolder:ROOT, which resizes"
                    )
                out[i] = array

        with self.pool() as pool:
            # list() waits and raises what a thread raised
            list(pool.map(fill, range(0, len(files), _CHUNK)))
        return torch.from_numpy(out).permute(0, 3, 1, 2)  # channels-last in memory, as the networks want it

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


_SHOWN = 3  # endings or folders named in a warning
_CHUNK = 256  # files a task: small images take less time than handing one over


def _rgb(image: Image.Image, file: str) -> Image.Image:
    """Eight bits for each of three channels; transparency is dropped. Raises DataError for pixels of unknown range."""
    wide = image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits, as older versions of Pillow and PPM have it
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
    # Resizing the cropped box alone gives the same pixels and touches fewer.
    box = (left, top, min(image.width, left + size / scale), min(image.height, top + size / scale))
    return image.resize((size, size), how, box=box)


def _random(image: Image.Image, size: int, crop: CropBox, how: Image.Resampling) -> Image.Image:
    area = crop.area * image.width * image.height
    width = min(image.width, math.sqrt(area * math.exp(crop.log_ratio)))
    height = min(image.height, math.sqrt(area / math.exp(crop.log_ratio)))
    left, top = crop.left * (image.width - width), crop.top * (image.height - height)
    out = image.resize((size, size), how, box=(left, top, left + width, top + height))
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else out
