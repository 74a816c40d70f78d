"""The end of a search: the policy that is taken, its network after recovery, and what summary.json says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from amc.compression.answers import FinalScore
from amc.compression.job import Job
from amc.compression.observer import Observer
from amc.compression.recovering import FinalistMeasurement, Recovering
from amc.compression.scoring.evaluator import PairedEvaluator, final_score, heard, score_of, scored_on
from amc.compression.selection import Selection, choose
from amc.compression.selection.base import merged
from amc.compression.selection.by_confidence import ByConfidence
from amc.compression.selection.by_latency import ByLatency
from amc.compression.selection.by_recovery import ByRecovery
from amc.compression.summary import summarise
from amc.compression.verify import Recorded, confirmed
from amc.errors import EvaluationError
from amc.pruning import Policy
from amc.recovery.distillation import Outcome, Recovery
from amc.run.directory import RunDir
from amc.run.settings.scores import get_score
from amc.search import EpisodeRecord, Metric, SearchResult, SmallestWithin
from amc.search.statistics import Measured, PairedDrop

REFUSED = 1.0  # standard errors of the loss by which a recovered network is refused


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of a search."""

    model: nn.Module  # whole, in eval mode
    policy: Policy
    summary: dict[str, Any]
    answers: dict[str, Any] | None  # the content of answers.json; None without a test split whose images are judged


def ended(
    job: Job,
    results: Mapping[str, SearchResult],
    run: RunDir | None,
    test: FinalScore | None,
    watch: Observer,
    recorded: Recorded,
) -> Ending:
    """Choose a policy of the search, build its network and recover it. `results`: of every agent, by name."""
    watch.stage("result")
    config, recovering = job.config, Recovering(job, watch, run)
    choice = choose(results[config.agent].ranked, _selections(job, recovering))
    slim = recovering.pruned(choice.record.keep)
    best, warnings = confirmed(job, choice.record, slim, recorded)
    job = job.warned(warnings, watch)
    policy = job.policy(best.keep)
    with heard(test and test.score, watch.stage_step):
        summary = summarise(job, slim, replace(choice, record=best), results, run, test)
    _check_budget(job, summary["slim"])
    if config.recover != "none":
        slim, recovered = _recovered(recovering, best, test)
        recovered["warnings"] = [*summary["warnings"], *recovered["warnings"]]
        summary = merged(summary, recovered)
    answers = _answers(test, summary["slim"])
    return Ending(job.whole(slim), policy, summary, answers)


def _answers(test: FinalScore | None, slim: dict[str, Any]) -> dict[str, Any] | None:
    """What the dense network and the result answer on the test split. `slim` gets the standard errors of its scores."""
    if test is None:
        return None
    scores = {"test": "slim", "test_recovered": "recovered"}
    return test.recorded(slim, scores, name="slim", which="recovered" if "test_recovered" in slim else "slim")


def _selections(job: Job, recovering: Recovering) -> Iterator[Selection]:
    """How the search ends, besides by the best reward."""
    config, watch = job.config, recovering.watch
    if isinstance(job.reward, SmallestWithin):
        images = None if job.confirm is None else job.confirm.images
        descend = config.recover != "none"
        yield ByConfidence(job.reward, partial(_loss, recovering, job.reward), images, descend=descend)
    if job.latency is not None:
        watch.stage("latency of the best")
        limits = [budget for budget in config.budgets if budget.metric is Metric.LATENCY]
        yield ByLatency(
            latency=job.latency,
            problem=job.problem,
            budget=limits[0] if limits else None,
            example_input=job.example_input,
            build=job.scorer.builder.build,
            score=job.scorer,
            reward=job.reward,
            seed=config.seed,
        )
    if config.max_drop is None and config.finalists and (job.confirm or config.recover != "none"):
        yield ByRecovery(
            problem=job.problem,
            reward=job.reward,
            measurement=FinalistMeasurement(recovering),
            finalists=config.finalists,
            images=None if job.confirm is None else job.confirm.images,
            dense_search=job.dense_score,
            dense_unseen=job.dense_score if job.confirm is None else job.confirm.dense_score,
        )


def _loss(recovering: Recovering, reward: SmallestWithin, record: EpisodeRecord) -> PairedDrop | float:
    """What a policy's network, recovered, loses on images that the search never scored.

    By the search's score where that is a function: there are no other images. A recovered network without a score is
    replaced by the network as pruned.
    """
    job = recovering.job
    if job.config.recover == "none" and not isinstance(job.confirm, PairedEvaluator):
        return reward.dense_score - (record.score or 0.0)
    slim, recovery = recovering(record.keep)
    try:
        return _loss_of(slim, job, reward, "recovered")
    except EvaluationError as error:
        if recovery is None or recovery.reason is not None:  # this is the network as pruned
            raise
        reason = f"the recovered network has no score: {error}"
        return _loss_of(recovering.refuse(record.keep, "no score", reason), job, reward, "pruned")


