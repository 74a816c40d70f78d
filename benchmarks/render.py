"""Writes the measured parts of the pages in docs/ from the records in benchmarks/results/.

    python benchmarks/render.py                     # all pages
    python benchmarks/render.py latency sparse      # these

Each figure is a file of its own, which says how it is measured and how its section reads. This file only orders them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

import after_recovery
import against_torch_pruning
import approximate
import batches
import compensation
import engines
import episode_cost
import gpu
import guarantee
import images
import kernels
import latency_runtimes
import latency_search
import latency_table
import many_workers
import masking_cost
import methods
import networks
import overhead
import padded_shortcuts
import peak_memory
import reconstruction
import recovery
import refusals
import rounds
import score_correlation
import score_ranking
import scoring_speed
import search_agents
import search_patience
import search_quality
import search_toys
import sequential
import setup_time
import sparse_files
import sparse_sizes
import steadiness
import study
import sweep
import tasks
import training_format
import workers
from amc.errors import AmcError
from amc.run.lines import atomic_write_bytes
from common import DOCS, Record, plain_parser, records

INTRODUCTION = """# Benchmarks

Every figure on this page was written by `python benchmarks/render.py` from what the scripts named below measured. Data
is the user's own: `DATA` is a folder with `train/<class>/` and `test/<class>/`, here the 60,000 CIFAR-10 images as JPEG
(quality 75). Networks trained on the original images lose about ten points on these, so accuracies compare with each
other and not with published CIFAR-10 figures. "Search" is the accuracy on the search split (held out of training; the
reward), "test" the accuracy on the test split, which steers nothing. MACs are recounted with torch's own counter on the
sliced network.
"""


class Figure(Protocol):
    """What render needs of a figure's file."""

    RESULT: str

    def section(self, record: Record) -> str: ...


def each(*figures: Figure) -> str:
    """The sections of these figures: one for each record, an empty line between two."""
    return "\n".join(figure.section(record) for figure in figures for record in records(figure.RESULT))


def between(page: str, begin: str, end: str, part: str) -> str:
    """The page with `part` between these two texts, which stay. Without a part the page stays as it is.

    An empty `end` means the end of the page. AmcError if the page lacks one of the two.
    """
    head, first, rest = page.partition(begin)
    _, last, tail = rest.partition(end) if end else ("", "", "")
    if not first or last != end:
        raise AmcError(f"no lines {begin.strip()!r} and {end.strip()!r}; write them where the measured part goes")
    return f"{head}{begin}{part}{end}{tail}" if part else page


def benchmarks_page(page: str) -> str:
    sections = each(
        search_quality, against_torch_pruning, episode_cost, setup_time, engines, scoring_speed, reconstruction,
        methods, guarantee, rounds, compensation, masking_cost, score_correlation, score_ranking, steadiness,
        sequential, padded_shortcuts, approximate, recovery, refusals, after_recovery, search_agents, sweep,
        search_toys, search_patience,
    )  # fmt: skip
    return f"{INTRODUCTION}\n{sections}" if sections else page


def latency_page(page: str) -> str:
    searches = records(latency_search.RESULT)
    parts = [each(latency_table), latency_search.section(searches) if searches else "", each(latency_runtimes)]
    return between(page, "## Measured\n\n", "", "\n".join(filter(None, parts)))


def memory_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(peak_memory))


def study_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(study))


def workers_page(page: str) -> str:
    quality = many_workers.quality(records(many_workers.RESULT))
    parts = [each(workers), each(many_workers), quality, each(batches)]
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", "\n".join(filter(None, parts)))


def ray_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(overhead))


def images_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(images))


def gpu_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(gpu))


def tasks_page(page: str) -> str:
    return between(page, "<!-- measured -->\n\n", "\n<!-- end -->", each(tasks))


def sparse_page(page: str) -> str:
    page = between(page, "<!-- measured: files -->\n\n", "\n<!-- end -->", each(sparse_sizes))
    return between(page, "<!-- measured: runs -->\n\n", "\n<!-- end -->", each(sparse_files))


def networks_page(page: str) -> str:
    return each(networks) or page


def kernels_page(page: str) -> str:
    step = "one thread (`python benchmarks/training_format.py`):\n\n"
    page = between(page, step, "\nThe context costs", each(training_format))
    begin, end = "<!-- the tables of benchmarks/kernels.py -->\n\n", "\n<!-- end of the tables -->"
    return between(page, begin, end, each(kernels))


PAGES: dict[str, Callable[[str], str]] = {  # by name in docs/: the page as it is → the page with its figures
    "benchmarks": benchmarks_page,
    "latency": latency_page,
    "memory": memory_page,
    "sparse": sparse_page,
    "study": study_page,
    "workers": workers_page,
    "ray": ray_page,
    "images": images_page,
    "gpu": gpu_page,
    "tasks": tasks_page,
    "networks": networks_page,
    "kernels": kernels_page,
}


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"{', '.join(PAGES)}; default: all")
    return parser


def main() -> None:
    parser = options()
    names = parser.parse_args().pages or list(PAGES)
    unknown = [name for name in names if name not in PAGES]
    if unknown:
        parser.error(f"there is no page {unknown[0]!r}; the pages are {', '.join(PAGES)}")
    for name in names:
        path = DOCS / f"{name}.md"
        try:
            page = PAGES[name](path.read_text(encoding="utf-8"))
        except AmcError as error:
            raise SystemExit(f"{path}: {error}") from None
        atomic_write_bytes(path, page.encode())


if __name__ == "__main__":
    main()
