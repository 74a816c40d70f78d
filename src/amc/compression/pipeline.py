"""The whole job: structure, calibration, search, and the network that comes out, with its record on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc.compression.answers import FinalScore
from amc.compression.ending import ended
from amc.compression.hub import PLACEHOLDER, upload, write_folder
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.load import check_builds, check_weights, settings_of, weights_key
from amc.compression.observer import Observer
from amc.compression.own import own_agent, own_loss, own_reward
from amc.compression.prepare import prepare
from amc.compression.progress import listening
from amc.compression.scoring.policy import ScoreTiming
from amc.compression.scoring.sources import BatchSource
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.start import scoring
from amc.compression.settings import NO_BUDGET, SearchConfig
from amc.compression.verify import Recorded
from amc.compression.warm_start import earlier_records
from amc.errors import AmcError, EvaluationError, RunError, brief
from amc.pruning import Policy
from amc.report import render_report
from amc.report.tables import format_count
from amc.report.words import words_of
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import amc_version
from amc.run.settings import from_keywords
from amc.run.settings.scores import DEFAULT, get_score
from amc.run.weights import pack_smallest
from amc.search import (
    LEARN_EARLIER,
    Agent,
    EpisodeRecord,
    EpisodeTiming,
    SearchResult,
    SearchTask,
    StopRules,
    agent_config,
    create_agent,
    search,
)
from amc.search.judging import Batched
from amc.search.statistics import Measured
from amc.structure import Structure
from amc.structure.copying import copy_model, undisturbed
from amc.structure.modes import device_of


@dataclass(frozen=True)
class Result:
    """What `compress` gives back.

    >>> result
    Result(channel, macs<=50%: 1.536 k -> 768 MACs, score ... -> ..., 1 group)
    >>> result.policy.keep_counts, result.summary["slim"]["macs"], result.masks
    ((4,), 768, {})
    """

    model: nn.Module  # smaller, or masked; of the same class, in eval mode; batch norms as scored
    policy: Policy
    summary: dict[str, Any]
    structure: Structure
    search: SearchResult
    masks: Mapping[str, Tensor]  # by parameter name, bool of its shape, True = kept; empty after channel pruning

    def __repr__(self) -> str:
        dense, slim = self.summary["dense"], self.summary["slim"]
        score = get_score(self.summary["score"] or DEFAULT)
        before, after = score.turned(dense["score"]), score.turned(slim["score"])
        count, holder = len(self.policy.groups), words_of(self.policy.method).holder
        budget = "" if self.summary["budget"] == NO_BUDGET else f", {self.summary['budget']}"
        return brief(
            f"Result({self.policy.method}{budget}: {format_count(dense['macs'])} -> {format_count(slim['macs'])} MACs, "
            f"score {before:.4f} -> {after:.4f}, {count} {holder}{'s' * (count != 1)})"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the network to a folder that `amc.from_hub` reads: weights, policy, and a model card.

        Raises RunError if it cannot be written.
        """
        self._write(folder)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Publish the network on the Hugging Face hub, as USER/NAME; `amc.from_hub` reads it. Returns its address.

        `token`: by default, that of `hf auth login`. Raises RunError.
        """
        return upload(repo, lambda folder: self._write(folder, repo), private=private, token=token)

    def _write(self, folder: str | Path, repo: str = PLACEHOLDER) -> None:
        weights = pack_smallest(self.model.state_dict(), self.masks)
        write_folder(folder, weights, self.policy, self.summary, {}, repo)


def compress(
    model: nn.Module,
    example_input: Any,
    *,
    calibration: Iterable[Any],
    evaluate: Any,
    test: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Prune `model` to a budget with a reinforcement-learning agent (arXiv 1802.03494).

    model: any trained network that torch.export can follow; it is left untouched. Everything is computed on its device.
    example_input: one example (batch 1) as the network takes it; a tuple or dict for several arguments.
    calibration: batches of training images, with or without labels; never the ones `evaluate` scores.
    evaluate: module -> float, higher is better, or a loader of (images, labels): the reward. Batches of both are taken
        apart as `example_input` says (`amc.structure.batches`).
    score (in settings): what a loader is scored by: "top1", or another name of `amc.run.settings.scores`.
    test: the same for the final figures only; it never steers anything.
    part (in settings): the name of a submodule: it alone is pruned. Scores are of the whole network, which may do what
        torch.export cannot follow, and so is the result. `count` says whose costs the budgets limit: "part", "whole".
    reward (in settings): a name, or a function of an `amc.search.Outcome`.
    agent (in settings): a name, or a function of an `amc.search.SearchTask` that returns an `amc.search.Agent`.
    distill_loss (in settings): (outputs of the pruned network, of the dense one) -> scalar Tensor that recovery
        minimises; by default as `amc.recovery.distances.OutputDistance` says.
    run_dir: where to keep the journal and the results; `resume` continues what an earlier call left there.
    observer: listens while the job runs. The logger `amc` gets the same, if the caller configures logging.
    progress: whether to show a progress bar on stderr.
    settings: fields of `SearchConfig`: budget, method, episodes, seed, and so on.

    Raises AmcError (its kinds in `amc.errors`) with one clear line for whatever is wrong with the input.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    >>> example = torch.zeros(1, 1, 6, 6)
    >>> seen, held = [[(torch.randn(32, 1, 6, 6), torch.randint(3, (32,)))] for _ in range(2)]
    >>> result = amc.compress(net, example, calibration=seen, evaluate=held, budget="macs<=50%", episodes=3)
    >>> amc.count_macs(net, example), amc.count_macs(result.model, example)
    (1536, 768)
    """
    inputs, config = inputs_of(Inputs(model, example_input, calibration, evaluate, test), settings)
    with listening(observer, progress=progress, run_dir=run_dir) as watch, opened(run_dir, resume=resume) as run:
        return compress_in(run, inputs, config, watch, resume=resume, origin={})


