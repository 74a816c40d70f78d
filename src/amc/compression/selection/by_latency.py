"""The end of a search that has a latency among its costs: whole networks are timed.

The search was bounded by what a latency table predicts. Here its best policies are timed in alternation with the dense
network. If none of them holds the budget as measured, the predictions are corrected by the measurements, and policies
near the best ones are scored and timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amc.compression.latency import GUARD, limit_ms
from amc.compression.selection.base import Choice
from amc.deploy.measure import MeasureSettings
from amc.deploy.table import Latency, NoiseError, bench_networks
from amc.deploy.table.measuring import Build
from amc.errors import AmcError, BudgetError, EvaluationError
from amc.search import Bounds, Budget, EpisodeRecord, Metric, Problem, RewardFunction, judged, roll_out
from amc.search.environment import Observation
from amc.search.judging import Score
from amc.search.problem import FloatArray
from amc.search.surface import Surface

FULL = 0.945  # least share of the allowed latency that a policy should use; below it, accuracy is given away
_TOGETHER = 3  # policies timed at once, beside the dense network
_ROUNDS = 4  # of timing; between two of them, policies near the best are scored
_FRESH = 6  # policies scored between two rounds
_PARENTS = 4  # policies that the fresh ones are near to
_JITTER = 0.06  # distance of a fresh policy from its parent, as a share of each group
_SETTINGS = MeasureSettings(rounds=15, warmup=3, round_seconds=0.05, precision=0.03, max_seconds=20.0)

Policy = tuple[int, ...]  # keep counts


@dataclass(frozen=True, slots=True)
class LatencyTrial:
    """One policy, timed in alternation with the dense network."""

    record: EpisodeRecord
    predicted_ms: float  # by the table
    latency_ms: float
    dense_ms: float  # in the same rounds
    uncertainty: float  # of `share`
    steady: bool  # whether the timings agree as closely as they should

    @property
    def share(self) -> float:
        """Latency as a share of the dense network's."""
        return self.latency_ms / self.dense_ms

    def used(self, budget: Budget | None) -> float:
        """Share of the budget that the network uses: it holds up to 1. An unsteady timing counts at its upper end."""
        if budget is None:
            return 1.0
        doubt = 0.0 if self.steady else self.uncertainty
        if budget.fraction is not None:
            return (self.share + doubt) / budget.fraction
        assert budget.absolute is not None
        return (self.latency_ms + doubt * self.dense_ms) / budget.absolute

    def to_json(self) -> dict[str, Any]:
        """With latencies in ms."""
        return {
            "dense_ms": self.dense_ms,
            "slim_ms": self.latency_ms,
            "predicted_ms": self.predicted_ms,
            "share": self.share,
            "uncertainty": self.uncertainty,
            "steady": self.steady,
        }


@dataclass(frozen=True)
class ByLatency:
    """Take the policy with the best reward that holds the latency budget as measured."""

    latency: Latency
    problem: Problem
    budget: Budget | None  # as the user gave it; None: any latency holds
    example_input: Any
    build: Build
    score: Score
    reward: RewardFunction
    seed: int = 0

    def choose(self, ranked: Sequence[EpisodeRecord]) -> Choice:
        """The best policy that holds, of `ranked` and, if need be, of policies near them.

        Raises NoiseError where the machine is too noisy to decide, BudgetError where nothing holds.
        """
        timings = _Timings(self, {record.keep: record for record in ranked if record.reward is not None})
        for number in range(_ROUNDS):
            if number:
                timings.score_neighbours()
            timings.measure_next()
            taken = timings.best(least=FULL if number + 1 < _ROUNDS else 0.0)
            if taken is not None:
                return self._choice(taken, timings)
        raise timings.failure()

    def _choice(self, taken: LatencyTrial, timings: _Timings) -> Choice:
        summary = {
            "dense": {"latency": taken.dense_ms},
            "slim": {"latency": taken.latency_ms},
            "latency": self._summary(taken, timings),
        }
        return Choice(taken.record, tuple(timings.trials.values()), True, summary, _warnings(taken))

    def _summary(self, taken: LatencyTrial, timings: _Timings) -> dict[str, Any]:
        """Where and how latency was measured, and how well the table had predicted it."""
        place = self.latency.bench.place
        return {
            "runtime": place.runtime,
            "version": place.version,
            "threads": place.threads,
            "precision": place.precision,
            "device": place.device,
            "machine": dict(timings.machine),
            **taken.to_json(),
            "measured": len(timings.trials),
            "scored_again": timings.scored,
            "seconds": round(time.perf_counter() - timings.began, 1),
            "table": self.latency.summary(),
        }


