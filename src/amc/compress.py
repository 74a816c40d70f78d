"""The whole job: structure, calibration, search, and the network that comes out, with its record on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc import rundir
from amc.config import SearchConfig
from amc.errors import AmcError, EvaluationError, RunError
from amc.evaluation import BatchSource, Evaluate, as_evaluator
from amc.job import Job, Observer, prepare
from amc.latency import TABLE, Judge, Settled
from amc.provenance import amc_version
from amc.pruning import Policy
from amc.report import render_report
from amc.rundir import RunDir
from amc.scores import DEFAULT
from amc.search import (
    REWARDS,
    Confirmation,
    EpisodeRecord,
    EpisodeTiming,
    Metric,
    RewardFunction,
    SearchResult,
    SmallestWithin,
    candidates,
    create_agent,
    get_reward,
    read_journal,
    reward_name,
    search,
    smallest_confirmed,
)
from amc.statistics import PairedDrop
from amc.stored import fingerprint
from amc.structure import Structure
from amc.summary import summarise


@dataclass(frozen=True)
class Result:
    """What `compress` gives back."""

    model: nn.Module  # smaller, or masked; of the same class, in eval mode; batch norms as scored
    policy: Policy
    summary: dict[str, Any]
    structure: Structure
    search: SearchResult


def compress(
    model: nn.Module,
    example_input: Any,
    *,
    calibration: Iterable[Any],
    evaluate: Any,
    test: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    origin: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> Result:
    """Prune `model` to a budget with a reinforcement-learning agent (arXiv 1802.03494).

    model: any trained network that torch.export can follow; it is left untouched.
    example_input: one example (batch 1) as the network takes it; a tuple or dict for several arguments.
    calibration: batches of training images, with or without labels; never the ones `evaluate` scores.
    evaluate: module -> float, higher is better, or a loader of (images, labels): the reward. Batches of both are taken
        apart as `example_input` says (`amc.batches`).
    score (in settings): what a loader is scored by: "top1", or another name of `amc.scores`.
    test: the same for the final figures only; it never steers anything.
    reward (in settings): a name, or a function of an `amc.search.Outcome`.
    run_dir: where to keep the journal and the results; `resume` continues what an earlier call left there.
    origin: what the command line needs to build the same network and data again; kept in config.json.
    settings: fields of `SearchConfig`: budget, method, episodes, seed, and so on.

    Raises AmcError (its kinds in `amc.errors`) with one clear line for whatever is wrong with the input.
    """
    own = _own_reward(settings)
    config, watch = SearchConfig.of(settings), observer or Observer()
    run = _claim(run_dir, config, model, resume=resume)
    final = None if test is None else _tested(test, config, example_input)
    table = run.file(TABLE) if run is not None and run.has(TABLE) else None
    job = prepare(model, example_input, calibration, evaluate, config, watch, own, table)
    if run_dir is not None and run is None:
        record = {
            "amc_version": amc_version(),
            **(origin or {}),
            **config.to_json(),
            "weights_sha256": fingerprint(model),
        }
        run = RunDir.create(run_dir, record)
    if run is not None and job.latency is not None and table is None:
        run.write_json(TABLE, job.latency.table.to_json())  # before the first episode: a resumed search needs this one
    with run.lock() if run else nullcontext():
        return _search_and_finish(job, run, final, watch)


def _tested(test: Any, config: SearchConfig, example_input: Any) -> Evaluate:
    """The score of the final figures: the search's own on other data, or a function of the caller's."""
    score = config.score if isinstance(test, BatchSource) or not callable(test) else DEFAULT
    return as_evaluator(test, score=score, example_input=example_input)


def _own_reward(settings: dict[str, Any]) -> RewardFunction | None:
    """The caller's own reward, its name left in `settings`; None where it is one of ours.

    AmcError for an own one under the name of one of ours: budget and latency would be settled as if it were that.
    """
    reward = settings.get("reward", "r_err")
    function = get_reward(reward)  # refuses what is neither a name nor a function
    if isinstance(reward, str):
        return None
    name = settings["reward"] = reward_name(function)
    if name not in REWARDS:
        return function
    if function != REWARDS[name]:
        raise AmcError(f"reward is a function called {name!r}, as a built-in reward is; give it another name")
    return None


def _claim(run_dir: str | Path | None, config: SearchConfig, model: nn.Module, *, resume: bool) -> RunDir | None:
    """The run to resume; None for a new one. Whatever is wrong with the directory is found before any work."""
    if run_dir is None:
        return None
    if not resume:
        RunDir.refuse_occupied(run_dir)
        return None
    run = RunDir.open(run_dir)
    began = run.config()
    if began.get("weights_sha256") != fingerprint(model):
        raise RunError(f"'{run.path}' was started with other weights; resume it with the weights of its config.json")
    wanted = SearchConfig.from_json(config.to_json()).to_json()
    for name, value in SearchConfig.from_json(began).to_json().items():
        if value != wanted[name]:
            raise RunError(
                f"'{run.path}' was started with {name} {value!r}, not {wanted[name]!r}; "
                "resume it with the same settings, or choose another directory"
            )
    for name in (*map(rundir.baseline_journal, config.baselines), rundir.JOURNAL):
        if run.has(name):
            read_journal(run.file(name))
    with run.lock():  # refuses at once where another process is writing
        return run


def _search_and_finish(job: Job, run: RunDir | None, test: Any, watch: Observer) -> Result:
    config = job.config
    found: dict[str, SearchResult] = {}
    for name in (*config.baselines, config.agent):
        watch.stage(f"search ({name})")
        try:
            found[name] = _run_agent(job, name, run, watch)
        except EvaluationError:
            if name == config.agent:
                raise  # a baseline whose every policy fails is left out; its journal says why
    watch.stage("result")
    guarantee = _confirmed(job, found[config.agent])
    best = guarantee.chosen.record if guarantee else found[config.agent].best
    settled = _measured(job, found[config.agent], guarantee, watch)
    best = settled.chosen.record if settled else best
    slim = job.scorer.build(best.keep)
    policy = job.scorer.builder.policy(best.keep)
    summary = summarise(job, slim, best, found, run, test, guarantee, settled)
    _check_budget(job, summary["slim"])
    if run is not None:
        run.write_bytes(rundir.MODEL, job.method.stored(slim))
        run.write_json(rundir.POLICY, policy.to_json())
        run.write_json(rundir.SUMMARY, summary)
        render_report(run)
    return Result(slim, policy, summary, job.structure, found[config.agent])


def _confirmed(job: Job, result: SearchResult) -> Confirmation | None:
    """With `max_drop`: the smallest network whose loss holds on images that the search never scored."""
    reward = job.reward
    if not isinstance(reward, SmallestWithin):
        return None

    def measure(record: EpisodeRecord) -> PairedDrop | float:
        if job.confirm is None:  # a score of the caller's own: there is nothing else to measure on
            return reward.dense_score - (record.score or 0.0)
        return job.confirm.compare(job.scorer.build(record.keep))

    return smallest_confirmed(candidates(result.episodes, reward), measure, reward)


def _measured(job: Job, result: SearchResult, guarantee: Confirmation | None, watch: Observer) -> Settled | None:
    """With a latency among the costs: the policy that holds as measured on whole networks."""
    if job.latency is None:
        return None
    watch.stage("latency of the best")
    limits = [budget for budget in job.config.budgets if budget.metric is Metric.LATENCY]
    judge = Judge(
        latency=job.latency,
        problem=job.problem,
        budget=limits[0] if limits else None,
        example_input=job.example_input,
        build=job.scorer.builder.build,
        score=job.scorer,
        reward=job.reward,
        seed=job.config.seed,
    )
    return judge.only(guarantee.chosen.record) if guarantee else judge.settle(result.episodes)


def _run_agent(job: Job, name: str, run: RunDir | None, watch: Observer) -> SearchResult:
    config = job.config
    agent = create_agent(name, job.problem, episodes=config.episodes, seed=config.seed)

    def hear(record: EpisodeRecord, timing: EpisodeTiming) -> None:
        if run is not None and not timing.replayed:
            part = job.scorer.timing
            seconds = {"agent": timing.agent, "build": part.build, "batch norm": part.batch_norm}
            seconds["score"] = max(0.0, timing.score - part.build - part.batch_norm)
            line = {"agent": name, "episode": record.episode, "seconds": _rounded(seconds)}
            run.append_jsonl(rundir.TIMINGS, line, durable=False)
        watch.episode(name, record, timing)

    return search(
        job.problem,
        job.scorer,
        agent,
        episodes=config.episodes,
        seed=config.seed,
        journal_path=None if run is None else run.file(_journal(name, config.agent)),
        on_episode=hear,
        reward=job.reward,
    )


def _journal(name: str, main: str) -> str:
    return rundir.JOURNAL if name == main else rundir.baseline_journal(name)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def _check_budget(job: Job, counted: Mapping[str, Any]) -> None:
    """The promise: the recounted network holds the budget. A failure here is a fault of ours."""
    for budget in job.problem.budgets:
        if budget.metric is Metric.LATENCY:
            continue  # its network was chosen because it holds as measured
        limit = job.problem.limit(budget)
        if counted[budget.metric] > limit:
            raise RuntimeError(f"{budget} broken: {counted[budget.metric]} {budget.metric} > {limit:.0f}")
