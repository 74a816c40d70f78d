"""How near agents come to the optimum: every agent on toy problems whose optimum is known.

    python benchmarks/search_toys.py
    python benchmarks/search_toys.py --agents cma ddpg:elite_fraction=0 --images 2000 --seeds 5

The toys (tests/search/landscapes.py) score in microseconds, so that many seeds can be compared. Their scores are exact
or sampled on a number of images. An agent's options follow its name. The results go to benchmarks/results/toys.json
after every search; a second call measures what is missing, `--again` repeats the agents that it names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amc.run.provenance import environment
from amc.search import AGENTS, Agent, EpisodeRecord, EpisodeTiming, SearchTask, create_agent, search
from amc.search.judging import Batched
from common import Record, load, machine, plain_parser, save, table
from tests.search.landscapes import TOYS, Sampled
from tests.search.optima import optimum

RESULT = "toys.json"
REFERENCE = "random"  # the agent whose best policy is a share of 0
VARIANTS = ["ddpg:elite_fraction=0"]  # the actor alone, never around the best
COMPARED = [*(name for name in AGENTS if name not in ("shallow", "deep")), *VARIANTS]
IMAGES = (0, 2000, 500)  # 0: the true score


@dataclass(frozen=True)
class Case:
    """One search."""

    toy: str
    images: int  # on which the scores are sampled; 0: none, the scores are exact
    agent: str  # a name, or name:option=value,…
    seed: int  # of the agent and of the toy

    def __str__(self) -> str:
        return f"{self.toy} | {self.images} | {self.agent} | {self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        toy, images, agent, seed = text.split(" | ")
        return cls(toy, int(images), agent, int(seed))


@dataclass(frozen=True)
class Outcome:
    """The true scores that a search reached, and what it took."""

    scores: tuple[float, ...]  # of the best policy after a quarter, a half and all of the episodes
    optimum: float  # of the toy
    seconds: float  # CPU

    def __str__(self) -> str:
        return " ".join(f"{value:.5f}" for value in (*self.scores, self.optimum)) + f" {self.seconds:.2f}"

    @classmethod
    def parse(cls, text: str) -> Outcome:
        *scores, best, seconds = map(float, text.split())
        return cls(tuple(scores), best, seconds)


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--agents", nargs="+", default=COMPARED, help="names, or NAME:OPTION=VALUE,…")
    parser.add_argument("--toys", nargs="+", default=list(TOYS), choices=list(TOYS), metavar="TOY")
    parser.add_argument("--images", nargs="+", type=int, default=list(IMAGES), help="0: exact scores")
    parser.add_argument("--again", action="store_true", help="repeat what is already measured of these agents")
    return parser


def measure(args: argparse.Namespace) -> Record:
    """Run the searches that are missing, in the order of their seeds."""
    torch.set_num_threads(1)
    record = load(RESULT)
    if record.get("episodes") != args.episodes:
        record = {"episodes": args.episodes, "runs": {}}
    agents = list(dict.fromkeys([REFERENCE, *args.agents]))
    cases = [
        Case(toy, images, agent, seed)
        for seed, toy, images, agent in itertools.product(range(args.seeds), args.toys, args.images, agents)
    ]
    for case in cases:
        if str(case) not in record["runs"] or (args.again and case.agent in args.agents):
            record["runs"][str(case)] = str(searched(case, args.episodes))
            record["environment"] = environment()
            save(RESULT, record)
    return record


def searched(case: Case, episodes: int, batch: int = 1) -> Outcome:
    """Run one search."""
    landscape = TOYS[case.toy](case.seed)
    sampled = Sampled(landscape, case.images, case.seed) if case.images else None
    began = time.process_time()
    name, chosen = agent_of(case.agent)
    seed = case.seed + 1000 * (name == REFERENCE)  # other policies than those of an agent's warm-up
    dense = sampled.dense if sampled else landscape.top
    agent = create_agent(name, SearchTask(landscape.problem, episodes, seed, dense_score=dense), chosen)
    records: list[EpisodeRecord] = []
    scores: list[float] = []

    def on_episode(record: EpisodeRecord, _: EpisodeTiming) -> None:
        records.append(record)
        scores.extend(landscape(returned(records, agent)) for count in points(episodes) if count == len(records))

    score = Batched(sampled or landscape, batch)
    search(landscape.problem, score, agent, episodes=episodes, seed=seed, on_episode=on_episode)
    missing = len(points(episodes)) - len(scores)  # of an agent that proposes few policies
    scores += [landscape(returned(records, agent))] * missing
    return Outcome(tuple(scores), optimum(landscape), time.process_time() - began)


def returned(records: Sequence[EpisodeRecord], agent: Agent) -> tuple[int, ...]:
    """The policy that a search would return after these episodes: the best score, as the agent estimates it."""
    estimates = agent.estimates()
    scores = {r.keep: estimates.get(r.keep, r.score) for r in reversed(records) if r.score is not None}
    return max(reversed(scores), key=scores.__getitem__)  # of equal ones the earliest


def agent_of(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of `name:option=value,…`; the values are written as in JSON."""
    name, _, rest = text.partition(":")
    pairs = (pair.partition("=") for pair in rest.split(",") if pair)
    return name, {option: json.loads(value) for option, _, value in pairs}