def _loss_of(slim: nn.Module, job: Job, reward: SmallestWithin, which: str) -> PairedDrop | float:
    confirm = job.confirm
    if isinstance(confirm, PairedEvaluator):
        return scored_on(which, lambda: confirm.compare(slim))
    return reward.dense_score - score_of(job.scorer.evaluate, slim, which)


def _recovered(
    recovering: Recovering, best: EpisodeRecord, test: FinalScore | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The result, trained on the calibration images, and what summary.json says of it."""
    watch = recovering.watch
    watch.stage("recovery on the calibration images")
    slim, recovery = recovering(best.keep)
    if recovery is None:
        return slim, {"warnings": []}
    scores, failed = ({}, []) if recovery.reason is not None else _scores(recovering, best, slim, test)
    slim, recovery = recovering(best.keep)  # as pruned, if the recovered network is the worse one
    assert recovery is not None
    warnings = [*_told(recovery), *failed]
    for warning in warnings:
        watch.warning(warning)
    return slim, {"recovery": recovery.to_json(), "slim": scores, "warnings": warnings}


def _scores(
    recovering: Recovering, best: EpisodeRecord, slim: nn.Module, test: FinalScore | None
) -> tuple[dict[str, float], list[str]]:
    """The scores of the recovered network for the summary, and warnings. Both are empty if that network is refused."""
    job = recovering.job
    score, warnings = final_score(job.scorer.evaluate, slim, "recovered", "score")
    if job.config.max_drop is None:  # max_drop has confirmed the recovered network
        objection = _objection(job, best, recovering.pruned(best.keep), slim, (score, warnings))
        if objection is not None:
            recovering.refuse(best.keep, *objection)
            return {}, []
    with heard(test and test.score, recovering.watch.stage_step):
        tested, failed = (None, []) if test is None else test(slim, "recovered")
    error = score.standard_error if isinstance(score, Measured) else None
    plain = None if score is None else float(score)
    scores = {"score_recovered": plain, "score_recovered_error": error, "test_recovered": tested}
    return {name: value for name, value in scores.items() if value is not None}, [*warnings, *failed]


def _objection(
    job: Job, best: EpisodeRecord, pruned: nn.Module, recovered: nn.Module, score: tuple[float | None, list[str]]
) -> tuple[Outcome, str] | None:
    """Why the network as pruned is the better one by its score; None if it is not.

    The outputs may come nearer to the dense network's and the score fall: a score may look at other things. `score`:
    the recovered network's in the search, or None and why. Where there are images that the search never scored, the
    scores on these decide.
    """
    before, (after, failed) = best.score, score
    if job.confirm is not None and after is not None:
        before, _ = final_score(job.confirm, pruned, "pruned", "score")
        after, failed = final_score(job.confirm, recovered, "recovered", "score")
    if after is None:
        return "no score", failed[0]
    if before is None or not _worse(job.confirm, (before, pruned), (after, recovered)):
        return None
    kind = get_score(job.config.score)
    return "scores less", f"recovered, it scores {kind.turned(after):.4g} instead of {kind.turned(before):.4g}"


def _worse(confirm: Any, before: tuple[float, nn.Module], after: tuple[float, nn.Module]) -> bool:
    """Whether a recovered network is worse than it was as pruned, by the scores of both.

    Few images are wrong about it as often as not (benchmarks/refusals.py): where they are judged one by one, a loss
    counts that is larger than `REFUSED` standard errors.
    """
    if not isinstance(confirm, PairedEvaluator):
        return after[0] < before[0]
    drop = scored_on("recovered", lambda: confirm.between(before[1], after[1]))
    return drop.drop > REFUSED * drop.standard_error


def _told(recovery: Recovery) -> list[str]:
    """What the user should know of a recovery. Too few images to train on is no fault: calibration needs fewer."""
    if recovery.reason is not None and recovery.outcome != "too few images":
        return [f"the result is the network as pruned: {recovery.reason}"]
    return [] if recovery.stopped is None else [f"recovery was stopped: {recovery.stopped}"]


def _check_budget(job: Job, counted: Mapping[str, Any]) -> None:
    """The promise: the recounted network holds the budget. A failure here is a fault of ours."""
    for budget in job.problem.budgets:
        if budget.metric is Metric.LATENCY:
            continue  # its network was chosen because it holds as measured
        limit = job.problem.limit(budget)
        if counted[budget.metric] > limit:
            raise RuntimeError(f"{budget} broken: {counted[budget.metric]} {budget.metric} > {limit:.0f}")
