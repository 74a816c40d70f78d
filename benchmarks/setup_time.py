"""How long a search takes to begin: CPU seconds of each part before the first score, and to the official result.

    python benchmarks/setup_time.py --model mobilenet_v1_050 --weights W --data cifar10:ROOT --search-images 2000

Every search is a process of its own, measured from its start. Searches without and with decoded images in the cache,
and resumed ones, alternate. The results go to benchmarks/results/setup-MODEL.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from amc.cli.jobs.origin import data_of, network_of
from amc.run.provenance import environment
from common import Record, machine, network_parser, save, source_of, table
from timed_search import Times, timed_search

RESULT = "setup-{model}.json"

# The official code, MobileNet-V1-0.5 on the same 2,000 search images, one thread of an AMD EPYC core without AVX-512:
# CPU seconds to its best policy of 249, and of an episode; `dense`: of the dense network on these images, with torch.
OFFICIAL = {"score": 0.8065, "seconds": 992.0, "episode": 4.8, "dense": 2.0}
SETTINGS = {
    "episodes": 100,
    "finalists": 0,
    "recover": "none",
}  # every search image is scored, as in the official search


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the searches to the official result"
    )
    return parser


def measure(args: argparse.Namespace) -> Record:
    with tempfile.TemporaryDirectory(prefix="amc-setup-") as folder:
        starts = [begun(args, Path(folder) / f"round-{number}") for number in range(args.rounds)]
        reached = [to_official(args, Path(folder) / f"seed-{seed}", seed) for seed in args.seeds]
    record: Record = {
        "model": args.model,
        "images": args.search_images,
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds": {kind: least([start[kind].parts() for start in starts]) for kind in starts[0]},
        "dense": dense_seconds(args),
        "official": OFFICIAL,
        "reached": reached,
        "environment": environment(),
    }
    save(RESULT.format(model=args.model), record)
    return record


def begun(args: argparse.Namespace, folder: Path) -> dict[str, Times]:
    """A search until its first score, without and with decoded images in the cache, and the second one resumed."""
    search = prepared_search(args, folder / "cache", SETTINGS)
    return {
        "first run": search(folder / "first"),
        "later run": search(folder / "later"),
        "resumed": search(folder / "later", resume=True),
    }


def to_official(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """A search from nothing to the official code's score."""
    search = prepared_search(args, folder / "cache", {**SETTINGS, "seed": seed})
    scores = search(folder / "run", target=OFFICIAL["score"]).scores
    best, seconds = scores[-1]
    return {"seed": seed, "policies": len(scores), "score": best, "seconds": seconds}


def prepared_search(args: argparse.Namespace, cache: Path, settings: dict[str, Any]) -> Callable[..., Times]:
    def search(out: Path, **more: Any) -> Times:
        cache.mkdir(parents=True, exist_ok=True)
        times = timed_search(out, source_of(args).to_json(), settings, cache=cache, threads=args.threads, **more)
        print(f"{times.scores[-1][1]:.2f} s {out}", flush=True)
        return times

    return search


def dense_seconds(args: argparse.Namespace) -> float:
    """CPU seconds of the dense network on the search images, with torch; the least of the rounds."""
    torch.set_num_threads(args.threads)
    model, batches, seconds = network_of(source_of(args)), [*data_of(source_of(args)).search.batches(64)], []
    with torch.inference_mode():
        for _ in range(args.rounds + 1):
            began = time.process_time()
            for images, _ in batches:
                model(images)
            seconds.append(time.process_time() - began)
    return min(seconds)


def least(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The parts of the round that took least in all, and their sum: other work on the machine only adds."""
    best = min(rounds, key=lambda parts: sum(parts.values()))
    return {**best, "all": sum(best.values())}


def section(record: Record) -> str:
    seconds = record["seconds"]
    names = list(dict.fromkeys(name for parts in seconds.values() for name in parts if name != "all"))
    rows = [[name, *(_seconds(parts.get(name)) for parts in seconds.values())] for name in [*names, "all"]]
    official, dense = record["official"], record["dense"]
    scaled = official["seconds"] * dense / official["dense"]
    reached = [
        [
            str(run["seed"]), str(run["policies"]), f"{100 * run['score']:.2f}", f"{run['seconds']:.1f}",
            f"{official['seconds'] / run['seconds']:.0f}", f"{scaled / run['seconds']:.0f}",
        ]
        for run in record["reached"]
    ]  # fmt: skip
    return (
        f"## How long a search takes to begin: {record['model']}\n\n"
        f"`python benchmarks/setup_time.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{record['images']}`: CPU seconds from the start of the process to the first policy's score, "
        f"{record['threads']} thread(s), the best of {record['rounds']} rounds. The first run on a data set decodes "
        "its images.\n\n"
        + table(["part", *seconds], rows)
        + f"\nThe official code took {official['seconds']:.0f} CPU seconds to its best policy, "
        f"{100 * official['score']:.2f}% on the same search images, {official['episode']} a policy, on one AMD EPYC "
        f"core. With torch, the dense network takes {official['dense']:.1f} CPU seconds on these images there, and "
        f"{dense:.2f} here; scaled by this, the official search would take {scaled:.0f} here. From the start of the "
        "process, without decoded images in the cache, to a policy that scores as much:\n\n"
        + table(["seed", "policies", "score", "CPU s", "official / this", "scaled"], reached)
        + machine(record)
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