def inputs_of(inputs: Inputs, settings: dict[str, Any]) -> tuple[Inputs, SearchConfig]:
    """The inputs with the caller's own functions among the settings, and the settings themselves. Raises AmcError."""
    loss, agent, reward = own_loss(settings), own_agent(settings), own_reward(settings)
    config = from_keywords(SearchConfig, settings)
    if agent is None:
        check_agent(config)
    return replace(inputs, reward=reward, distill_loss=loss, agent=agent), config


@contextmanager
def opened(run_dir: str | Path | None, *, resume: bool) -> Iterator[RunDir | None]:
    """The directory of a new run, or of the one to resume, before any work; locked inside the block."""
    if run_dir is None:
        yield None
    elif resume:
        run = RunDir.open(run_dir)
        with run.lock():
            yield run
    else:
        with RunDir.claim(run_dir) as run:
            yield run


def compress_in(
    run: RunDir | None,
    inputs: Inputs,
    config: SearchConfig,
    watch: Observer,
    *,
    resume: bool,
    origin: Mapping[str, Any],
    prepared: Job | None = None,
) -> Result:
    """`compress` in a directory that is claimed or locked already.

    origin: what names the network and the data, for config.json; empty where nothing does. prepared: the job of
    another budget, if there is one.
    """
    with undisturbed(inputs.model):
        inputs = replace(inputs, model=copy_model(inputs.model))  # plain; the user's own is never run
        if run is not None and resume:
            config = config.for_run(run.config())
            check_config(run, config, inputs.model)
        elif run is not None:
            began = {"amc_version": amc_version(), **origin, **config.to_json()}
            run.write_json(files.CONFIG, {**began, **weights_key(inputs.model)})
        watch.job_settings("search", {**origin, **config.to_json()})
        journals = [] if run is None else [run.file(_journal(name, config.agent)) for name in _agents(config)]
        recorded = Recorded.at(journals)  # a damaged one is found before any work
        inputs = inputs.of_part(config.part, None if prepared is None else prepared.part)
        test = _test_score(inputs, config)
        if prepared is None:
            job = prepared_in(run, inputs, config, watch, recorded)
        else:
            job = prepared.at(config)
            _keep_table(run, job)
        job = replace(job, earlier=earlier_records(run, job))
        return _search_and_finish(job.warned(recorded.check(job), watch), run, test, watch, recorded)


