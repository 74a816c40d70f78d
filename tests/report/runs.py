"""Synthetic run directories, as a search would leave them."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amc.rundir import RunDir

SIZES = {f"layer{stage}.{block}.conv1": 8 * 2**stage for stage in (1, 2, 3) for block in range(3)}
DENSE = {"macs": 40_551_808, "params": 269_722, "score": 0.8841, "test": 0.8790}
SLIM = {"macs": 20_158_912, "params": 141_318, "score": 0.7642, "test": 0.7571}
CONFIG: dict[str, Any] = {
    "amc_version": "0.1.0",
    "command": "search",
    "model": "resnet20",
    "weights": "resnet20.safetensors",
    "data": "cifar10:data",
    "budget": "macs<=50%",
    "method": "channel",
    "agent": "ddpg",
    "episodes": 100,
    "warmup": 25,
    "seed": 0,
    "round_to": None,
    "reconstruct": True,
}


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def episode(number: int, score: float | None, error: str | None = None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "episode": number,
        "keep": [size // 2 for size in SIZES.values()],
        "cost": {"macs": 20_100_000 + number, "params": 140_000},
        "score": score,
        "reward": None if score is None else score - 1,
    }
    return record if error is None else record | {"error": error}


def scores(count: int, *, warmup: int, start: float, end: float, seed: int) -> list[float]:
    """Scores that hover around `start` during the warm-up and climb towards `end` after it."""
    noise = random.Random(seed)
    return [
        round(start + (end - start) * max(0, n - warmup) / max(1, count - warmup) + noise.gauss(0, 0.022), 4)
        for n in range(count)
    ]


def make_unfinished_run(path: Path, *, scored: int = 0, **config: Any) -> RunDir:
    """A run whose search was killed after `scored` episodes."""
    run = RunDir.create(path, CONFIG | config)
    if scored:
        values = scores(scored, warmup=25, start=0.68, end=0.74, seed=1)
        lines = [{"journal": 1, "seed": 0}, *(episode(n, value) for n, value in enumerate(values))]
        write_lines(run.file("journal.jsonl"), lines)
    return run


def make_run(path: Path, *, episodes: int = 100, finetuned: bool = True, **config: Any) -> RunDir:
    """A finished run with every file and both baselines; two of its episodes failed."""
    given = {key: value for key, value in CONFIG.items() if key != "warmup"}
    run = RunDir.create(path, given | {"episodes": episodes} | config)
    values = scores(episodes, warmup=25, start=0.675, end=0.755, seed=2)
    lines = [episode(n, value) for n, value in enumerate(values)]
    lines[episodes // 3] = episode(episodes // 3, None, "RuntimeError: <b>out of memory</b>")
    lines[episodes // 2] = episode(episodes // 2, None, "the score is NaN")
    header = {"journal": 1, "seed": 0, "settings": {"warmup_episodes": 25}}
    write_lines(run.file("journal.jsonl"), [header, *lines])
    others = scores(episodes, warmup=episodes, start=0.685, end=0.7, seed=3)
    write_lines(run.file("journal-random.jsonl"), [episode(n, value) for n, value in enumerate(others)])
    write_lines(run.file("journal-uniform.jsonl"), [{"journal": 1}, episode(0, 0.7236)])
    seconds = {"agent": 0.011, "build": 0.034, "score": 1.93}
    write_lines(run.file("timings.jsonl"), [{"episode": n, "seconds": seconds} for n in range(episodes)])
    slim = SLIM | ({"score_finetuned": 0.8622, "test_finetuned": 0.8574} if finetuned else {})
    if finetuned:
        epochs = [{"epoch": n, "loss": 0.9 - 0.1 * n, "lr": 0.05 / n, "score": 0.82 + 0.008 * n} for n in range(1, 6)]
        write_lines(run.file("finetune.jsonl"), epochs)
    noise = random.Random(4)
    groups = [{"name": n, "size": s, "kept": round(s * noise.uniform(0.25, 1))} for n, s in SIZES.items()]
    run.write_json(
        "summary.json",
        {key: CONFIG[key] for key in ("amc_version", "model", "data", "budget", "method", "agent", "seed")}
        | {
            "episodes": episodes,
            "seconds": 214.8,
            "dense": DENSE,
            "slim": slim,
            "baselines": {
                "uniform": {"score": 0.7236, "macs": 20_240_000},
                "random": {"score": max(others), "median": 0.69, "episodes": episodes},
            },
            "groups": groups,
            "failed_episodes": 2,
            "environment": {"machine": "x86_64", "cores": 2, "python": "3.11.7", "torch": "2.13.0"},
        },
    )
    run.write_bytes("model.safetensors", b"")
    return run
