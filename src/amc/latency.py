"""Latency as a cost of the search, and the end of a search that has it: what counts is the network measured whole.

A table predicts (`amc.deploy.table`), the search is bounded by the prediction, and here the best policies are timed in
alternation with the dense network. If none of them holds the budget as measured, their neighbourhood is searched
again with the prediction put right by what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from amc.config import SearchConfig
from amc.deploy.measure import MeasureSettings
from amc.deploy.table import Bench, Latency, NoiseError, Place, bench_networks, obtain, open_bench
from amc.errors import AmcError, BudgetError, EvaluationError
from amc.judging import Score
from amc.methods import Method
from amc.search import Bounds, Budget, Decision, EpisodeRecord, Metric, Problem, RewardFunction, judged, roll_out
from amc.search.environment import Observation
from amc.search.problem import FloatArray
from amc.search.surface import Surface
from amc.structure import Structure

TABLE = "latency-table.json"  # in a run's directory
DEFAULT_RUNTIME = "onnxruntime"
ALIGN = 8  # channels; other widths are as slow as the next multiple or slower, as runtimes leave their fast path
NARROW = 4  # the same for widths below

# Where files and buffers come to lie in memory changes a ratio by about 1% from one process to the next.
GUARD = 0.05  # share of the limit that is left free, half of it as measured, so that it also holds another day
FULL = 0.945  # share of the rest that a policy should use; one below leaves accuracy lying
_TOGETHER = 3  # policies measured at a time, beside the dense network
_ROUNDS = 4  # of measuring, and of searching the neighbourhood between them
_FRESH = 6  # neighbours scored in a round
_PARENTS = 4  # policies whose neighbours they are
_JITTER = 0.06  # of a group, that a neighbour is away from its parent
_SETTINGS = MeasureSettings(rounds=15, warmup=3, round_seconds=0.05, precision=0.03, max_seconds=20.0)


class Build(Protocol):
    """Keep counts -> the sliced network."""

    def __call__(self, keep_counts: Sequence[int], /) -> nn.Module: ...


def bench_of(config: SearchConfig) -> Bench:
    """What times networks for this search."""
    token = None if config.token_file is None else Path(config.token_file)
    runtime = config.runtime or DEFAULT_RUNTIME
    return open_bench(runtime, threads=config.latency_threads, device_url=config.device_url, token_file=token)


def aligned(decisions: Sequence[Decision], round_to: int | None) -> tuple[Decision, ...]:
    """The same decisions without the keep counts that runtimes handle badly, unless the user chose the rounding."""
    if round_to is not None:
        return tuple(decisions)
    found = []
    for decision in decisions:
        kept = tuple(count for count in decision.choices if _likes(count) or count == decision.size)
        found.append(replace(decision, choices=kept))
    return tuple(found)


def _likes(count: int) -> bool:
    return count % (ALIGN if count > ALIGN else NARROW) == 0


def latency_of(
    model: nn.Module,
    structure: Structure,
    example_input: Any,
    method: Method,
    decisions: Sequence[Decision],
    config: SearchConfig,
    *,
    stored: Path | None,
    said: Callable[[str], None],
) -> Latency:
    """The network's latency table: that of the run being resumed (`stored`), from the cache, or measured now."""
    bench = bench_of(config)
    choices = [decision.choices for decision in decisions]
    build = method.builder(None).build

    def check(dense_ms: float, least_ms: float) -> None:
        for budget in config.budgets:
            if budget.metric is Metric.LATENCY:
                _check_reachable(budget, dense_ms, least_ms, bench.place)

    found = obtain(model, structure, example_input, choices, build, bench, stored=stored, check=check, said=said)
    check(found.dense_ms, float(found.cost(np.array([options[0] for options in choices]))))
    return found


def _check_reachable(budget: Budget, dense_ms: float, least_ms: float, place: Place) -> None:
    """BudgetError, with what is reachable, for a limit below what stays when everything prunable is at its least."""
    if budget.absolute is not None and budget.absolute > dense_ms:
        raise BudgetError(
            f"budget {budget} is above the dense network's {dense_ms:.3g} ms on {place}: it asks for nothing; lower it "
            "or leave it out"
        )
    if least_ms > limit_ms(budget, dense_ms):
        raise BudgetError(
            f"budget {budget} cannot be reached: even at the largest sparsity of every group the network takes "
            f"{least_ms:.3g} of {dense_ms:.3g} ms on {place}; raise the budget to "
            f"{np.ceil(1000 * least_ms / dense_ms / (1 - GUARD)) / 10:g}% ({least_ms / (1 - GUARD):.3g} ms) or more"
        )


