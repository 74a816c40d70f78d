"""Which kernels of torch are wrong on this processor: the tables in docs/kernels.md.

    python benchmarks/kernels.py              # the full grid in every setting that has no result yet, then the tables
    python benchmarks/kernels.py --again      # all of it
    python benchmarks/kernels.py --page       # only the tables

Every setting (instruction set, threads) takes some minutes. Convolutions whose gradients fine-tuning computes in a way
of its own are tried in both ways. Results are kept setting by setting in results/kernels.json.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402

from amc.provenance import environment  # noqa: E402
from amc.rundir import atomic_write_bytes  # noqa: E402
from benchmarks.common import load, save  # noqa: E402
from tests.kernels.cases import CONTIGUOUS, Case, full_grid  # noqa: E402
from tests.kernels.sweep import SETTINGS, Finding, findings, sweep  # noqa: E402
from tests.kernels.worker import CRASH, Outcome  # noqa: E402

RESULTS = "kernels.json"
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- the tables of benchmarks/kernels.py -->", "<!-- end of the tables -->"
THREADS = (1, 2)
HANG = ("--hang", "30")  # seconds: some of the faults keep both threads waiting for each other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--page", action="store_true", help="only write the tables")
    args = parser.parse_args()
    results = {} if args.again else load(RESULTS)
    if not args.page:
        measure(results)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    atomic_write_bytes(PAGE, f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}".encode())


def measure(results: dict[str, Any]) -> None:
    """Add what is missing, and write it as soon as it is there."""
    everything = list(full_grid())
    grids = {"plain": everything, "guarded": [case for case in everything if case.is_strided_pointwise]}
    results["environment"] = {**environment(), "instructions": torch.backends.cpu.get_cpu_capability()}
    settings = results.setdefault("settings", {})
    for threads in THREADS:
        for setting in SETTINGS:
            for way, cases in grids.items():
                name = f"{setting.name}, {threads} thread{'s' if threads > 1 else ''}, {way}"
                if name not in settings:
                    print(name, flush=True)
                    outcomes = sweep(cases, setting, threads=threads, guarded=way == "guarded", options=HANG)
                    settings[name] = {"rows": rows(cases, outcomes), "wrong": wrong(findings(cases, outcomes))}
                    save(RESULTS, results)


def rows(cases: Iterable[Case], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """By kind of operation: how many cases, how many wrong, and the largest error of the right ones in each type."""
    table: dict[str, Any] = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        row = table.setdefault(kind(case), {"cases": 0, "wrong": 0})
        row["cases"] += 1
        if any(findings([case], [outcome])):
            row["wrong"] += 1
        elif CRASH not in outcome:
            row[case.dtype] = max(row.get(case.dtype, 0.0), *outcome["errors"].values())
    return table


def wrong(found: Iterable[Finding]) -> dict[str, Any]:
    """By kind of operation and by what was wrong: at which input channels, and how often."""
    table: dict[str, Any] = {}
    for finding in found:
        how = finding.how.partition(" off by")[0]
        row = table.setdefault(kind(finding.case), {}).setdefault(how, {"inputs": Counter(), "example": str(finding)})
        row["inputs"][finding.case.inputs] += 1
    return table


def kind(case: Case) -> str:
    """The row of the table that a case belongs to."""
    if "conv" not in case.operation:
        return case.operation if case.layout == CONTIGUOUS else f"{case.operation}, {case.layout}"
    shape = "1x1 with stride 2" if case.is_strided_pointwise else "all other kernels and strides"
    return f"{case.operation}, {shape}, {case.layout}"


def tables(results: dict[str, Any]) -> str:
    """Markdown."""
    settings, place = results["settings"], results["environment"]
    plain = [name for name in settings if name.endswith("plain")]
    lines = ["Cases that were wrong, of how many, in each setting; and the largest error of the right ones.", ""]
    lines += _table(settings, plain, "plain")
    lines += ["", "Strided 1x1 convolutions again, with their gradients computed as fine-tuning computes them.", ""]
    lines += _table(settings, [name for name in settings if name.endswith("guarded")], "guarded")
    lines += ["", "What was wrong:", "", *_wrong(settings, plain), ""]
    machine = f"{place['cpu']}, {place['instructions']}, torch {place['torch']}, {place['date']}"
    return "\n".join([*lines, f"*{machine}. `python benchmarks/kernels.py`*", ""])


def _table(settings: dict[str, Any], names: Sequence[str], way: str) -> list[str]:
    heads = [name.removesuffix(f", {way}").replace("threads", "thr.").replace("thread", "thr.") for name in names]
    lines = [_row(["operation", *heads, "float32", "bfloat16", "float64"]), _row(["---", *["--:"] * (len(heads) + 3)])]
    for label in dict.fromkeys(label for name in names for label in settings[name]["rows"]):
        cells = [settings[name]["rows"][label] for name in names]
        counts = [
            f"**{cell['wrong']}** of {cell['cases']}" if cell["wrong"] else f"0 of {cell['cases']}" for cell in cells
        ]
        worst = [max(cell.get(dtype, -1.0) for cell in cells) for dtype in ("float32", "bfloat16", "float64")]
        lines.append(_row([label, *counts, *("" if error < 0 else f"{error:.0e}" for error in worst)]))
    return lines


def _wrong(settings: dict[str, Any], names: Sequence[str]) -> list[str]:
    lines = [_row(["setting", "operation", "what", "input channels"]), _row(["---"] * 4)]
    for name in names:
        for label, ways in settings[name]["wrong"].items():
            for how, row in ways.items():
                channels = ", ".join(map(str, sorted(map(int, row["inputs"]))))
                lines.append(_row([name.rpartition(",")[0], label, how, channels]))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
