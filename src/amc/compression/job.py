"""A search that is ready to run, and the networks of its policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from amc.compression.latency import guarded
from amc.compression.observer import Observer
from amc.compression.part import InWhole
from amc.compression.scoring.evaluator import BesideDense, Evaluator, PairedEvaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.settings import SearchConfig
from amc.deploy.table import Latency
from amc.pruning import Policy
from amc.pruning.methods import Finishing, Method, problem_of
from amc.recovery.distances import CheckedLoss
from amc.search import (
    AgentFactory,
    CostFunction,
    EpisodeRecord,
    Metric,
    Problem,
    RewardFunction,
    rewarded_metric,
)
from amc.structure import Certificate, Structure
from amc.structure.part import Part
from amc.structure.trace import Example

Confirm = PairedEvaluator | BesideDense  # on images that the search never scores


@dataclass(frozen=True)
class Job:
    """A search that is ready to run."""

    model: nn.Module  # what is pruned: the dense network, or its part
    example_input: Any  # for `model`
    config: SearchConfig
    structure: Structure
    certificate: Certificate | None
    method: Method
    problem: Problem
    scorer: PolicyScorer
    dense_score: float
    reward: RewardFunction
    confirm: Confirm | None  # None: there are no other images
    warnings: tuple[str, ...]
    calibration: Sequence[Example] = ()  # batches of the networks' inputs
    latency: Latency | None = None  # if it is among the costs
    origin: Mapping[str, Any] = field(default_factory=dict)  # as in `amc.search.JournalContent`
    distill_loss: CheckedLoss | None = None
    agent: AgentFactory | None = None
    earlier: tuple[EpisodeRecord, ...] = ()  # of a warm start
    in_whole: InWhole | None = None  # if a part of the network is pruned

    def warned(self, warnings: Sequence[str], watch: Observer) -> Job:
        """The job with further warnings; `watch` hears them."""
        for warning in warnings:
            watch.warning(warning)
        return replace(self, warnings=(*self.warnings, *warnings)) if warnings else self

    def at(self, config: SearchConfig) -> Job:
        """The same job under another budget; only `budget` may differ. Raises BudgetError if it cannot be reached."""
        latency, problem = self.latency, self.problem
        budgets = config.budgets if latency is None else guarded(config.budgets, latency)
        measured = {**costs_of(self.in_whole), **({} if latency is None else {Metric.LATENCY: latency.cost})}
        other = problem_of(
            self.method, budgets, rewarded_metric(self.reward), decisions=problem.decisions, measured=measured
        )
        return replace(self, config=config, problem=other)

    @property
    def classes(self) -> bool:
        """Whether the score shows that the outputs of what is pruned are logits of classes."""
        score = self.scorer.evaluate
        evaluator = score.evaluator if isinstance(score, PairedEvaluator) else score
        return isinstance(evaluator, Evaluator) and self.in_whole is None and evaluator.exclusive

    @property
    def part(self) -> Part | None:
        """The part that is pruned; None: the whole network."""
        return None if self.in_whole is None else self.in_whole.part

    @property
    def network(self) -> nn.Module:
        """The whole dense network."""
        return self.model if self.in_whole is None else self.in_whole.part.whole

    @property
    def finishing(self) -> Finishing:
        """What becomes of the whole networks of policies."""
        return self.in_whole or self.method

    @property
    def counts_whole(self) -> bool:
        """Whether the costs are those of the whole network, while a part of it is pruned."""
        return bool(costs_of(self.in_whole))

    def whole(self, slim: nn.Module) -> nn.Module:
        """The whole network of a policy, from what was built."""
        return slim if self.in_whole is None else self.in_whole.part.in_eval(slim)

    def pruned(self, whole: nn.Module) -> nn.Module:
        """What was built of a policy, from its whole network."""
        return whole if self.in_whole is None else self.in_whole.part.of_whole(whole)

    def policy(self, keep: Sequence[int]) -> Policy:
        """What is kept, for the whole network."""
        policy = self.scorer.builder.policy(keep)
        return policy if self.in_whole is None else replace(policy, part=self.in_whole.part.name)


def costs_of(in_whole: InWhole | None) -> Mapping[Metric, CostFunction]:
    """The costs that replace those of the method: of the whole network, if they are to be counted."""
    return {} if in_whole is None else in_whole.costs