def points(episodes: int) -> list[int]:
    """The numbers of scored policies after which searches are compared."""
    return [max(1, episodes // 4), max(1, episodes // 2), episodes]


def section(record: Record) -> str:
    counts = points(record["episodes"])
    parts = [
        "## How near agents come to the optimum\n\n`python benchmarks/search_toys.py`: toys at 50% of the MACs whose "
        "optimum is known: additive ones, ones with interactions between neighbours, with layers that collapse below a "
        "width, and with groups that must agree. A cell is the share of the gap between the best of "
        f"{counts[-1]} random policies and the optimum, in percent, that is closed after {counts[0]}, {counts[1]} and "
        f"{counts[2]} scored policies: by the true score of the policy that the search would return, in the median "
        "over the seeds. A negative share is worse than the random policies.\n"
    ]
    found = {Case.parse(text): Outcome.parse(values) for text, values in record["runs"].items()}
    for images in IMAGES:
        here = {case: outcome for case, outcome in found.items() if case.images == images}
        if here:
            parts += [f"\n{title(images)}\n\n", shares_table(here)]
    return "".join(parts) + machine(record)


def title(images: int) -> str:
    return f"Scores sampled on {images:,} images:" if images else "Exact scores:"


def shares_table(found: dict[Case, Outcome]) -> str:
    """A row for each agent, a column for each toy; each cell has the shares at the three points."""
    toys = [toy for toy in TOYS if any(case.toy == toy for case in found)]
    agents = sorted({case.agent for case in found}, key=place_of)
    rows = []
    for agent in agents:
        mine = {case: outcome for case, outcome in found.items() if case.agent == agent}
        seeds = {sum(case.toy == toy for case in mine) for toy in toys}
        seconds = statistics.median(outcome.seconds for outcome in mine.values())
        cells = [cell(list(shares(found, toy, agent))) for toy in toys]
        rows.append([agent, *cells, "-".join(map(str, sorted(seeds))), f"{seconds:.1f}"])
    return table(["agent", *toys, "seeds", "CPU s a search"], rows)


def place_of(agent: str) -> tuple[int, str]:
    """The order of `AGENTS`; variants with options follow their agent."""
    name = agent_of(agent)[0]
    return (AGENTS.index(name) if name in AGENTS else len(AGENTS), agent)


def shares(found: dict[Case, Outcome], toy: str, agent: str) -> Iterator[list[float]]:
    """Of every seed: the closed share of the gap at each point."""
    for case, outcome in found.items():
        if (case.toy, case.agent) == (toy, agent):
            start = found[Case(toy, case.images, REFERENCE, case.seed)].scores[-1]
            gap = max(outcome.optimum - start, 1e-9)  # nothing is left to gain if random policies found the optimum
            yield [(score - start) / gap for score in outcome.scores]


def cell(rows: Sequence[Sequence[float]]) -> str:
    return " / ".join(f"{100 * statistics.median(column):.0f}" for column in zip(*rows, strict=True))


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
