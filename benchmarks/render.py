"""docs/benchmarks.md from the results that the other scripts left in benchmarks/results/.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import render_compression as compression

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TARGET = HERE.parent / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

Every figure on this page was written by `python benchmarks/render.py` from what the scripts named below measured. Data
is the user's own: `DATA` is a folder with `train/<class>/` and `test/<class>/`, here the 60,000 CIFAR-10 images as JPEG
(quality 75). Networks trained on the original images lose about ten points on these, so accuracies compare with each
other and not with published CIFAR-10 figures. "Search" is the accuracy on the search split (held out of training; the
reward), "test" the accuracy on the test split, which steers nothing. MACs are recounted with torch's own counter on the
sliced network.
"""


def main() -> None:
    kinds = {
        "search-*.json": search_section,
        "rival-*.json": rival_section,
        "episode-*.json": episode_section,
        "speed-*.json": speed_section,
        "reconstruction-*.json": reconstruction_section,
        "methods-*.json": signed(compression.methods_section),
        "guarantee-*.json": signed(compression.guarantee_section),
        "rounds-*.json": signed(compression.rounds_section),
        "compensation-*.json": signed(compression.compensation_section),
        "masking-*.json": signed(compression.masking_section),
        "correlation-*.json": signed(compression.correlation_section),
        "toys.json": toys_section,
    }
    found = [(make, path) for pattern, make in kinds.items() for path in sorted(RESULTS.glob(pattern))]
    sections = [make(json.loads(path.read_text(encoding="utf-8"))) for make, path in found]
    TARGET.write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")


def signed(section: Callable[..., str]) -> Callable[[dict[str, Any]], str]:
    """The section with the machine it was measured on."""
    return lambda record: section(record, table) + machine(record)


def search_section(record: dict[str, Any]) -> str:
    runs = list(record["seeds"].values())
    if not runs:
        return ""
    name, episodes = record["model"], record["episodes"]
    agents = ["ddpg", *runs[0]["baselines"]]
    rows = [[agent, *scores(runs, agent)] for agent in agents]
    text = (
        f"## Search on {name}, {record['budget']}, {episodes} episodes\n\n"
        f"`python benchmarks/search_quality.py --model {name} --weights W --data cifar10:DATA --runs DIR`, "
        f"{len(runs)} seed(s), scores before fine-tuning on {record.get('search_images') or 'all'} search images in "
        f"{record['scoring']}. Dense: {percent(runs[0]['dense']['score'])} search"
        f"{', ' + percent(runs[0]['dense']['test']) + ' test' if 'test' in runs[0]['dense'] else ''}, "
        f"{runs[0]['dense']['macs'] / 1e6:.2f} M MACs.\n\n"
    )
    text += table(["policy", "search, median (least to most)", "MACs, % of dense", "policies scored"], rows)
    gains = [100 * (run["slim"]["score"] - run["baselines"]["random"]["score"]) for run in runs]
    text += (
        f"\nDDPG beats the best random policy by {', '.join(f'{gain:+.2f}' for gain in gains)} points "
        f"(seed by seed) and the uniform one by "
        + ", ".join(f"{100 * (run['slim']['score'] - run['baselines']['uniform']['score']):+.2f}" for run in runs)
        + '. "Uniform" keeps one share of every group, residual streams included.\n'
    )
    if record.get("finetuned"):
        text += "\n" + finetuned_table(record["finetuned"])
    return text + machine(record)


def scores(runs: list[dict[str, Any]], agent: str) -> list[str]:
    parts = [run["slim"] if agent == "ddpg" else run["baselines"][agent] for run in runs]
    values = [part["score"] for part in parts]
    macs = [100 * part["macs"] / run["dense"]["macs"] for part, run in zip(parts, runs, strict=True)]
    counts = {run["episodes"] if agent == "ddpg" else run["baselines"][agent]["episodes"] for run in runs}
    spread = f"{percent(statistics.median(values))} ({percent(min(values))} to {percent(max(values))})"
    return [spread, f"{min(macs):.2f} to {max(macs):.2f}", "/".join(map(str, sorted(counts)))]


def finetuned_table(done: dict[str, Any]) -> str:
    rows = [
        [name, percent(entry["test_before"]), percent(entry["test_after"]), str(entry["epochs"])]
        for name, entry in done.items()
    ]
    return "Fine-tuned (first seed, last epoch, the same settings for all):\n\n" + table(
        ["policy", "test before", "test after", "epochs"], rows
    )


