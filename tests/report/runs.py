"""Synthetic run directories, as a search would leave them."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amc.run.directory import RunDir

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


def write_journal(path: Path, records: Iterable[Mapping[str, Any]], **header: Any) -> None:
    """A journal of version 1, whose lines have no digests."""
    write_lines(path, [{"journal": 1, "seed": 0, **header}, *records])


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
        write_journal(run.file("journal.jsonl"), [episode(n, value) for n, value in enumerate(values)])
    return run


def make_run(path: Path, *, episodes: int = 100, finetuned: bool = True, **config: Any) -> RunDir:
    """A finished run with every file and both baselines; two of its episodes failed."""
    given = {key: value for key, value in CONFIG.items() if key != "warmup"}
    run = RunDir.create(path, given | {"episodes": episodes} | config)
    values = scores(episodes, warmup=25, start=0.675, end=0.755, seed=2)
    lines = [episode(n, value) for n, value in enumerate(values)]
    lines[episodes // 3] = episode(episodes // 3, None, "RuntimeError: <b>out of memory</b>")
    lines[episodes // 2] = episode(episodes // 2, None, "the score is NaN")
    write_journal(run.file("journal.jsonl"), lines, settings={"warmup_episodes": 25})
    others = scores(episodes, warmup=episodes, start=0.685, end=0.7, seed=3)
    write_journal(run.file("journal-random.jsonl"), [episode(n, value) for n, value in enumerate(others)])
    write_journal(run.file("journal-uniform.jsonl"), [episode(0, 0.7236)])
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


def make_guaranteed_run(path: Path, *, confirmed: bool = True, max_drop: float | None = 0.5, **config: Any) -> RunDir:
    """A finished fine-grained search without a budget: policies of every size, one of them confirmed.

    `max_drop` None: a search by the reward r_params instead.
    """
    free = {"budget": "none", "method": "fine-grained", "episodes": 60, "minimise": "params", "max_drop": max_drop}
    free |= {"reward": "r_err" if max_drop else "r_params"}
    run = RunDir.create(path, {key: value for key, value in CONFIG.items() if key != "warmup"} | free | config)
    layers = {f"layer{stage}.{block}.conv1": 36 * 64**stage for stage in (1, 2) for block in range(3)}

    def tried(number: int, share: float, noise: float) -> dict[str, Any]:
        score = 0.8841 - 1.5 * max(0.0, 0.4 - share) ** 2 - noise
        reward = -share if 0.8841 - score <= 0.005 else -1 - (0.8841 - score - 0.005)
        if max_drop is None:
            reward = -(1 - score) * 12.5 * (1 + share / 10)
        cost = {"macs": DENSE["macs"] * share, "params": DENSE["params"] * share, "size": 1_100_000 * share}
        keep = [round(size * share) for size in layers.values()]
        return {"episode": number, "keep": keep, "cost": cost, "score": round(score, 4), "reward": round(reward, 6)}

    noise = random.Random(5)
    lines = [
        tried(n, 0.2 + 0.8 * noise.random() if n < 15 else 0.42 - n / 400, noise.random() * (0.1 if n < 15 else 0.004))
        for n in range(60)
    ]
    write_journal(run.file("journal.jsonl"), lines, settings={"warmup_episodes": 15})
    uniform = [tried(n, 1 - n / 11, 0.03 * (n / 11) ** 2) for n in range(10)]
    write_journal(run.file("journal-uniform.jsonl"), uniform)
    write_journal(run.file("journal-random.jsonl"), [tried(n, 0.3 + n / 30, 0.04) for n in range(20)])
    trials = [
        {"episode": 57, "drop": 0.61, "upper": 0.88, "confirmed": False},
        {"episode": 52, "drop": 0.21, "upper": 0.46, "confirmed": True},
    ]
    guarantee = {
        "max_drop": max_drop,
        "confidence": 0.8,
        "images": 2500,
        "confirmed": confirmed,
        "drop": 0.21 if confirmed else 0.61,
        "upper": 0.46 if confirmed else 0.88,
        "trials": trials if confirmed else trials[:1],
    }
    run.write_json(
        "summary.json",
        {key: CONFIG[key] for key in ("amc_version", "model", "data", "agent", "seed")}
        | {"budget": "none", "method": "fine-grained", "episodes": 60, "seconds": 80.1}
        | {"reward": "smallest within max_drop" if max_drop else "r_params"}
        | {
            "dense": DENSE | {"size": 1_084_312},
            "slim": SLIM | {"size": 402_117, "params": 80_000},
            "baselines": {"uniform": {"score": 0.8721, "params": 150_000, "median": 0.83, "episodes": 10}},
            "groups": [{"name": name, "size": size, "kept": size // 3} for name, size in layers.items()],
            "locked": [{"name": "fc", "reason": "locked by --lock"}],
            "warnings": ["few calibration samples: layer <fc> has 64 inputs and only 32 samples"],
            "environment": {"machine": "x86_64", "cores": 2, "python": "3.11.7", "torch": "2.13.0"},
        }
        | ({"guarantee": guarantee} if max_drop else {}),
    )
    run.write_bytes("model.safetensors", b"")
    return run


FRACTIONS = (0.5, 0.35, 0.25, 0.2)


def make_schedule(path: Path, *, finished: int = 4, method: str = "fine-grained") -> RunDir:
    """A schedule of four rounds, the first `finished` of which are done and have their own pages."""
    record = {key: CONFIG[key] for key in ("amc_version", "model", "data", "agent", "seed")}
    record |= {"budget": "params<=20%", "method": method, "schedule": list(FRACTIONS)}
    run = RunDir.create(path, record | {"command": "schedule", "episodes": 100, "tuning": {"epochs": 30}})
    dense = DENSE | {"size": 1_084_312}
    rounds = []
    for number, fraction in list(enumerate(FRACTIONS, start=1))[:finished]:
        make_run(path / f"round-{number}", episodes=30).write_text("report.html", "<p>a round")
        rounds.append(
            {"fraction": fraction, "run": f"round-{number}", "macs": round(DENSE["macs"] * (fraction + 0.05))}
            | {"params": round(DENSE["params"] * fraction), "size": round(1_120_000 * fraction)}
            | {"score": 0.88 - 0.03 * number, "score_finetuned": 0.886 - 0.004 * number}
            | {"test": 0.87 - 0.03 * number, "test_finetuned": 0.88 - 0.004 * number}
        )
    if rounds:
        environment = {"machine": "x86_64", "cores": 2, "torch": "2.13.0"}
        run.write_json("summary.json", record | {"dense": dense, "rounds": rounds, "environment": environment})
    return run
