"""Images that do not fit: what decoding costs, and the memory of a process that scores on the images.

    python benchmarks/images.py                           # 2,000 generated JPEGs
    python benchmarks/images.py --folder DATA/val         # one's own: a folder for each class

Every way is a process of its own, which prepares the images and then takes all batches once, as a score does. Memory is
what belongs to the process alone (RssAnon of /proc, read every 5 ms, above that before the images): pages of a mapped
file are the system's, shared by all processes, and dropped when memory is short. Needs Linux. The results go to
benchmarks/results/images.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amc.run.provenance import environment
from amc.zoo import remembered
from amc.zoo.decode import list_images
from common import Record, load, machine, plain_parser, save, table

RESULT = "images.json"
CLASSES, SIDES = 10, (500, 375)  # of generated images: the usual size of ImageNet's
PROJECTED = 50_000  # images
WAYS = {  # name: threads, megabytes of the cache, whether all images are held as floats
    "held as floats": (2, "0", True),
    "held as bytes": (2, "0", False),
    "mapped, first start, 1 thread": (1, "", False),
    "mapped, first start, 2 threads": (2, "", False),
    "mapped, second start": (2, "", False),
}
MEASURED = """
import json, re, sys, threading, time
import torch
from amc.zoo.decode import Decoder, list_images
from amc.zoo.images import FolderSet
from amc.zoo.preprocessing import IMAGENET
folder, size, threads, floats = sys.argv[1], *map(int, sys.argv[2:])
held = lambda: 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
torch.set_num_threads(1)
files = list_images(__import__("pathlib").Path(folder))
images = FolderSet(files.paths, files.targets, Decoder(size, threads=threads), IMAGENET)
before, most, done = held(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.005):
        most = max(most, held())
watching = threading.Thread(target=watch)
watching.start()
began = time.perf_counter()
loaded = images.load()
seconds = time.perf_counter() - began
if floats:
    kept = [batch for batch in loaded.batches(64)]
    total = sum(float(batch.sum(dtype=torch.float64)) for batch, _ in kept)
else:
    total = sum(float(batch.sum(dtype=torch.float64)) for batch, _ in loaded.batches(64))
done.set()
watching.join()
print(json.dumps({"seconds": seconds, "memory": max(most, held()) - before, "images": len(loaded), "total": total}))
"""


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="images in a folder for each class; default: generated JPEGs")
    parser.add_argument("--images", type=int, default=2000, help="how many are generated")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn; the fastest of each counts")
    parser.add_argument("--size", type=int, default=224, help="side of the decoded images, pixels")
    return parser


def measure(args: argparse.Namespace) -> Record:
    load_before = os.getloadavg()[0]
    record: Record = {"generated": args.folder is None, "size": args.size, "ways": {}}
    with folder_of(args) as folder:
        record["files"] = sum(os.stat(path).st_size for path in list_images(folder).paths)  # noqa: PTH116
        for number in range(args.rounds):
            with tempfile.TemporaryDirectory(prefix="amc-images-") as caches:
                for name, way in WAYS.items():
                    found = measured(folder, args.size, Path(caches), *way)
                    print(f"round {number + 1}, {name}: {found}", flush=True)
                    known = record["ways"].setdefault(name, found)
                    record["ways"][name] = min(known, found, key=lambda each: each["seconds"])
    record["rounds"], record["load"] = args.rounds, load_before
    totals = {way["total"] for way in record["ways"].values()}
    assert len(totals) == 1, f"the ways give different images: {totals}"
    save(RESULT, record | {"environment": environment()})
    return load(RESULT)


def measured(folder: Path, size: int, caches: Path, threads: int, megabytes: str, floats: bool) -> dict[str, Any]:
    """One way in a process of its own; each number of threads has a cache of its own."""
    changes = {"AMC_CACHE": str(caches / str(threads)), remembered.VARIABLE: megabytes}
    command = [sys.executable, "-c", MEASURED, str(folder), str(size), str(threads), str(int(floats))]
    done = subprocess.run(command, env=os.environ | changes, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def folder_of(args: argparse.Namespace) -> Iterator[Path]:
    """The folder that the user names, or one of generated JPEGs: soft shapes with noise."""
    if args.folder is not None:
        yield args.folder
        return
    random, (width, height) = np.random.default_rng(0), SIDES
    with tempfile.TemporaryDirectory(prefix="amc-images-") as root:
        for number in range(args.images):
            folder = Path(root) / f"class{number % CLASSES}"
            folder.mkdir(exist_ok=True)
            shapes = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            soft = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
            noisy = soft + random.integers(-12, 13, (height, width, 1))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=88)
        time.sleep(remembered.SETTLED_SECONDS + 1)  # younger files are not kept
        yield Path(root)


def section(record: Record) -> str:
    ways, size = record["ways"], record["size"]
    count = next(iter(ways.values()))["images"]
    what = f"{count:,} generated JPEGs of {SIDES[0]}x{SIDES[1]} pixels" if record["generated"] else f"{count:,} images"
    rows = [[name, *cells(way)] for name, way in ways.items()]
    one, two = (ways[f"mapped, first start, {threads}"]["seconds"] for threads in ("1 thread", "2 threads"))
    pixels = PROJECTED * size * size * 3
    return (
        "## Decoded once, held nowhere\n\n"
        f"`python benchmarks/images.py`: {what} ({record['files'] / 1e6:.0f} MB) at {size}x{size}, each way a process "
        f"of its own, the fastest of {record['rounds']} rounds. Start: until the images are there. Memory: of the "
        "process alone, at most, while it prepares the images and takes all batches once.\n\n"
        + table(("way", "start", "images a second", "memory"), rows)
        + f"\nBefore it began, {record['load']:.1f} processes ran on the machine, in the mean of a minute: unless that "
        f"is near 0, the times are upper bounds. Two threads decoded {one / two:.2f} times as fast as one. Computed, "
        f"not measured, for {PROJECTED:,} images of this size: {4 * pixels / 1e9:.1f} GB as floats, "
        f"{pixels / 1e9:.1f} GB as bytes, which is the size of the file that is mapped; "
        f"{PROJECTED * two / count / 60:.0f} minutes to decode at the pace of two threads here.\n" + machine(record)
    )


def cells(way: dict[str, Any]) -> list[str]:
    """Of a row."""
    return [f"{way['seconds']:.2f} s", f"{way['images'] / way['seconds']:.0f}", f"{way['memory'] / 1e6:.0f} MB"]


def main() -> None:
    args = options().parse_args()
    print(section(measure(args)))


if __name__ == "__main__":
    main()
