"""What the structure pass makes of many networks: the table in docs/networks.md.

    python benchmarks/networks.py             # all networks not yet in results/networks.json, then the page
    python benchmarks/networks.py NAME ...    # these again
    python benchmarks/networks.py --own       # those in it again, without torch-pruning, whose results stay
    python benchmarks/networks.py --page      # only the page, from the results there are

Every network is measured in a process of its own, with one thread and random weights; torch-pruning's attempt has
another one, so that neither a crash nor a time-out ends the run. Results are kept network by network.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from amc.structure import certify, count_macs, count_params, inspect, slice_model  # noqa: E402
from benchmarks.network_list import NETWORKS, create  # noqa: E402
from benchmarks.network_page import write_page  # noqa: E402
from benchmarks.network_rival import attempt  # noqa: E402
from tests.structure.nets import chain  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "networks.json"
POLICIES = 20
KEEP_SETS = 3
SECONDS = 400  # for one process
FORK = multiprocessing.get_context("fork")
LARGE = {"resnet50": 224, "densenet121": 224, "vit_b_16": 224, "convnext_tiny": 224}
CHAINS = (250, 500, 1000)


def measure(name: str) -> dict[str, Any]:
    """Everything the table says about one network, except torch-pruning's column."""
    model, example = create(name)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        structure = inspect(model, example)
        seconds.append(time.process_time() - begin)
    begin = time.process_time()
    structure, certificate = certify(model, structure, example, keep_sets=KEEP_SETS)
    certificate_seconds = time.process_time() - begin
    rng = np.random.default_rng(0)
    agreed = structure.macs == count_macs(model, example) and structure.params == count_params(model)
    for _ in range(POLICIES):
        keep = {g.name: np.sort(rng.choice(g.size, rng.integers(1, g.size + 1), False)) for g in structure.groups}
        counts = np.array([len(keep[g.name]) for g in structure.groups], dtype=np.int64)
        slim = slice_model(model, structure, structure.mask(keep))
        claimed = structure.cost.macs(counts), structure.cost.params(counts)
        agreed &= claimed == (count_macs(slim, example), count_params(slim))
    reasons = collections.Counter(locked.lock.reason for locked in structure.locked)
    return {
        "macs": structure.macs,
        "params": structure.params,
        "prunable_macs": structure.prunable_macs(),
        "prunable_params": structure.prunable_params(),
        "groups": len(structure.groups),
        "locks": len(structure.locked),
        "reason": _commonest(reasons),
        "least_macs": structure.cost.macs(np.ones(len(structure.groups))) / structure.macs,
        "seconds": statistics.median(seconds),
        "certificate_seconds": certificate_seconds,
        "certificate_failed": len(certificate.failed),
        "certificate_error": certificate.worst_error,
        "costs_agree": bool(agreed),
    }


def _commonest(reasons: collections.Counter[str]) -> str:
    """The commonest reason besides the network's output, which is always locked."""
    others = [(reason, count) for reason, count in reasons.most_common() if reason != "network output"]
    return f"{others[0][0]} ({others[0][1]})" if others else "network output"


def timings() -> dict[str, Any]:
    """Seconds of the large networks at full size and of long chains: CPU time of one thread."""
    found: dict[str, Any] = {}
    for name, size in LARGE.items():
        model, example = create(name, size)
        begin = time.process_time()
        structure = inspect(model, example)
        middle = time.process_time()
        certify(model, structure, example, keep_sets=KEEP_SETS)
        found[name] = {"structure": middle - begin, "certificate": time.process_time() - middle}
    for length in CHAINS:
        model, example = chain(length)
        seconds = []
        for _ in range(3):
            begin = time.process_time()
            inspect(model, example)
            seconds.append(time.process_time() - begin)
        found[f"chain {length}"] = {"structure": statistics.median(seconds)}
    return found


def _child(task: str, name: str) -> dict[str, Any]:
    """Run one task in a process of its own, forked so that nothing is imported twice; a failure is a result, too."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_task, args=(task, name, there))
    process.start()
    there.close()
    found: dict[str, Any] = {"error": f"takes more than {SECONDS} s"}
    if here.poll(SECONDS):
        try:
            found = here.recv()
        except EOFError:
            found = {"error": "its process died"}
    process.kill()
    process.join()
    return found


def _task(task: str, name: str, result: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    try:
        result.send({"measure": measure, "rival": attempt, "timings": lambda _: timings()}[task](name))
    except Exception as error:  # the table says what went wrong
        text = str(error).strip().splitlines()
        result.send({"error": f"{type(error).__name__}: {text[0][:200] if text else ''}"})


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def _save(name: str, row: dict[str, Any]) -> None:
    """Add one result to those on disk, to which another run may have added meanwhile."""
    RESULTS.parent.mkdir(exist_ok=True)
    draft = RESULTS.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(_read() | {name: row}, indent=1, sort_keys=True) + "\n")
    draft.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    known = _read()
    todo = options.names or [name for name in [*NETWORKS, "timings"] if options.own == (name in known)]
    for name in [] if options.page else todo:
        task = "timings" if name == "timings" else "measure"
        row = _child(task, name)
        if task == "measure":
            row["rival"] = known[name]["rival"] if options.own else _child("rival", name)
        _save(name, row)
        print(name, row, flush=True)
    write_page(_read(), ROOT / "docs" / "networks.md")


if __name__ == "__main__":
    main()
