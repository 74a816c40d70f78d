"""A policy's score, the expensive step of a search: build the pruned network, set its batch norms, evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from amc.compression.scoring.batchnorm import correct_batchnorm_, reestimate_batchnorm_
from amc.compression.scoring.evaluator import Evaluate, engine_of
from amc.compression.scoring.moments import Moments, match_moments_
from amc.pruning.methods import Builder


@dataclass(frozen=True, slots=True)
class ScoreTiming:
    """Seconds spent on one score; zero for a remembered score."""

    build: float = 0.0  # slicing and refitting
    batch_norm: float = 0.0  # re-estimating statistics
    evaluate: float = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """A policy's score and its timing."""

    score: float
    timing: ScoreTiming


class PolicyScorer:
    """Keep counts -> score, a pure function of the policy.

    `batches` are the calibration batches on which batch-norm statistics are re-estimated; without batches the
    statistics stay. They also stay for the policy `dense`, which keeps everything: training saw more images than
    calibration has. With `norms`, the dense network's statistics on the same batches (`statistics_on`), only what
    pruning changed is added to the statistics of training. With `moments`, those of the dense network on the first of
    the batches, layer norms are set to these. Scores are remembered, because several agents on one
    network ask for the same policies. The engine of `evaluate`, if it has one, re-estimates
    as well.
    """

    def __init__(
        self,
        builder: Builder,
        evaluate: Evaluate,
        batches: Sequence[Any] = (),
        dense: Sequence[int] = (),
        norms: Mapping[str, Tensor] | None = None,
        moments: Moments | None = None,
    ) -> None:
        self.builder, self.evaluate, self.batches, self.dense = builder, evaluate, batches, tuple(dense)
        self.norms, self.moments = norms, moments
        self.engine = engine_of(evaluate)
        self._known: dict[tuple[int, ...], float] = {}

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """The network that is scored, and that the user gets: pruned, refitted, batch norms re-estimated."""
        return self.estimated(self.builder.build(keep_counts), tuple(keep_counts))

    def __call__(self, keep_counts: Sequence[int]) -> float:
        return self.scored(keep_counts).score

    def scored(self, keep_counts: Sequence[int]) -> Scored:
        """The score and its timing. Errors of `evaluate` pass through and are not remembered."""
        policy = tuple(keep_counts)
        if policy in self._known:
            return Scored(self._known[policy], ScoreTiming())
        scored = self._measured(policy)
        self.remember(policy, scored.score)
        return scored

    def remember(self, policy: tuple[int, ...], score: float) -> None:
        """Take a score that was measured elsewhere as this policy's."""
        self._known[policy] = score

    def _measured(self, policy: tuple[int, ...]) -> Scored:
        began = time.perf_counter()
        slim = self.builder.build(policy)
        built = time.perf_counter()
        slim = self.estimated(slim, policy)
        estimated = time.perf_counter()
        score = self.evaluate(slim)
        return Scored(score, ScoreTiming(built - began, estimated - built, time.perf_counter() - estimated))

    def estimated(self, slim: nn.Module, policy: tuple[int, ...]) -> nn.Module:
        """The built network of a policy with the statistics of its batch norms, in place."""
        if not self.batches or policy == self.dense:
            return slim
        if self.moments is not None:
            sliced = (self.builder.sliced(part, policy) for part in (self.moments.mean, self.moments.spread))
            match_moments_(slim, self.batches[0], Moments(*sliced))
        if self.norms is None:
            reestimate_batchnorm_(slim, self.batches, self.engine)
        else:
            correct_batchnorm_(slim, self.batches, self.builder.sliced(self.norms, policy), self.engine)
        return slim