def rival_section(record: dict[str, Any]) -> str:
    rows = [
        [
            name, f"{row['macs'] / record['dense_macs']:.2%}", f"{row['params'] / 1e3:.1f} k",
            percent(row["test"]), percent(row["test_batch_norm"]), percent(row["test_finetuned"]),
        ]
        for name, row in record["rows"].items()
    ]  # fmt: skip
    header = ["network", "MACs", "parameters", "test as pruned", "batch norm re-estimated", "fine-tuned"]
    return (
        f"## Beside torch-pruning: {record['model']}\n\n"
        f"`python benchmarks/against_torch_pruning.py --model {record['model']} --weights W --data cifar10:DATA "
        f"--runs DIR`: group-magnitude pruning at the same recounted MACs, {record['epochs']} epochs of the same "
        f"fine-tuning for all (the dense network too), one seed.\n\n" + table(header, rows) + machine(record)
    )


def episode_section(record: dict[str, Any]) -> str:
    seconds, speed = record["seconds"], record["speedup"]
    rows = [[name, f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"] for name, value in seconds.items()]
    return (
        f"## What one episode costs: {record['model']}\n\n"
        f"`python benchmarks/episode_cost.py --model {record['model']} --weights W --data cifar10:DATA`, "
        f"{record['images']} search images, {record['scoring']}, {record['threads']} thread(s), medians of "
        f"{record['rounds']} rounds in which dense and slim alternate.\n\n"
        + table(["part", "time"], rows)
        + f"\nEverything but judging the network (re-estimating its batch norms, and the score) takes "
        f"{record['overhead']:.1%} of an episode. Scoring at 50% of the MACs is "
        f"{speed['median']:.2f} times as fast as scoring the dense network "
        f"({speed['least']:.2f} to {speed['most']:.2f}). "
        f"Ranking, factorising and solving for all keep counts, once, take as long as "
        f"{record['reconstruction_in_episodes']:.1f} episodes.\n" + machine(record)
    )


def speed_section(record: dict[str, Any]) -> str:
    rows = [[name, f"{row['dense']:.2f} s", f"{row['speedup']:.2f}"] for name, row in record["rows"].items()]
    lock = f" --lock {' '.join(record['locked'])}" if record["locked"] else ""
    return (
        f"## Speed of scoring: {record['model']}\n\n"
        f"`python benchmarks/scoring_speed.py --model {record['model']}{lock}`: every group{' but these' * bool(lock)} "
        f"halved, {record['macs']:.1%} of the MACs, {record['images']} images, CPU seconds of one thread, medians of "
        f"{record['rounds']} alternating rounds.\n\n" + table(["variant", "dense", "times as fast"], rows) + "\n"
        "torch's convolutions (oneDNN) compute channels in blocks of 16 on this processor, so a convolution with 8 "
        "output channels costs nearly as much as one with 16: narrow networks gain less than their MACs say, wide ones "
        "more.\n" + machine(record)
    )


def reconstruction_section(record: dict[str, Any]) -> str:
    rows = [
        [f"{row['kept']:.0%}", f"{row['macs']:.1%}", row["ranking"], *(percent(score) for score in row["scores"])]
        for row in record["rows"]
    ]
    lock = f" --lock {' '.join(record['locked'])}" if record["locked"] else ""
    header = ["kept", "MACs", "ranking", "plain", "batch norm re-estimated", "least squares", "both"]
    return (
        f"## What ranking, least squares and batch-norm re-estimation are worth: {record['model']}\n\n"
        f"`python benchmarks/reconstruction.py --model {record['model']} --weights W --data cifar10:DATA{lock}`: "
        f"the same share of every group kept, accuracy on {record['images']} search images without any fine-tuning "
        f"(dense {percent(record['dense'])}).\n\n" + table(header, rows) + machine(record)
    )


def toys_section(record: dict[str, Any]) -> str:
    rows = [
        [
            row["problem"], row["variant"], percent(row["score"]),
            f"{100 * row['gain']:+.2f} ± {100 * row['spread']:.2f}" if row["variant"] != "random" else "",
            f"{row['wins']}/{record['seeds']}" if row["variant"] != "random" else "",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    return (
        f"## What carries the search\n\n`python -m benchmarks.search_toys`: closed-form toys with unequal layer "
        f"sensitivities at 50% of the MACs, best of {record['episodes']} scored policies, {record['seeds']} seeds.\n\n"
        + table(["problem", "agent", "best score, mean", "points over random", "wins"], rows)
        + "\nExploring around the best policy so far carries the gain; the actor-critic alone is no better than random "
        "policies at this length.\n" + machine(record)
    )


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def machine(record: dict[str, Any]) -> str:
    e = record["environment"]
    return f"\n*{e['cpu']}, {e['cores']} cores, torch {e['torch']}, Python {e['python']}, {e['date']}.*\n"


if __name__ == "__main__":
    main()
