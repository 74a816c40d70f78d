"""Which kernels of torch are wrong on this processor.

    python benchmarks/kernels.py              # the full grid in every setting that has no result yet
    python benchmarks/kernels.py --again      # all of it

Every setting (instruction set, threads) takes some minutes. Convolutions whose gradients fine-tuning computes in a way
of its own are tried in both ways. The results go to benchmarks/results/kernels.json setting by setting.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from amc.run.provenance import environment
from common import Record, load, plain_parser, row, save, table
from tests.kernels.cases import CONTIGUOUS, Case, full_grid
from tests.kernels.sweep import SETTINGS, Finding, findings, sweep
from tests.kernels.worker import CRASH, Outcome

RESULT = "kernels.json"
THREADS = (1, 2)
DTYPES = ("float32", "bfloat16", "float64")
HANG = ("--hang", "30")  # seconds: some of the faults keep both threads waiting for each other


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    return parser


def measure(args: argparse.Namespace) -> Record:
    record: Record = {} if args.again else load(RESULT)
    everything = list(full_grid())
    grids = {"plain": everything, "guarded": [case for case in everything if case.is_strided_pointwise]}
    record["environment"] = {**environment(), "instructions": torch.backends.cpu.get_cpu_capability()}
    settings = record.setdefault("settings", {})
    for threads in THREADS:
        for setting in SETTINGS:
            for way, cases in grids.items():
                name = f"{setting.name}, {threads} thread{'s' if threads > 1 else ''}, {way}"
                if name not in settings:
                    print(name, flush=True)
                    outcomes = sweep(cases, setting, threads=threads, guarded=way == "guarded", options=HANG)
                    settings[name] = {"rows": counted(cases, outcomes), "wrong": wrong(findings(cases, outcomes))}
                    save(RESULT, record)
    return record


def counted(cases: Iterable[Case], outcomes: Iterable[Outcome]) -> Record:
    """By kind of operation: how many cases, how many wrong, and the largest error of the right ones in each type."""
    kinds: Record = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        entry = kinds.setdefault(kind(case), {"cases": 0, "wrong": 0})
        entry["cases"] += 1
        if any(findings([case], [outcome])):
            entry["wrong"] += 1
        elif CRASH not in outcome:
            entry[case.dtype] = max(entry.get(case.dtype, 0.0), *outcome["errors"].values())
    return kinds


def wrong(faults: Iterable[Finding]) -> Record:
    """By kind of operation and by what was wrong: at which input channels, and how often."""
    kinds: Record = {}
    for fault in faults:
        how = fault.how.partition(" off by")[0]
        entry = kinds.setdefault(kind(fault.case), {}).setdefault(how, {"inputs": Counter(), "example": str(fault)})
        entry["inputs"][fault.case.inputs] += 1
    return kinds


def kind(case: Case) -> str:
    """The row of the table that a case belongs to."""
    if "conv" not in case.operation:
        return case.operation if case.layout == CONTIGUOUS else f"{case.operation}, {case.layout}"
    shape = "1x1 with stride 2" if case.is_strided_pointwise else "all other kernels and strides"
    return f"{case.operation}, {shape}, {case.layout}"


def section(record: Record) -> str:
    settings, place = record["settings"], record["environment"]
    plain, guarded = ([name for name in settings if name.endswith(way)] for way in ("plain", "guarded"))
    return (
        "Cases that were wrong, of how many, in each setting; and the largest error of the right ones.\n\n"
        + _counts(settings, plain)
        + "\nStrided 1x1 convolutions again, with their gradients computed as fine-tuning computes them.\n\n"
        + _counts(settings, guarded)
        + "\nWhat was wrong:\n\n"
        + table(["setting", "operation", "what", "input channels"], _faults(settings, plain))
        + f"\n*{place['cpu']}, {place['instructions']}, torch {place['torch']}, {place['date']}. "
        "`python benchmarks/kernels.py`*\n"
    )


def _counts(settings: Mapping[str, Record], names: Sequence[str]) -> str:
    """A table with a row for each kind of operation, and a column for each setting and each type."""
    heads = [name.rpartition(",")[0].replace("threads", "thr.").replace("thread", "thr.") for name in names]
    rows = []
    for label in dict.fromkeys(label for name in names for label in settings[name]["rows"]):
        cells = [settings[name]["rows"][label] for name in names]
        counts = [
            f"**{cell['wrong']}** of {cell['cases']}" if cell["wrong"] else f"0 of {cell['cases']}" for cell in cells
        ]
        worst = [max(cell.get(dtype, -1.0) for cell in cells) for dtype in DTYPES]
        rows.append([label, *counts, *("" if error < 0 else f"{error:.0e}" for error in worst)])
    return table(["operation", *heads, *DTYPES], rows, rule=row(["---", *["--:"] * (len(heads) + len(DTYPES))]))


def _faults(settings: Mapping[str, Record], names: Sequence[str]) -> Iterator[list[str]]:
    for name in names:
        for label, ways in settings[name]["wrong"].items():
            for how, entry in ways.items():
                channels = ", ".join(map(str, sorted(map(int, entry["inputs"]))))
                yield [name.rpartition(",")[0], label, how, channels]


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
