"""Several of the search's best policies, fine-tuned briefly; the best of them is taken on.

The search score ranks the best policies poorly: after fine-tuning another one is often better. Which one, is decided
on the search split, as everything in a run but the final figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from amc import rundir
from amc.errors import EvaluationError, RunError
from amc.job import Job, prepare
from amc.jobs.origin import BATCH, evaluate_of, network_of
from amc.jobs.progress import Progress
from amc.recovery import DivergenceError
from amc.rundir import RunDir
from amc.search import EpisodeRecord, Outcome, read_journal, rewarded
from amc.settings import Source
from amc.stored import settings_of
from amc.verify import Recorded, check_record, confirmed
from amc.zoo import DataSplits

Trained = Callable[[Job, nn.Module, int], float]  # trains the candidate of this number in place and scores it


def best_policies(run: RunDir, count: int) -> tuple[EpisodeRecord, ...]:
    """The `count` distinct policies of the journal with the best reward, best first; of equal ones the earlier."""
    run.verify(rundir.JOURNAL)
    _, records = read_journal(run.file(rundir.JOURNAL))
    scored = [record for record in records if record.reward is not None]
    scored.sort(key=lambda record: (-(record.reward or 0.0), record.episode))
    distinct: dict[tuple[int, ...], EpisodeRecord] = {}
    for record in scored:
        distinct.setdefault(record.keep, record)
    if not distinct:
        raise RunError(f"'{run.path}' has no scored policy to choose from; search again")
    return tuple(distinct.values())[:count]


def ready(run: RunDir, source: Source, data: DataSplits, progress: Progress) -> Job:
    """The search's means to build any policy; RunError where candidates would break what the run promises."""
    settings = settings_of(run, run.config())
    if settings.max_drop is not None:
        raise RunError(
            f"'{run.path}' was searched with max-drop, and only its own result is confirmed to hold it; "
            "leave out candidates"
        )
    if settings.times_latency:
        raise RunError(
            f"'{run.path}' was searched with a latency, which is measured on its own result alone; leave out candidates"
        )
    progress.stage("candidates")
    return prepare(
        network_of(source, run.path),
        torch.zeros(1, *data.input_shape),
        data.calibration.batches(BATCH),
        evaluate_of(source, data),
        settings,
    )


def checked(run: RunDir, job: Job, record: EpisodeRecord, progress: Progress) -> EpisodeRecord:
    """A policy of the journal, with the score that its network has now; RunError where the journal was changed."""
    journal = run.file(rundir.JOURNAL)
    check_record(journal, record, job)
    record, told = confirmed(job, record, job.scorer.build(record.keep), Recorded.at([journal]))
    for warning in told:
        progress.warning(warning)
    return record


def measure(job: Job, record: EpisodeRecord, number: int, trained: Trained) -> dict[str, Any]:
    """One candidate's line of the summary: without a tuned score, and with an `error`, where it fails."""
    assert record.score is not None
    entry = {"episode": record.episode, "keep": list(record.keep), "score": record.score}
    problem = job.problem
    costs, dense = problem.policy_costs(record.keep), problem.policy_costs(problem.dense.tolist())
    try:
        tuned = trained(job, job.scorer.build(record.keep), number)
        reward = rewarded(job.reward, Outcome(tuned, costs, dense))
    except (DivergenceError, EvaluationError) as error:  # as an episode of the search may fail: there are others
        return {**entry, "score_tuned": None, "reward_tuned": None, "error": str(error)}
    return {**entry, "score_tuned": tuned, "reward_tuned": reward}


def best_of(measured: Sequence[dict[str, Any]]) -> int:
    """The candidate with the best reward once tuned; of equal ones the one that the search liked better.

    Raises RunError if every one failed.
    """
    if all(entry["reward_tuned"] is None for entry in measured):
        raise RunError(f"none of {len(measured)} candidates could be fine-tuned, the last: {measured[-1].get('error')}")

    def worth(index: int) -> tuple[float, int]:
        paid = measured[index]["reward_tuned"]
        return -math.inf if paid is None else paid, -index

    return max(range(len(measured)), key=worth)
