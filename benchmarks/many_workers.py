"""Where a search with 64 and 1,024 workers stops to scale: parts that are measured, and a search computed from them.

    python benchmarks/many_workers.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

Measured are CPU seconds of one thread: of the scores of random policies and of those that the default agent proposes,
and of the agent's proposing and learning while it gets to know more policies, batch by batch. For these, scores come
from the agent's own model of the scored ones. A worker's pipe is measured by the wall clock, with policies whose scores
the worker remembers. Short searches with 1 and 2 workers, in turns, check the simulation (simulated_workers.py).
The results go to benchmarks/results/many-workers-MODEL.json; the section computes the searches of many workers from
them, and takes what a batch costs in quality from batches-*.json (batches.py).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from amc.compression.job import Job
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes
from amc.run.provenance import environment
from amc.search import EpisodeRecord, EpisodeTiming, SearchTask, search
from amc.search.agents.planner import PlannerAgent
from amc.search.environment import Rollout
from amc.search.judging import Batched
from amc.search.planning import Planner
from amc.search.statistics import Measured
from amc.search.stopping import StopRules
from common import Record, load, network_parser, save
from many_workers_section import CHECKED_BATCH, RESULT, quality, section
from score_correlation import random_policies
from workers import forgetful, job_at_half

__all__ = ["RESULT", "main", "measure", "options", "quality", "section"]

Keep = tuple[int, ...]
CHECKED = (1, 2)  # workers of the searches that check the simulation
ROUND = 4  # digits of seconds


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--policies", type=int, default=48, help="that are scored, of each kind")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--episodes", type=int, default=1024, help="of which the agent is timed, or two batches")
    parser.add_argument("--keep", action="store_true", help="the agent's seconds of the record that is there")
    parser.add_argument("--round-trips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="searches with 1 and 2 workers, in turns")
    parser.add_argument("--checked", type=int, default=16, help="policies of each of these")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    job, images = job_at_half(args)
    policies = list(random_policies(job.problem, args.policies, 0))
    record: Record = {
        "model": args.model, "images": images, "groups": len(job.problem.decisions),
        "round_trips": args.round_trips, "pipe": pipe(job, policies[0], args.round_trips),
        "checks": [checked(job, args.checked, w, seed) for seed in range(args.rounds) for w in CHECKED],
    }  # fmt: skip
    agent, proposed = learned(job, args.policies)
    record["scores"] = {"random": random_scores(job, policies), "proposed": proposed}
    record["agent"] = load(RESULT.format(model=args.model)).get("agent", {}) if args.keep else {}
    score = believed(agent, job)
    for batch in args.batches:
        if str(batch) not in record["agent"]:
            record["agent"][str(batch)] = timed_agent(job, score, batch, max(args.episodes, 2 * batch))
            print(batch, record["agent"][str(batch)], flush=True)
    record["environment"] = environment()
    save(RESULT.format(model=args.model), record)
    return record


# The scores


def random_scores(job: Job, policies: Sequence[Keep]) -> list[float]:
    """CPU seconds of every policy's score."""
    job.scorer.engine.forget()
    clocked = Clocked(forgetful(job.scorer))
    for policy in policies:
        clocked(policy)
    return clocked.seconds


def learned(job: Job, policies: int) -> tuple[PlannerAgent, list[float]]:
    """The default agent after a search, and the CPU seconds of the scores of what it proposed."""
    job.scorer.engine.forget()
    agent, clocked = PlannerAgent(task_of(job, policies)), Clocked(forgetful(job.scorer))
    search(job.problem, clocked, agent, episodes=policies, seed=0)
    return agent, clocked.seconds


class Clocked:
    """A score, with the CPU seconds of each call."""

    def __init__(self, score: Callable[[Keep], float]) -> None:
        self._score, self.seconds = score, list[float]()

    def __call__(self, policy: Keep) -> float:
        began = time.process_time()
        score = self._score(policy)
        self.seconds.append(round(time.process_time() - began, ROUND))
        return score


# The agent


def task_of(job: Job, episodes: int, seed: int = 0) -> SearchTask:
    """What the agent knows in a search of this job."""
    errors = job.scorer.builder.errors([decision.choices for decision in job.problem.decisions])
    return SearchTask(job.problem, episodes, seed, dense_score=job.dense_score, errors=errors)


