"""The end of a search: the policy that is taken, its network after recovery, and what summary.json says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from amc.compression.observer import Observer
from amc.compression.prepare import Job
from amc.compression.recovering import FinalistMeasurement, Recovering
from amc.compression.scoring.evaluator import Evaluate, PairedEvaluator, final_score, score_of
from amc.compression.selection import Selection, choose
from amc.compression.selection.base import merged
from amc.compression.selection.by_confidence import ByConfidence
from amc.compression.selection.by_latency import ByLatency
from amc.compression.selection.by_recovery import ByRecovery
from amc.compression.summary import summarise
from amc.compression.verify import Recorded, confirmed
from amc.pruning import Policy
from amc.recovery.distillation import Recovery
from amc.run.directory import RunDir
from amc.run.settings.scores import get_score
from amc.search import EpisodeRecord, Metric, SearchResult, SmallestWithin
from amc.search.statistics import PairedDrop


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of a search."""

    model: nn.Module  # in eval mode
    policy: Policy
    summary: dict[str, Any]


def ended(
    job: Job,
    results: Mapping[str, SearchResult],
    run: RunDir | None,
    test: Evaluate | None,
    watch: Observer,
    recorded: Recorded,
) -> Ending:
    """Choose a policy of the search, build its network and recover it. `results`: of every agent, by name."""
    watch.stage("result")
    config, recovering = job.config, Recovering(job, watch, run)
    choice = choose(results[config.agent].ranked, _selections(job, recovering))
    slim = job.scorer.build(choice.record.keep)
    best, warnings = confirmed(job, choice.record, slim, recorded)
    job = job.warned(warnings, watch)
    job.method.finish_(slim, job.example_input)
    policy = job.scorer.builder.policy(best.keep)
    summary = summarise(job, slim, replace(choice, record=best), results, run, test)
    _check_budget(job, summary["slim"])
    if config.recover != "none":
        slim, recovered = _recovered(job, slim, recovering, best.keep, test)
        recovered["warnings"] = [*summary["warnings"], *recovered["warnings"]]
        summary = merged(summary, recovered)
    return Ending(slim, policy, summary)


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
            measurement=FinalistMeasurement(recovering, config.finalists),
            finalists=config.finalists,
            images=None if job.confirm is None else job.confirm.images,
            dense_search=job.dense_score,
            dense_unseen=job.dense_score if job.confirm is None else job.confirm.dense_score,
        )


def _loss(recovering: Recovering, reward: SmallestWithin, record: EpisodeRecord) -> PairedDrop | float:
    """What a policy's network, recovered, loses on images that the search never scored.

    By the search's score where that is a function: there are no other images.
    """
    job = recovering.job
    if isinstance(job.confirm, PairedEvaluator):
        return job.confirm.compare(recovering(record.keep)[0])
    if job.config.recover == "none":
        return reward.dense_score - (record.score or 0.0)
    return reward.dense_score - score_of(job.scorer.evaluate, recovering(record.keep)[0], "recovered")


def _recovered(
    job: Job, pruned: nn.Module, recovering: Recovering, keep: tuple[int, ...], test: Evaluate | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The result, trained on the calibration images, and what summary.json says of it."""
    watch = recovering.watch
    watch.stage("recovery on the calibration images")
    slim, recovery = recovering(keep)
    if recovery is None:
        return pruned, {"warnings": []}
    if recovery.reason is None and job.config.max_drop is None:  # max_drop has confirmed the recovered network
        reason = _worse(job, pruned, slim)
        recovery = recovery if reason is None else replace(recovery, outcome="scores less", reason=reason)
    warnings = _told(recovery)
    if recovery.reason is not None:
        for warning in warnings:
            watch.warning(warning)
        return pruned, {"recovery": recovery.to_json(), "warnings": warnings}
    job.method.finish_(slim, job.example_input)
    scores: dict[str, float] = {}
    for name, score in (("score_recovered", job.scorer.evaluate), ("test_recovered", test)):
        if score is not None:
            value, failed = final_score(score, slim, "recovered")
            scores |= {} if value is None else {name: value}
            warnings += failed
    for warning in warnings:
        watch.warning(warning)
    return slim, {"recovery": recovery.to_json(), "slim": scores, "warnings": warnings}


def _told(recovery: Recovery) -> list[str]:
    """What the user should know of a recovery. Too few images to train on is no fault: calibration needs fewer."""
    if recovery.reason is not None and recovery.outcome != "too few images":
        return [f"the result is the network as pruned: {recovery.reason}"]
    return [] if recovery.stopped is None else [f"recovery was stopped: {recovery.stopped}"]


def _worse(job: Job, pruned: nn.Module, recovered: nn.Module) -> str | None:
    """Why the network as pruned is the better one by its score; None if it is not.

    The outputs may come nearer to the dense network's and the score fall: a score may look at other things.
    """
    judge = job.confirm or job.scorer.evaluate
    before, after = (final_score(judge, network, "recovered")[0] for network in (pruned, recovered))
    if after is None:
        return "recovered, it has no score"
    if before is not None and after < before:
        kind = get_score(job.config.score)
        return f"recovered, it scores {kind.turned(after):.4g} instead of {kind.turned(before):.4g}"
    return None


def _check_budget(job: Job, counted: Mapping[str, Any]) -> None:
    """The promise: the recounted network holds the budget. A failure here is a fault of ours."""
    for budget in job.problem.budgets:
        if budget.metric is Metric.LATENCY:
            continue  # its network was chosen because it holds as measured
        limit = job.problem.limit(budget)
        if counted[budget.metric] > limit:
            raise RuntimeError(f"{budget} broken: {counted[budget.metric]} {budget.metric} > {limit:.0f}")
