"""Recovery of the networks of policies on the calibration images, for the finalists and for the result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from amc.compression.job import Job
from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import heard, score_of
from amc.recovery.distillation import Outcome, Plan, Recovery, distill_
from amc.run import files
from amc.run.directory import RunDir
from amc.search import EpisodeRecord
from amc.structure.copying import copy_model

KeepCounts = tuple[int, ...]

SHORT = 1 / 4  # of the length and of the time of a recovery, for each finalist


@dataclass
class Recovering:
    """Policy -> its network, as pruned, and trained towards the dense network's outputs.

    Each network is built once and copied for each use, as a user's function may change what it scores.

    The plan of each training is written to the run before its first step: a run that is resumed trains as long as it
    did before, however fast the machine is now.
    """

    job: Job
    watch: Observer
    run: RunDir | None = None
    built: dict[KeepCounts, nn.Module] = field(default_factory=dict)
    known: dict[KeepCounts, tuple[nn.Module, Recovery | None]] = field(default_factory=dict)

    def __call__(self, keep: KeepCounts) -> tuple[nn.Module, Recovery | None]:
        """The network of a policy, and what was done to it; None where recovery is off, or nothing is pruned."""
        if keep not in self.known:
            self.known[keep] = self._trained(keep, 1.0)
        return self.known[keep]

    def pruned(self, keep: KeepCounts) -> nn.Module:
        """The network of a policy as pruned."""
        if keep not in self.built:
            slim = self.built[keep] = self.job.scorer.build(keep)
            self.job.method.finish_(slim, self.job.example_input)
        return copy_model(self.built[keep])

    def briefly(self, keep: KeepCounts) -> nn.Module | None:
        """The network of a policy after a short recovery; None where recovery is off, or nothing is pruned."""
        slim, recovery = self._trained(keep, SHORT)
        return None if recovery is None else slim

    def refuse(self, keep: KeepCounts, outcome: Outcome, reason: str) -> nn.Module:
        """Take the network of a policy as pruned in place of the recovered one, which is worse for this reason."""
        _, recovery = self.known[keep]
        assert recovery is not None, "nothing was recovered"
        slim = self.pruned(keep)
        self.known[keep] = slim, replace(recovery, outcome=outcome, reason=reason)
        return slim

    def _trained(self, keep: KeepCounts, share: float) -> tuple[nn.Module, Recovery | None]:
        job, slim = self.job, self.pruned(keep)
        if job.config.recover == "none" or keep == tuple(job.problem.dense.tolist()):
            return slim, None
        known = self._known_plan(keep, share)

        def on_plan(plan: Plan) -> None:
            if self.run is not None and known is None:
                self.run.append_jsonl(files.RECOVERY, {"keep": list(keep), "plan": plan.to_json()})

        return slim, distill_(
            slim, copy_model(job.model), job.calibration, classes=job.classes, loss=job.distill_loss,
            masks=job.method.masks(slim), plan=known or Plan(share * job.config.recover_time, share=share),
            seed=job.config.seed, on_plan=on_plan, on_step=self.watch.training_step,
        )  # fmt: skip

    def _known_plan(self, keep: KeepCounts, share: float) -> Plan | None:
        """The plan with which an earlier session began to train this policy."""
        lines = [] if self.run is None else self.run.read_jsonl(files.RECOVERY)
        plans = (Plan.from_json(line["plan"]) for line in lines if tuple(line["keep"]) == keep)
        return next((plan for plan in plans if plan.share == share), None)


@dataclass(frozen=True)
class FinalistMeasurement:
    """The `Measurement` of finalists, on the images that the search never scored, or by the search's own score."""

    recovering: Recovering

    def pruned(self, record: EpisodeRecord) -> float:
        return self._score(self.recovering.pruned(record.keep), "pruned")

    def recovered(self, record: EpisodeRecord, number: int, count: int) -> float | None:
        if self.recovering.job.config.recover != "none":
            self.recovering.watch.stage(f"finalist {number + 1} of {count} (episode {record.episode})")
        network = self.recovering.briefly(record.keep)
        return None if network is None else self._score(network, "recovered")

    def _score(self, network: nn.Module, which: str) -> float:
        job = self.recovering.job
        score = job.confirm or job.scorer.evaluate
        with heard(score, self.recovering.watch.stage_step):
            return score_of(score, network, which)