@dataclass
class _Timings:
    """Timings so far, and what they say of the policies that are not timed yet."""

    setup: ByLatency
    pool: dict[Policy, EpisodeRecord]  # scored policies
    trials: dict[Policy, LatencyTrial] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    scored: int = 0  # policies scored here, beside those of the search

    def __post_init__(self) -> None:
        self.began = time.perf_counter()
        self._generator = np.random.default_rng([self.setup.seed, 1])

    def measure_next(self) -> None:
        """Time the best rewards among the policies that should hold the budget."""
        waiting = [record for keep, record in self.pool.items() if keep not in self.trials]
        fitting = [record for record in waiting if record.cost[Metric.LATENCY] <= self._limit * (1 + 1e-9)]
        fitting.sort(key=lambda record: (-(record.reward or 0.0), record.episode))
        self._measure(fitting[: 1 if self.setup.budget is None else _TOGETHER])

    def best(self, *, least: float) -> LatencyTrial | None:
        """The best reward that holds and uses at least the share `least` of the budget; None if there is none."""
        budget = self.setup.budget
        guard = 1 - GUARD / 2 if budget else 1
        holding = [trial for trial in self.trials.values() if least <= trial.used(budget) / guard <= 1]
        return max(holding, key=lambda trial: trial.record.reward or 0.0, default=None)

    def score_neighbours(self) -> None:
        """Score policies near the best ones, at the latency where the budget is by what was measured."""
        last = max(record.episode for record in self.pool.values())
        parents = sorted(self.pool.values(), key=lambda record: -(record.reward or 0.0))[:_PARENTS]
        for keep in self._neighbours(parents, set(self.pool)):
            self.scored += 1
            number = last + self.scored
            record = judged(self.setup.problem, self.setup.score, self.setup.reward, keep, number)
            if not record.error:  # as an episode of the search may fail: there are others
                self.pool[keep] = record

    def failure(self) -> AmcError:
        """Why no policy can be taken."""
        if not self.trials:
            return EvaluationError("no policy with a score is left to measure; score other policies: change the seed")
        budget, trials = self.setup.budget, list(self.trials.values())
        nearest = min(trials, key=lambda trial: trial.used(budget))
        unsteady = [trial for trial in trials if not trial.steady]
        if unsteady:
            doubt = max(trial.uncertainty / trial.share for trial in unsteady)
            return NoiseError(
                f"this machine is too noisy to decide whether {budget} holds: their ratios are uncertain by "
                f"{doubt:.0%}; let nothing else run and resume, or use --device-url"
            )
        return BudgetError(
            f"none of {len(trials)} policies holds {budget} as measured; the nearest takes "
            f"{nearest.latency_ms:.3g} of {nearest.dense_ms:.3g} ms ({nearest.share:.1%}): raise the budget or resume"
        )

    @property
    def _limit(self) -> float:
        """The predicted latency, in ms, up to which a policy should hold by what was measured so far."""
        budget, dense_ms = self.setup.budget, self.setup.latency.dense_ms
        if budget is None:
            return float("inf")
        doubts = [trial.uncertainty for trial in self.trials.values() if not trial.steady]
        return max(0.0, limit_ms(budget, dense_ms) - max(doubts, default=0.0) * dense_ms) / self._correction

    @property
    def _correction(self) -> float:
        """Measured latency over predicted latency, around the budget."""
        dense_ms = self.setup.latency.dense_ms
        ratios = [trial.share * dense_ms / trial.predicted_ms for trial in self.trials.values()]
        return float(np.median(ratios)) if ratios else 1.0

    def _measure(self, records: Sequence[EpisodeRecord]) -> None:
        """Time these policies beside the dense network."""
        if not records:
            return
        setup = self.setup
        networks = {"dense": setup.build(setup.problem.dense.tolist())}
        networks |= {str(index): setup.build(record.keep) for index, record in enumerate(records)}
        measured = bench_networks(setup.latency.bench, networks, setup.example_input, _SETTINGS)
        self.machine, timed = measured["machine"], measured["networks"]
        for index, record in enumerate(records):
            self.trials[record.keep] = LatencyTrial(
                record=record,
                predicted_ms=setup.problem.cost(Metric.LATENCY, record.keep),
                latency_ms=float(timed[str(index)]["latency_ms"]),
                dense_ms=float(timed["dense"]["latency_ms"]),
                uncertainty=float(timed[str(index)]["uncertainty"]),
                steady=bool(measured["steady"]),
            )

    def _neighbours(self, parents: Sequence[EpisodeRecord], known: set[Policy]) -> Iterator[Policy]:
        """New policies near `parents`, moved to the corrected limit."""
        problem = self._corrected_problem()
        surface, bounds = Surface(problem), Bounds(problem)
        for index in range(_FRESH):
            parent = np.array(parents[index % len(parents)].keep) / problem.dense
            jitter = _JITTER * (index >= len(parents)) * self._generator.uniform(-1, 1, len(parent))
            keep = _projected(problem, surface, bounds, parent + jitter)
            if keep not in known:
                known.add(keep)
                yield keep

    def _corrected_problem(self) -> Problem:
        """The search problem with the latency limit that the measurements lead to."""
        problem = self.setup.problem
        least, dense = (problem.cost(Metric.LATENCY, keep) for keep in (problem.least, problem.dense))
        limit = Budget(Metric.LATENCY, absolute=min(max(self._limit, least), dense))
        others = tuple(budget for budget in problem.budgets if budget.metric is not Metric.LATENCY)
        return Problem(problem.decisions, problem.costs, (limit, *others))


def _projected(problem: Problem, surface: Surface, bounds: Bounds, requested: FloatArray) -> Policy:
    """Keep counts near the requested keep fractions [groups], on the budget's surface."""
    sparsities = iter((1.0 - surface.project(requested)).tolist())

    def act(_: Observation) -> float:
        return float(next(sparsities))

    return roll_out(problem, bounds, act).keep_counts


def _warnings(taken: LatencyTrial) -> tuple[str, ...]:
    if taken.steady:
        return ()
    doubt = taken.uncertainty / taken.share
    return (f"the machine was too busy for steady latencies: the ratio may be off by {doubt:.0%}",)
