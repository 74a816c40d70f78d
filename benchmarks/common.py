"""What the benchmarks share: their options, the trained network with its images, and the results on disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc import jobs
from amc.batches import limited
from amc.config import SearchConfig
from amc.rundir import atomic_write_bytes
from amc.settings import Source
from amc.structure import Structure, inspect
from amc.zoo import DataSplits

RESULTS = Path(__file__).parent / "results"


def parser(doc: str | None, *, threads: int = 1) -> argparse.ArgumentParser:
    """The options of whatever starts from a trained network."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--weights", type=Path, required=True)
    made.add_argument("--data", required=True, help="cifar10:ROOT")
    made.add_argument("--search-images", type=int, help="of the search split that are scored; default: all")
    made.add_argument("--threads", type=int, default=threads)
    return made


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
    bn_images: Any  # the first of them, for batch-norm re-estimation


def prepared(args: argparse.Namespace) -> Prepared:
    """What `parser`'s options name."""
    torch.set_num_threads(args.threads)
    source, config = source_of(args), SearchConfig()
    model, data = jobs.network_of(source), jobs.data_of(source)
    structure = inspect(model, torch.zeros(1, *data.input_shape))
    calibration = limited(data.calibration.batches(jobs.BATCH), config.calibration_images)
    return Prepared(model, structure, data, calibration, limited(calibration, config.bn_images or 0))


def save(name: str, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    atomic_write_bytes(RESULTS / name, (json.dumps(record, indent=1) + "\n").encode())


def load(name: str) -> dict[str, Any]:
    """What was saved; empty where nothing was."""
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
