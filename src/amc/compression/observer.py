"""What a job tells while it runs, and who may listen: a log, a progress bar, the caller's own observer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from amc.recovery import EpochRecord, StepRecord
from amc.report.stopping import sentence_of
from amc.search import EpisodeRecord, EpisodeTiming
from amc.structure import Certificate, Structure

LOG = logging.getLogger("amc")
LOG.addHandler(logging.NullHandler())  # a library is silent until its user configures logging


class Observer:
    """Listens to a job, silently. Override what you want to hear.

    `stops` may end a search early; its result is then written as usual. What a method raises ends the job at once:
    after a KeyboardInterrupt a search can be resumed.

    >>> class Enough(amc.Observer):
    ...     def episode(self, agent, record, timing):
    ...         print(agent, record.episode, record.score)
    ...
    ...     def stops(self, agent, record):
    ...         return "good enough" if record.score and record.score > 0.9 else None
    """

    def job_settings(self, job: str, settings: Mapping[str, Any]) -> None:
        """A job begins. `job`: "search", with what config.json has, or "finetune", with the training's settings."""

    def job_part(self, name: str) -> None:
        """What follows belongs to this part of the job: `point-3` of a sweep, `round-1` of a schedule, `candidate-2`.

        `name` is empty where the whole job goes on.
        """

    def stage(self, name: str) -> None:
        """A new stage of the job begins."""

    def stage_step(self, done: int, total: int) -> None:
        """`done` of `total` steps of this stage are finished: batches, or keep sets of the certificate."""

    def structure(self, structure: Structure, certificate: Certificate | None) -> None:
        """The network is analysed."""

    def warning(self, text: str) -> None:
        """The user should know something, though the job goes on."""

    def dense(self, score: float) -> None:
        """The dense network is scored."""

    def plan(self, episodes: Mapping[str, int]) -> None:
        """The search begins, with so many episodes for each agent."""

    def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
        """One more policy is scored, or read from the journal of a search that is resumed.

        `record.stopped` says why this episode is the last one, where that was not planned.
        """

    def stops(self, agent: str, record: EpisodeRecord) -> str | None:
        """Why the search of this agent ends after this new episode; None: it goes on.

        The reason, text of one line, is written to the journal and to summary.json, and shown in the report. Not asked
        before a policy has a score, after the last episode, or of episodes that are read from a journal.
        """

    def training_step(self, step: StepRecord) -> None:
        """One more step of fine-tuning is done."""

    def epoch(self, epoch: EpochRecord, score: float | None) -> None:
        """One more pass over the training data is done; `score`: of the network after it, None if it is not scored."""

    def job_result(self, summary: Mapping[str, Any]) -> None:
        """The job, or a part of it, has its result: `summary` as in summary.json."""

    def close(self) -> None:
        """The job ends, with or without an error."""


class LogObserver(Observer):
    """Writes to the logger `amc`: warnings, stages and scores (INFO), and training steps (DEBUG)."""

    def stage(self, name: str) -> None:
        LOG.info("%s", name)

    def structure(self, structure: Structure, certificate: Certificate | None) -> None:
        LOG.info("%d groups, %.0f%% of the MACs can be pruned", len(structure.groups), 100 * structure.prunable_macs())
        for name, lock in certificate.failed if certificate else ():
            LOG.warning("locked '%s': %s", name, lock)

    def warning(self, text: str) -> None:
        LOG.warning("%s", text)

    def dense(self, score: float) -> None:
        LOG.info("dense network scores %.6g", score)

    def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
        if record.score is None:
            LOG.warning("%s episode %d failed: %s", agent, record.episode, record.error)
        else:
            LOG.info("%s episode %d: score %.6g, reward %.6g", agent, record.episode, record.score, record.reward)
        if record.stopped is not None:
            LOG.info("%s %s", agent, sentence_of(record.stopped.to_json(), record.episode + 1))

    def training_step(self, step: StepRecord) -> None:
        LOG.debug("step %d of %d: loss %.6g, lr %.6g", step.step, step.total_steps, step.loss, step.lr)

    def epoch(self, epoch: EpochRecord, score: float | None) -> None:
        scored = "" if score is None else f", score {score:.6g}"
        LOG.info("epoch %d: loss %.6g%s", epoch.epoch, epoch.loss, scored)


class Together(Observer):
    """Several observers as one: each of them hears everything, in order. The first reason to stop is the answer."""

    def __init__(self, *observers: Observer) -> None:
        for name in (name for name in vars(Observer) if not name.startswith("_")):
            setattr(self, name, partial(_tell, [getattr(observer, name) for observer in observers]))


def _tell(listening: Iterable[Callable[..., Any]], *heard: Any) -> Any:
    answers = [listen(*heard) for listen in listening]
    return next((answer for answer in answers if answer is not None), None)
