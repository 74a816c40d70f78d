"""The record of a finished search: the content of summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from amc.compression.answers import FinalScore
from amc.compression.job import Job
from amc.compression.scoring.evaluator import Evaluator, PairedEvaluator
from amc.compression.selection.base import Choice, merged
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import amc_version, environment
from amc.run.settings.scores import ScoreKind, get_score
from amc.search import EpisodeRecord, Metric, Problem, SearchResult
from amc.structure.copying import copy_model
from amc.structure.modes import device_of


def summarise(
    job: Job,
    slim: nn.Module,
    choice: Choice,
    results: Mapping[str, SearchResult],
    run: RunDir | None,
    test: FinalScore | None,
) -> dict[str, Any]:
    """The record of a finished search, as in summary.json; `results` has the result of every agent by name."""
    config, best = job.config, choice.record
    origin = run.config() if run else {}
    costs = job.problem.policy_costs(job.problem.dense.tolist())
    dense = {name: int(cost) for name, cost in costs.items() if name != Metric.LATENCY}
    if not job.counts_whole:  # whose memory is not known
        dense["memory"] = job.method.structure.memory
    counted = job.method.recount(slim, job.example_input)
    small = counted if job.in_whole is None else job.in_whole.counted(counted)
    result: dict[str, Any] = {
        "amc_version": amc_version(),
        "model": origin.get("model", type(job.network).__name__),
        "data": origin.get("data"),
        "budget": config.budget,
        "method": config.method,
        "reward": config.reward if config.max_drop is None else "smallest within max_drop",
        # The score's name; None for the caller's own function. All later scores that are errors are negated.
        "score": config.score if isinstance(job.scorer.evaluate, Evaluator | PairedEvaluator) else None,
        "engine": job.scorer.engine.name,
        "agent": config.agent,
        "episodes": len(results[config.agent].episodes),
        "failed_episodes": results[config.agent].failed,
        "ranked": [record.episode for record in results[config.agent].ranked],  # of distinct policies, the best first
        "seed": config.seed,
        "seconds": round(_seconds(run, config.agent), 1) if run else None,
        "dense": {**dense, "score": job.dense_score},
        "slim": {**small, "score": best.score} | _known(score_error=best.standard_error),
        "baselines": _baselines(results, config.agent),
        "groups": [
            {"name": decision.name, "size": decision.size, "kept": count, "saves": _saved(job.problem, place, count)}
            for place, (decision, count) in enumerate(zip(job.problem.decisions, best.keep, strict=True))
        ],
        "locked": job.method.locked(),
        "warnings": list(job.warnings),
        "certificate": job.certificate.to_json() if job.certificate else None,
        "environment": environment(device_of(job.model)),
    }
    if job.in_whole is not None:
        result["pruned_part"] = job.in_whole.record(counted)
    stop = results[config.agent].stopped
    if stop is not None:
        result["stopped"] = stop.to_json()
    result = merged(result, choice.summary)
    result["warnings"] += choice.warnings
    if not choice.trials:  # with trials, the reward alone does not decide
        result["warnings"] += _outdone(results, best, config.agent, get_score(config.score))
    if test is not None:
        for which, network in (("dense", copy_model(job.model)), ("slim", slim)):
            value, warnings = test(network, which)
            result[which] |= {} if value is None else {"test": value}
            result["warnings"] += warnings
    return result


def _known(**figures: float | None) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _baselines(results: Mapping[str, SearchResult], main: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, result in results.items():
        if name != main:
            scores = [record.score for record in result.episodes if record.score is not None]
            out[name] = {
                "score": result.best.score,
                **{name: result.best.cost[name] for name in ("macs", "params", "size") if name in result.best.cost},
                "median": float(np.median(scores)),
                "episodes": len(result.episodes),
            }
    return out


def _saved(problem: Problem, place: int, kept: int) -> dict[str, float]:
    """What a network costs less than the dense one if only this group is cut: MACs, parameters, predicted latency."""
    alone = problem.dense
    alone[place] = kept
    metrics = [metric for metric in (Metric.MACS, Metric.PARAMS, Metric.LATENCY) if metric in problem.costs]
    return {str(metric): problem.cost(metric, problem.dense) - problem.cost(metric, alone) for metric in metrics}


def _outdone(results: Mapping[str, SearchResult], best: EpisodeRecord, main: str, kind: ScoreKind) -> list[str]:
    """A warning if a baseline did better than the agent: the search was too short."""
    rewards = {name: result.best.reward or 0.0 for name, result in results.items() if name != main}
    winner = max(rewards, key=rewards.__getitem__, default=None)
    found = max(record.reward or 0.0 for record in results[main].ranked)  # the best score may be a lucky one
    if winner is None or rewards[winner] <= max(found, best.reward or 0.0):
        return []
    theirs, ours = (kind.turned(record.score or 0.0) for record in (results[winner].best, best))
    return [
        f"the {winner} baseline did better (score {theirs:.4f}) than the search ({ours:.4f}): give it more episodes"
    ]


def _seconds(run: RunDir, agent: str) -> float:
    """Scoring and agent time of the main search, over all its sessions."""
    lines = run.read_jsonl(files.TIMINGS)
    return sum(sum(line.get("seconds", {}).values()) for line in lines if line.get("agent") == agent)
