"""The one expensive thing: a policy's score. Build the pruned network, set its batch norms, evaluate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from amc.evaluation import Evaluate, reestimate_batchnorm_
from amc.methods import Builder


@dataclass(frozen=True, slots=True)
class ScoreTiming:
    """Seconds spent on one score."""

    build: float  # slicing and refitting
    batch_norm: float  # re-estimating statistics
    evaluate: float


class PolicyScorer:
    """Keep counts -> score, a pure function of the policy.

    `batches` are calibration batches (`amc.batches`) on which batch-norm statistics are re-estimated (none: they
    stay). They stay too for the policy `dense`, which keeps everything: a few images know less of them than training
    did. Scores are remembered, as several agents on one network ask for the same policies. `timing` is that of the
    last call, zero if the score was remembered.
    """

    def __init__(
        self, builder: Builder, evaluate: Evaluate, batches: Sequence[Any] = (), dense: Sequence[int] = ()
    ) -> None:
        self.builder, self.evaluate, self.batches, self.dense = builder, evaluate, batches, tuple(dense)
        self.timing = ScoreTiming(0.0, 0.0, 0.0)
        self._known: dict[tuple[int, ...], float] = {}

    def build(self, keep_counts: Sequence[int]) -> nn.Module:
        """The network that is scored, and that the user gets: pruned, refitted, batch norms re-estimated."""
        return self._settle(self.builder.build(keep_counts), tuple(keep_counts))

    def __call__(self, keep_counts: Sequence[int]) -> float:
        self.timing = ScoreTiming(0.0, 0.0, 0.0)
        policy = tuple(keep_counts)
        if policy not in self._known:
            self._known[policy] = self._measured(policy)
        return self._known[policy]

    def _measured(self, keep_counts: tuple[int, ...]) -> float:
        began = time.perf_counter()
        slim = self.builder.build(keep_counts)
        built = time.perf_counter()
        slim = self._settle(slim, keep_counts)
        settled = time.perf_counter()
        score = self.evaluate(slim)
        self.timing = ScoreTiming(built - began, settled - built, time.perf_counter() - settled)
        return score

    def _settle(self, slim: nn.Module, keep_counts: tuple[int, ...]) -> nn.Module:
        if self.batches and keep_counts != self.dense:
            reestimate_batchnorm_(slim, self.batches)
        return slim
