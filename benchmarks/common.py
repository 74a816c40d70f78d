"""What the benchmarks share: options, the trained network with its images, results on disk, and tables in Markdown.

Every benchmark runs as `python benchmarks/NAME.py`. Python then puts this folder on the path, so the files import each
other by name.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.scoring.batchnorm import statistics_on
from amc.compression.settings import SearchConfig
from amc.run.lines import atomic_write_bytes
from amc.run.settings import Source
from amc.structure import Structure, inspect
from amc.structure.batches import limited
from amc.zoo import DataSplits

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"

sys.path.insert(0, str(ROOT))  # some benchmarks use the toys, networks and cases of tests/

Record = dict[str, Any]
"""What a benchmark measured, as it lies in results/."""


# Options


def plain_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser without options that shows the benchmark's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def network_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that starts from a trained network."""
    options = plain_parser(doc)
    options.add_argument("--model", required=True)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--data", required=True, help="cifar10:ROOT")
    options.add_argument("--search-images", type=int, help="how many of the search split are scored; default: all")
    options.add_argument("--threads", type=int, default=1)
    return options


def source_of(args: argparse.Namespace, *, test: bool = True) -> Source:
    """The network and the data, as config.json names them."""
    weights = str(args.weights.resolve())
    return Source(args.model, weights=weights, data=args.data, search_images=args.search_images, test=test)


@dataclass(frozen=True)
class Prepared:
    """A trained network, its structure and its images, as a search with the default settings takes them."""

    model: nn.Module
    structure: Structure
    data: DataSplits
    calibration: Any  # batches of images
    bn_images: Any  # the first of them, for batch norms
    norms: Mapping[str, Tensor]  # the dense network's batch-norm statistics on these


def prepared(args: argparse.Namespace) -> Prepared:
    """Load what the options of `network_parser` name."""
    torch.set_num_threads(args.threads)
    source, config = source_of(args), SearchConfig()
    model, data = network_of(source), data_of(source)
    structure = inspect(model, torch.zeros(1, *data.input_shape))
    calibration = limited(data.calibration.batches(BATCH), config.calibration_images)
    bn_images = limited(calibration, config.bn_images or 0)
    return Prepared(model, structure, data, calibration, bn_images, statistics_on(model, bn_images))


# Results


def save(name: str, record: Mapping[str, Any]) -> None:
    """Write a record into results/. The old file stays if writing fails."""
    atomic_write_bytes(RESULTS / name, (json.dumps(record, indent=1) + "\n").encode())


def load(name: str) -> Record:
    """Read a record of results/. It is empty if nothing was saved."""
    path = RESULTS / name
    record: Record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record


def records(name: str) -> list[Record]:
    """All records of a figure, sorted by file name; a field in `name`, such as `{model}`, stands for any value."""
    return [load(path.name) for path in sorted(RESULTS.glob(re.sub(r"\{\w+\}", "*", name)))]


# Markdown


def table(header: Iterable[str], rows: Iterable[Iterable[str]], *, rule: str = "") -> str:
    """A table, each line ending in a line break. `rule` is its second line; by default columns are left-aligned."""
    heads = list(header)
    return "".join(f"{line}\n" for line in (row(heads), rule or row(["---"] * len(heads)), *map(row, rows)))


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def percent(share: float) -> str:
    """A share in percent, with two decimals."""
    return f"{100 * share:.2f}%"


def machine(record: Mapping[str, Any]) -> str:
    """The line that ends a section: where and when its figures were measured."""
    place = record["environment"]
    gpu = f"{place['gpu']}, " if "gpu" in place else ""
    return (
        f"\n*{gpu}{place['cpu']}, {place['cores']} cores, torch {place['torch']}, Python {place['python']}, "
        f"{place['date']}.*\n"
    )


def measured_on(record: Mapping[str, Any]) -> str:
    """The same line on the page about latency."""
    place = record["environment"]
    return f"\nMeasured on {place['cpu']}, {place['cores']} cores, torch {place['torch']}, {place['date']}.\n"