def prepared_in(run: RunDir | None, inputs: Inputs, config: SearchConfig, watch: Observer, recorded: Recorded) -> Job:
    """The job, prepared with what the run keeps of an earlier session; the run then has its latency table."""
    table = run.file(files.TABLE) if run is not None and run.has(files.TABLE) else None
    kept = None if run is None else run.file(files.PREPARED)
    engine = recorded.engine(bf16=config.bf16)
    job = prepare(inputs, config, watch, table=table, engine=engine, kept=kept)
    _keep_table(run, job)
    return job


def _keep_table(run: RunDir | None, job: Job) -> None:
    """Write the latency table before any episode: resuming needs this one."""
    if run is not None and job.latency is not None and not run.has(files.TABLE):
        run.write_json(files.TABLE, job.latency.table.to_json())


def _agents(config: SearchConfig) -> tuple[str, ...]:
    """Those whose policies are scored."""
    return (*config.baselines, config.agent)


def _test_score(inputs: Inputs, config: SearchConfig) -> FinalScore | None:
    """The score of the final figures: the search's own on other data, or a function of the caller's."""
    test = inputs.test
    if test is None:
        return None
    score = config.score if isinstance(test, BatchSource) or not callable(test) else DEFAULT
    return FinalScore(inputs.score(test, score))


def check_config(run: RunDir, config: SearchConfig, model: nn.Module) -> None:
    """RunError unless the run began with these settings and weights."""
    check_builds(run)
    check_weights(run, model)
    wanted = config.deciding()
    for name, value in settings_of(run).deciding().items():
        if value != wanted[name]:
            raise RunError(
                f"'{run.path}' was started with {name} {value!r}, not {wanted[name]!r}; "
                "resume it with the same settings, or choose another directory"
            )


def _search_and_finish(
    job: Job, run: RunDir | None, test: FinalScore | None, watch: Observer, recorded: Recorded
) -> Result:
    config = job.config
    task = _task(job)
    baselines = {name: create_agent(name, task) for name in config.baselines}
    # What the search finds comes before what it is compared with, unless that is a single policy.
    single = {name: agent for name, agent in baselines.items() if agent.max_episodes == 1}
    agents = {**single, config.agent: _agent(job, task), **{n: a for n, a in baselines.items() if n not in single}}
    watch.plan({name: _most_policies(config, name, agent) for name, agent in agents.items()})
    results: dict[str, SearchResult] = {}
    scores: dict[tuple[int, ...], float] = {}  # of every policy, whichever agent proposed it
    with scoring(job.scorer, config, watch, device_of(job.model)) as pool:
        for name, agent in agents.items():
            watch.stage(f"search ({name})")
            try:
                results[name] = _run_agent(job, name, agent, run, watch, scores, pool)
            except EvaluationError:
                if name == config.agent:
                    raise  # a baseline whose every policy fails is left out; its journal says why
    job = job.warned(job.scorer.engine.warnings, watch)
    job.scorer.engine.forget()
    end = ended(job, results, run, test, watch, recorded)
    slim, summary, policy = end.model, end.summary, end.policy
    if run is not None:
        run.write_bytes(files.MODEL, job.finishing.stored(slim))
        run.write_json(files.POLICY, policy.to_json())
        if end.answers is not None:
            run.write_json(files.ANSWERS, end.answers)
        journals = [_journal(name, config.agent) for name in results]
        summary["files"] = run.digests([files.MODEL, files.POLICY, files.TABLE, *journals])
        run.discard(files.PREPARED)
        run.write_json(files.SUMMARY, summary)
        render_report(run)
    watch.job_result(summary)
    return Result(slim, policy, summary, job.structure, results[config.agent], job.finishing.masks(slim))