def limit_ms(budget: Budget, dense_ms: float) -> float:
    """What the search may use up of a latency budget, by the table: the limit less the guard."""
    return budget.limit(dense_ms) * (1 - GUARD)


def guarded(budgets: Sequence[Budget], latency: Latency) -> tuple[Budget, ...]:
    """The budgets as the search is bounded by them."""
    return tuple(
        Budget(Metric.LATENCY, absolute=limit_ms(budget, latency.dense_ms))
        if budget.metric is Metric.LATENCY
        else budget
        for budget in budgets
    )


@dataclass(frozen=True)
class Trial:
    """A policy measured as a whole, in alternation with the dense network."""

    record: EpisodeRecord
    predicted_ms: float  # by the table
    latency_ms: float
    dense_ms: float  # in the same rounds
    uncertainty: float  # of the share
    steady: bool  # as precise as claimed

    @property
    def share(self) -> float:
        """Of the dense network's latency."""
        return self.latency_ms / self.dense_ms

    def used(self, budget: Budget | None) -> float:
        """How much of the budget: at most 1 holds. What is not steady counts with its uncertainty."""
        if budget is None:
            return 1.0
        doubt = 0.0 if self.steady else self.uncertainty
        if budget.fraction is not None:
            return (self.share + doubt) / budget.fraction
        assert budget.absolute is not None
        return (self.latency_ms + doubt * self.dense_ms) / budget.absolute


@dataclass(frozen=True)
class Settled:
    """The policy that is taken, and everything that was measured for it."""

    chosen: Trial
    trials: tuple[Trial, ...]
    scored: int  # policies that were scored beside those of the search
    machine: Mapping[str, Any]
    seconds: float  # that measuring and scoring them took