def believed(agent: PlannerAgent, job: Job) -> Callable[[Keep], Measured]:
    """The score that the agent's model expects of any policy, with as much noise as scores have: the same each time."""
    posterior, planner = agent.model.fit(), Planner(job.problem)
    damages = posterior.sample(np.random.default_rng(0), 0.0)
    scored = [record.standard_error for record, _, _ in posterior.expected() if record.standard_error is not None]
    error = statistics.median(scored) if scored else 0.0

    def score(policy: Keep) -> Measured:
        noise = error * np.random.default_rng(list(policy)).standard_normal()
        expected = posterior.score_of(planner.damage(damages, np.array(policy)))
        return Measured(float(expected) + noise, error)

    return score


class TimedAgent(PlannerAgent):
    """The default agent, with the seconds of learning from each record."""

    def __init__(self, task: SearchTask, clock: Callable[[], float]) -> None:
        super().__init__(task)
        self._clock, self.seconds = clock, list[float]()

    def end_episode(self, rollout: Rollout, record: EpisodeRecord) -> None:
        began = self._clock()
        super().end_episode(rollout, record)
        self.seconds.append(self._clock() - began)


@dataclass(frozen=True)
class Driven:
    """The driver's seconds in every episode of a search, each [episodes]."""

    propose: list[float]
    learn: list[float]


def driven(job: Job, score: Batched, episodes: int, seed: int, clock: Callable[[], float]) -> Driven:
    """Run a search, and read the clock around proposing and learning. The first of a batch has the model's fit."""
    agent, both = TimedAgent(task_of(job, episodes, seed), clock), list[float]()

    def on_episode(_: EpisodeRecord, timing: EpisodeTiming) -> None:
        both.append(timing.agent)

    search(job.problem, score, agent, episodes=episodes, seed=seed, on_episode=on_episode, rules=StopRules(clock=clock))
    return Driven([total - own for total, own in zip(both, agent.seconds, strict=True)], agent.seconds)


def timed_agent(job: Job, score: Callable[[Keep], float], batch: int, episodes: int) -> Record:
    """CPU seconds of proposing and learning, a policy: means from each number of known policies to the next.

    These are 0, the batch, and twice and four times as many, and so on: each batch is whole.
    """
    found = driven(job, Batched(score, batch), episodes, 0, time.process_time)
    edges = [0, *(batch << power for power in range(32) if batch << power < episodes), episodes]
    ranges = [slice(*pair) for pair in itertools.pairwise(edges)]
    return {
        "known": edges[:-1],
        "propose": [round(statistics.fmean(found.propose[part]), 6) for part in ranges],
        "learn": [round(statistics.fmean(found.learn[part]), 6) for part in ranges],
    }


# The workers


def pipe(job: Job, policy: Keep, times: int) -> dict[str, float]:
    """Wall seconds until a worker scores, and of its exchange beyond the score; CPU seconds of the driver for it."""
    began = time.perf_counter()
    with Pool(forgetful(job.scorer), Processes(forgetful(job.scorer), 1)) as pool:
        pool.ready()
        started = time.perf_counter()
        pool.scored(policy)  # from now on the worker remembers it
        seconds, driver = [], time.process_time()
        for _ in range(times):
            asked = time.perf_counter()
            pool.scored(policy)
            seconds.append(time.perf_counter() - asked)
        driver = time.process_time() - driver
    tenth = statistics.quantiles(seconds, n=10)[-1]
    return {
        "start": started - began, "exchange": statistics.median(seconds), "slow_exchange": tenth,
        "driver": driver / times,
    }  # fmt: skip


def checked(job: Job, episodes: int, workers: int, seed: int) -> Record:
    """A search with workers by the wall clock: what it took, and the seconds of its parts, as they were in this run."""
    job.scorer.engine.forget()
    scores: list[float] = []
    with Pool(forgetful(job.scorer), Processes(forgetful(job.scorer), workers)) as pool:
        pool.ready()

        def score(policy: Keep) -> float:
            scored = pool.scored(policy)
            timing = scored.timing
            scores.append(timing.build + timing.batch_norm + timing.evaluate)
            return scored.score

        began = time.perf_counter()
        found = driven(job, Batched(score, CHECKED_BATCH, pool.begin), episodes, seed, time.perf_counter)
        seconds = time.perf_counter() - began
    print(workers, "workers:", seconds, flush=True)
    return {
        "workers": workers, "seconds": round(seconds, ROUND), "score": [round(value, ROUND) for value in scores],
        "propose": [round(value, ROUND) for value in found.propose],
        "learn": [round(value, ROUND) for value in found.learn],
    }  # fmt: skip


def main() -> None:
    record = measure(options().parse_args())
    print(section(record) + "\n" + quality([record]))


if __name__ == "__main__":
    main()
