"""What patience saves, and what it loses: searches on the toy problems of search_toys.py.

    python benchmarks/search_patience.py

Patience changes no proposal, so one search shows where each patience would have ended it. One agent has a model of the
score, which says what to expect; the other has none.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from amc.run.provenance import environment
from amc.search import Agent, EpisodeRecord, EpisodeTiming, SearchTask, StopRules, create_agent, search
from amc.search.agents.base import Setting
from common import Record, load, machine, plain_parser, save, table
from search_toys import returned, title
from tests.search.landscapes import TOYS, Sampled

RESULT = "patience.json"
AGENTS = ("planner", "swaps")
PATIENCE = (10, 20, 40)
UNASKED = "20, the model not asked"
IMAGES = (2000, 0)  # 0: exact scores


@dataclass(frozen=True)
class Asked:
    """What the stop rules see of an agent: its settings, and what it expects, computed once at most."""

    agent: Agent
    with_model: bool

    def settings(self) -> dict[str, Setting]:
        return self.agent.settings()

    @cached_property
    def _gain(self) -> float | None:
        return self.agent.expected_gain()

    def expected_gain(self) -> float | None:
        return self._gain if self.with_model else None


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    return parser


def measure(args: argparse.Namespace) -> Record:
    """Run the searches that are missing, in the order of their seeds."""
    torch.set_num_threads(1)
    record = load(RESULT)
    if record.get("episodes") != args.episodes:
        record = {"episodes": args.episodes, "runs": {}}
    for seed, toy, images, agent in itertools.product(range(args.seeds), TOYS, IMAGES, AGENTS):
        name = f"{toy} | {images} | {agent} | {seed}"
        if name not in record["runs"]:
            record["runs"][name] = searched(toy, images, agent, seed, args.episodes)
            record["environment"] = environment()
            save(RESULT, record)
    return record


def searched(toy: str, images: int, name: str, seed: int, episodes: int) -> dict[str, list[float]]:
    """For every rule, and for none: the number of scored policies, and the true score of the returned policy."""
    landscape = TOYS[toy](seed)
    score = Sampled(landscape, images, seed) if images else landscape
    dense = score.dense if isinstance(score, Sampled) else landscape.top
    agent = create_agent(name, SearchTask(landscape.problem, episodes, seed, dense_score=dense))
    records: list[EpisodeRecord] = []
    ends: dict[str, list[float]] = {}

    def end(rule: str) -> None:
        ends[rule] = [len(records), round(landscape(returned(records, agent)), 5)]

    def on_episode(record: EpisodeRecord, _: EpisodeTiming) -> None:
        records.append(record)
        asked = {True: Asked(agent, with_model=True), False: Asked(agent, with_model=False)}
        for rule, (patience, with_model) in rules().items():
            if rule not in ends and StopRules(patience=patience).stop(records, episodes, asked[with_model]):  # type: ignore[arg-type]
                end(rule)

    search(landscape.problem, score, agent, episodes=episodes, seed=seed, on_episode=on_episode)
    for rule in ("none", *rules()):
        if rule not in ends:
            end(rule)
    return ends


def rules() -> dict[str, tuple[int, bool]]:
    """By name: patience, and whether the agent's model is asked."""
    return {f"{patience}": (patience, True) for patience in PATIENCE} | {UNASKED: (20, False)}


def section(record: Record) -> str:
    parts = [
        "## What patience saves\n\n`python benchmarks/search_patience.py`: searches of "
        f"{record['episodes']} policies on the toys, and where `--patience` ends them. A cell has the scored policies, "
        "and how many points of true score the returned policy has less than that of the whole search: the means over "
        "the seeds, and in brackets the worst seed. `swaps` has no model.\n"
    ]
    for images in IMAGES:
        runs = {name: ends for name, ends in record["runs"].items() if name.split(" | ")[1] == str(images)}
        if runs:
            parts.append(f"\n{title(images)}\n\n{patience_table(runs)}")
    return "".join(parts) + machine(record)


def patience_table(runs: dict[str, dict[str, list[float]]]) -> str:
    """A row for each agent and rule, a column for each toy."""
    toys = [toy for toy in TOYS if any(name.startswith(f"{toy} |") for name in runs)]
    rows = []
    for agent, rule in itertools.product(AGENTS, rules()):
        mine = {name: ends for name, ends in runs.items() if f" | {agent} | " in name}
        if mine and (agent == AGENTS[0] or rule != UNASKED):
            each = [[ends for name, ends in mine.items() if name.startswith(f"{toy} |")] for toy in toys]
            rows.append([f"{agent}, {rule}", *(cell(found, rule) for found in each), cell(list(mine.values()), rule)])
    seeds = len({name.split(" | ")[-1] for name in runs})
    return table(["agent, patience", *toys, f"all toys, {seeds} seeds"], rows)


def cell(found: Sequence[dict[str, list[float]]], rule: str) -> str:
    count = statistics.fmean(ends[rule][0] for ends in found)
    lost = [100 * (ends["none"][1] - ends[rule][1]) for ends in found]
    return f"{count:.0f}: {statistics.fmean(lost):.2f} ({max(lost):.2f})".replace("-", "−")


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