@dataclass
class Judge:
    """The end of a search with a latency among its costs."""

    latency: Latency
    problem: Problem
    budget: Budget | None  # as the user gave it; None: whatever latency the chosen policy has
    example_input: Any
    build: Build
    score: Score
    reward: RewardFunction
    seed: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng([self.seed, 1])
        self._trials: dict[tuple[int, ...], Trial] = {}
        self._machine: Mapping[str, Any] = {}
        self._scored = 0
        self._began = time.perf_counter()

    def settle(self, found: Sequence[EpisodeRecord]) -> Settled:
        """The policy with the best reward that holds the budget as measured, out of `found` and their neighbours.

        Raises NoiseError where the machine does not let it be decided, BudgetError where nothing holds.
        """
        pool = {record.keep: record for record in found if record.reward is not None}
        for attempt in range(_ROUNDS):
            if attempt:
                pool |= {record.keep: record for record in self._neighbours(pool)}
            self._measure(self._next(pool))
            chosen = self._chosen(least=FULL if attempt + 1 < _ROUNDS else 0.0)
            if chosen is not None:
                return self._settled(chosen)
        raise self._failure()

    def only(self, record: EpisodeRecord) -> Settled:
        """That policy, measured: where something else has already chosen it."""
        self._measure([record])
        return self._settled(self._trials[record.keep])

    def _settled(self, chosen: Trial) -> Settled:
        seconds = time.perf_counter() - self._began
        return Settled(chosen, tuple(self._trials.values()), self._scored, self._machine, seconds)

    @property
    def _ratio(self) -> float:
        """Measured over predicted, around the budget."""
        found = [trial.share * self.latency.dense_ms / trial.predicted_ms for trial in self._trials.values()]
        return float(np.median(found)) if found else 1.0

    def _next(self, pool: Mapping[tuple[int, ...], EpisodeRecord]) -> list[EpisodeRecord]:
        """The policies to measure now: the best rewards among those that should hold by what is known."""
        limit = self._aim
        fresh = [record for keep, record in pool.items() if keep not in self._trials]
        fits = [record for record in fresh if record.cost[Metric.LATENCY] <= limit * (1 + 1e-9)]
        best = sorted(fits, key=lambda record: (-(record.reward or 0.0), record.episode))
        return best[: 1 if self.budget is None else _TOGETHER]

    @property
    def _aim(self) -> float:
        """The latency by the table at which a policy should just hold, by what was measured so far."""
        if self.budget is None:
            return float("inf")
        doubts = [trial.uncertainty for trial in self._trials.values() if not trial.steady]
        doubt = max(doubts, default=0.0) * self.latency.dense_ms
        return max(0.0, limit_ms(self.budget, self.latency.dense_ms) - doubt) / self._ratio

    def _chosen(self, *, least: float) -> Trial | None:
        """The best reward that holds and uses at least so much of the budget; None if there is none."""
        guard = 1 - GUARD / 2
        holding = [
            t for t in self._trials.values() if least <= t.used(self.budget) / (guard if self.budget else 1) <= 1
        ]
        return max(holding, key=lambda trial: trial.record.reward or 0.0, default=None)

    def _measure(self, records: Sequence[EpisodeRecord]) -> None:
        """Time these policies beside the dense network."""
        if not records:
            return
        networks = {"dense": self.build(self.problem.dense.tolist())}
        networks |= {str(index): self.build(record.keep) for index, record in enumerate(records)}
        measured = bench_networks(self.latency.bench, networks, self.example_input, _SETTINGS)
        self._machine = measured["machine"]
        dense = measured["networks"]["dense"]
        for index, record in enumerate(records):
            entry = measured["networks"][str(index)]
            self._trials[record.keep] = Trial(
                record=record,
                predicted_ms=self.problem.cost(Metric.LATENCY, record.keep),
                latency_ms=float(entry["latency_ms"]),
                dense_ms=float(dense["latency_ms"]),
                uncertainty=float(entry["uncertainty"]),
                steady=bool(measured["steady"]),
            )

    def _neighbours(self, pool: Mapping[tuple[int, ...], EpisodeRecord]) -> Iterator[EpisodeRecord]:
        """Policies near the best ones, shifted to where the budget is by what was measured, and scored."""
        assert self.budget is not None
        target = max(self._aim, self.problem.cost(Metric.LATENCY, self.problem.least))
        others = tuple(budget for budget in self.problem.budgets if budget.metric is not Metric.LATENCY)
        dense = self.problem.cost(Metric.LATENCY, self.problem.dense)
        limit = Budget(Metric.LATENCY, absolute=min(target, dense))
        problem = Problem(self.problem.decisions, self.problem.costs, (limit, *others))
        surface, bounds = Surface(problem), Bounds(problem)
        parents = sorted(pool.values(), key=lambda record: -(record.reward or 0.0))[:_PARENTS]
        known = set(pool)
        for index in range(_FRESH):
            parent = np.array(parents[index % len(parents)].keep) / self.problem.dense
            jitter = _JITTER * (index >= len(parents)) * self._generator.uniform(-1, 1, len(parent))
            keep = _landed(problem, surface, bounds, parent + jitter)
            if keep not in known:
                known.add(keep)
                record = self._scored_record(keep, max(r.episode for r in pool.values()) + 1 + self._scored)
                if record is not None:
                    yield record

    def _scored_record(self, keep: tuple[int, ...], number: int) -> EpisodeRecord | None:
        """A policy with its score; None where it fails, as an episode of the search may: there are others."""
        self._scored += 1
        record = judged(self.problem, self.score, self.reward, keep, number)
        return None if record.error else record

    def _failure(self) -> AmcError:
        trials = list(self._trials.values())
        if not trials:
            return EvaluationError("no policy with a score is left to measure; score other policies: change the seed")
        nearest = min(trials, key=lambda trial: trial.used(self.budget))
        noisy = [trial for trial in trials if not trial.steady]
        if noisy:
            doubt = max(trial.uncertainty / trial.share for trial in noisy)
            return NoiseError(
                f"this machine is too noisy to decide whether {self.budget} holds: their ratios are uncertain by "
                f"{doubt:.0%}; let nothing else run and resume, or use --device-url"
            )
        return BudgetError(
            f"none of {len(trials)} policies holds {self.budget} as measured; the nearest takes "
            f"{nearest.latency_ms:.3g} of {nearest.dense_ms:.3g} ms ({nearest.share:.1%}): raise the budget or resume"
        )


def _landed(problem: Problem, surface: Surface, bounds: Bounds, wish: FloatArray) -> tuple[int, ...]:
    """Keep counts near the wished fractions [groups], on the budget's surface."""
    plan = iter((1.0 - surface.land(wish)).tolist())

    def act(_: Observation) -> float:
        return float(next(plan))

    return roll_out(problem, bounds, act).keep_counts