def _task(job: Job) -> SearchTask:
    """What the agents know before the first episode."""
    errors = job.scorer.builder.errors([decision.choices for decision in job.problem.decisions])
    return SearchTask(
        job.problem, job.config.episodes, job.config.seed, reward=job.reward, dense_score=job.dense_score,
        errors=errors, earlier=job.earlier,
    )  # fmt: skip


def _agent(job: Job, task: SearchTask) -> Agent:
    """The agent of the search: the caller's own, or the one of that name."""
    config = job.config
    if job.agent is not None:
        return create_agent(job.agent, task, config.options_of_agent)
    first = {"uniform_first": config.uniform_first} if config.agent == "ddpg" else {}
    return create_agent(config.agent, task, {**first, **config.options_of_agent})


def check_agent(config: SearchConfig) -> None:
    """Raise AmcError for an unknown agent or option, or a warm start that it has no use for, before any work."""
    agent_config(config.agent, config.episodes, config.options_of_agent)
    if config.warm_start is not None and config.agent not in LEARN_EARLIER:
        raise AmcError(
            f"agent {config.agent!r} learns nothing from earlier searches; leave warm-start out, or choose "
            f"{' or '.join(LEARN_EARLIER)}"
        )


def _run_agent(
    job: Job,
    name: str,
    agent: Agent,
    run: RunDir | None,
    watch: Observer,
    scores: dict[tuple[int, ...], float],
    pool: Pool | None,
) -> SearchResult:
    """Run one agent. `scores`: of the policies scored so far; this agent's are added. `pool`: scores them, if any."""
    config, kind = job.config, get_score(job.config.score)
    parts: dict[tuple[int, ...], ScoreTiming] = {}  # of the policy that the episode under way has scored

    def score(policy: tuple[int, ...]) -> float:
        if policy in scores:
            return scores[policy]
        scored = (pool or job.scorer).scored(policy)
        parts[policy] = scored.timing
        return scored.score

    def begin(policies: Sequence[tuple[int, ...]]) -> None:
        if pool is not None:
            pool.begin([policy for policy in policies if policy not in scores])

    def on_episode(record: EpisodeRecord, timing: EpisodeTiming) -> None:
        seconds = _seconds(timing, parts.pop(record.keep, ScoreTiming()))
        if run is not None and not timing.replayed:
            line = {"agent": name, "episode": record.episode, "seconds": seconds}
            run.append_jsonl(files.TIMINGS, line, durable=False)
        if record.score is not None:
            deviation = record.standard_error
            scores[record.keep] = record.score if deviation is None else Measured(record.score, deviation)
        watch.episode(name, record.named(kind), timing)

    return search(
        job.problem,
        Batched(score, config.batch, begin),
        agent,
        episodes=_most_policies(config, name, agent),
        seed=config.seed,
        journal_path=None if run is None else run.file(_journal(name, config.agent)),
        on_episode=on_episode,
        reward=job.reward,
        origin=job.origin,
        rules=StopRules(
            None if config.seconds is None else config.seconds * _share(config, name),
            config.patience if name == config.agent else None,
            asked=lambda record: watch.stops(name, record.named(kind)),
        ),
    )


def _most_policies(config: SearchConfig, name: str, agent: Agent) -> int:
    """How many policies an agent may score."""
    most = math.ceil(config.episodes * _share(config, name) - 1e-9)  # a fifth of 35 is 7, whatever floats say
    return min(most, agent.max_episodes or most)


def _share(config: SearchConfig, name: str) -> float:
    """Of the search's policies and time: random policies are a baseline that need not cost as much again."""
    return config.random_share if name == "random" and name != config.agent else 1.0


def _journal(name: str, main: str) -> str:
    return files.JOURNAL if name == main else files.baseline_journal(name)


def _seconds(episode: EpisodeTiming, part: ScoreTiming) -> dict[str, float]:
    """The parts of an episode, to the microsecond; what of a score is neither build nor batch norm is "score"."""
    rest = max(0.0, episode.score - part.build - part.batch_norm)
    seconds = {"agent": episode.agent, "build": part.build, "batch norm": part.batch_norm, "score": rest}
    return {name: round(value, 6) for name, value in seconds.items()}
