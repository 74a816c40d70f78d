"""The whole job: structure, calibration, search, and the network that comes out, with its record on disk."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from amc import rundir
from amc.errors import AmcError, DataError, EvaluationError, RunError
from amc.evaluation import as_evaluator, evaluating
from amc.problem import MAX_SPARSITY, make_problem
from amc.pruning import Policy, Pruner, apply_policy, calibrate
from amc.pruning.ranking import Ranking
from amc.report import render_report
from amc.rundir import RunDir
from amc.scoring import Evaluate, PolicyScorer
from amc.search import (
    AGENTS,
    BASELINES,
    EpisodeRecord,
    EpisodeTiming,
    Metric,
    Problem,
    SearchResult,
    create_agent,
    parse_budgets,
    read_journal,
    search,
)
from amc.structure import Certificate, Structure, certify, count_macs, count_params, inspect, restrict

METHODS = ("channel",)


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides a search's outcome besides the network and the data."""

    budget: str = "macs<=50%"
    method: str = "channel"
    agent: str = "ddpg"
    episodes: int = 400
    seed: int = 0
    baselines: tuple[str, ...] = ("uniform",)  # scored beside the agent: uniform, random, shallow, deep
    round_to: int | None = None  # None: 8 where a group is wide enough
    max_sparsity: float = MAX_SPARSITY  # of a group's channels, in [0, 1)
    ranking: Ranking = "elimination"
    reconstruct: bool = True
    bn_images: int = 512  # calibration images to re-estimate batch norms on; 0: keep the dense statistics
    calibration_images: int = 2048
    bf16: bool = False  # score in bfloat16
    keep_sets: int = 3  # checked by the certificate; 0: none
    lock: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "budget": (isinstance(self.budget, str), 'text such as "macs<=50%"'),
            "episodes": (self.episodes >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "round_to": (self.round_to is None or self.round_to >= 1, "at least 1"),
            "max_sparsity": (0 <= self.max_sparsity < 1, "in [0, 1)"),
            "agent": (self.agent in AGENTS, f"one of {', '.join(AGENTS)}"),
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "ranking": (self.ranking in ("magnitude", "elimination"), "magnitude or elimination"),
            "bn_images": (self.bn_images >= 0, "at least 0"),
            "calibration_images": (self.calibration_images >= 1, "at least 1"),
            "keep_sets": (self.keep_sets >= 0, "at least 0"),
            "baselines": (set(self.baselines) <= set(BASELINES), f"among {', '.join(BASELINES)}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise AmcError(f"{name.replace('_', '-')} must be {rule}, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SearchConfig:
        """From keyword arguments; AmcError for a name that is none."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise AmcError(f"unknown setting {name!r}; {hint}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchConfig:
        """From a run's config.json, whose other fields are passed over."""
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        for name in ("baselines", "lock", "only"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Observer:
    """What the caller wants to hear while the job runs; every hook may be left out."""

    stage: Callable[[str], None] = lambda _: None
    structure: Callable[[Structure, Certificate | None], None] = lambda *_: None
    dense: Callable[[float], None] = lambda _: None
    episode: Callable[[str, EpisodeRecord, EpisodeTiming], None] = lambda *_: None  # agent, record, timing


@dataclass(frozen=True)
class Result:
    """What `compress` gives back."""

    model: nn.Module  # smaller, of the same class, in eval mode; batch norms as scored
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
    evaluate: module -> float, higher is better, or a loader of (images, labels) for top-1 accuracy: the reward.
    test: the same for the final figures only; it never steers anything.
    run_dir: where to keep the journal and the results; `resume` continues what an earlier call left there.
    origin: what the command line needs to build the same network and data again; kept in config.json.
    settings: fields of `SearchConfig`: budget, method, episodes, seed, and so on.

    Raises AmcError (its kinds in `amc.errors`) with one clear line for whatever is wrong with the input.
    """
    config, watch = SearchConfig.of(settings), observer or Observer()
    run = _claim(run_dir, config, model, resume=resume)
    final = None if test is None else as_evaluator(test)
    job = prepare(model, example_input, calibration, evaluate, config, watch)
    if run_dir is not None and run is None:
        record = {
            "amc_version": amc_version(),
            **(origin or {}),
            **config.to_json(),
            "weights_sha256": fingerprint(model),
        }
        run = RunDir.create(run_dir, record)
    with run.lock() if run else nullcontext():
        return _search_and_finish(job, run, final, watch)


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


@dataclass(frozen=True)
class Job:
    """A search that is ready to run."""

    model: nn.Module
    example_input: Any
    config: SearchConfig
    structure: Structure
    certificate: Certificate | None
    problem: Problem
    scorer: PolicyScorer
    dense_score: float
    notes: dict[str, str] = field(default_factory=dict)  # layers without reconstruction, and why


def prepare(
    model: nn.Module,
    example_input: Any,
    calibration: Iterable[Any],
    evaluate: Any,
    config: SearchConfig,
    observer: Observer | None = None,
) -> Job:
    """Everything before the first episode; the cheap checks of the user's input come first."""
    watch = observer or Observer()
    budgets = parse_budgets(config.budget)
    watch.stage("structure")
    structure = inspect(model, example_input)
    if config.lock or config.only:
        structure = restrict(structure, lock=config.lock, only=config.only)
    certificate = None
    if config.keep_sets and structure.groups:
        watch.stage("certificate")
        structure, certificate = certify(model, structure, example_input, keep_sets=config.keep_sets)
    watch.structure(structure, certificate)
    problem = make_problem(structure, budgets, round_to=config.round_to, max_sparsity=config.max_sparsity)
    score = as_evaluator(evaluate, autocast=config.bf16)
    watch.stage("dense score")
    dense = _score_of(score, model, "dense")
    watch.dense(dense)
    watch.stage("calibration")
    batches = limited(calibration, config.calibration_images)
    gathered = calibrate(model, structure, batches, seed=config.seed)
    watch.stage("ranking and reconstruction")
    pruner = Pruner(model, structure, gathered, ranking=config.ranking, reconstruct=config.reconstruct)
    scorer = PolicyScorer(pruner, score, limited(batches, config.bn_images))
    return Job(model, example_input, config, structure, certificate, problem, scorer, dense, dict(gathered.skipped))


def _score_of(score: Evaluate, model: nn.Module, which: str) -> float:
    """Score in eval mode, all modes restored; EvaluationError if the user's function raises."""
    try:
        with evaluating(model):
            return score(model)
    except AmcError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise EvaluationError(
            f"evaluate fails on the {which} network ({type(error).__name__}: {reason[0] if reason else ''}); "
            "it must return a number for any network of this class"
        ) from error


def limited(batches: Iterable[Any], images: int) -> list[Tensor]:
    """The first `images` images, as batches of tensors kept in memory; labels are dropped."""
    kept: list[Tensor] = []
    left = images
    for batch in batches:
        if left <= 0:
            break
        part = batch[0] if isinstance(batch, (list, tuple)) else batch
        if not isinstance(part, Tensor):
            raise DataError(f"a calibration batch is a {type(part).__name__}; give tensors, or (images, labels)")
        kept.append(part[:left])
        left -= len(kept[-1])
    return kept


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
    best = found[config.agent].best
    watch.stage("result")
    slim = job.scorer.build(best.keep)
    policy = job.scorer.pruner.policy(best.keep)
    summary = _summary(job, slim, best, found, run, test)
    _check_budget(job, slim)
    if run is not None:
        run.write_bytes(rundir.MODEL, safetensors.torch.save(state_of(slim)))
        run.write_json(rundir.POLICY, policy.to_json())
        run.write_json(rundir.SUMMARY, summary)
        render_report(run)
    return Result(slim, policy, summary, job.structure, found[config.agent])


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
    )


def _journal(name: str, main: str) -> str:
    return rundir.JOURNAL if name == main else rundir.baseline_journal(name)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def _check_budget(job: Job, slim: nn.Module) -> None:
    """The promise: the recounted network holds the budget. A failure here is a fault of ours."""
    counted = {Metric.MACS: count_macs(slim, job.example_input), Metric.PARAMS: count_params(slim)}
    for budget in job.problem.budgets:
        limit = job.problem.limit(budget)
        if counted[budget.metric] > limit:
            raise RuntimeError(f"{budget} broken: {counted[budget.metric]} {budget.metric} > {limit:.0f}")


def _summary(
    job: Job,
    slim: nn.Module,
    best: EpisodeRecord,
    found: Mapping[str, SearchResult],
    run: RunDir | None,
    test: Any,
) -> dict[str, Any]:
    config = job.config
    origin = run.config() if run else {}
    dense = {"macs": count_macs(job.model, job.example_input), "params": count_params(job.model)}
    small = {"macs": count_macs(slim, job.example_input), "params": count_params(slim)}
    result: dict[str, Any] = {
        "amc_version": amc_version(),
        "model": origin.get("model", type(job.model).__name__),
        "data": origin.get("data"),
        "budget": config.budget,
        "method": config.method,
        "agent": config.agent,
        "episodes": len(found[config.agent].episodes),
        "failed_episodes": found[config.agent].failed,
        "seed": config.seed,
        "seconds": round(_seconds(run, config.agent), 1) if run else None,
        "dense": {**dense, "score": job.dense_score},
        "slim": {**small, "score": best.score},
        "baselines": _baselines(found, config.agent),
        "groups": [
            {"name": group.name, "size": group.size, "kept": count}
            for group, count in zip(job.structure.groups, best.keep, strict=True)
        ],
        "locked": [{"name": item.name, "size": item.size, "reason": str(item.lock)} for item in job.structure.locked],
        "certificate": _certificate(job.certificate),
        "environment": environment(),
    }
    if test is not None:
        result["dense"]["test"] = _score_of(test, job.model, "dense")
        result["slim"]["test"] = _score_of(test, slim, "slim")
    return result


def _baselines(found: Mapping[str, SearchResult], main: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, result in found.items():
        if name != main:
            scores = [record.score for record in result.episodes if record.score is not None]
            out[name] = {
                "score": result.best.score,
                "macs": result.best.cost.get("macs"),
                "median": float(np.median(scores)),
                "episodes": len(result.episodes),
            }
    return out


def _certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {
        "keep_sets": certificate.keep_sets,
        "worst_error": certificate.worst_error,
        "locked": [name for name, _ in certificate.failed],
    }


def _seconds(run: RunDir, agent: str) -> float:
    """Scoring and agent time of the main search, over all its sessions."""
    lines = run.read_jsonl(rundir.TIMINGS)
    return sum(sum(line["seconds"].values()) for line in lines if line["agent"] == agent)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor contiguous and with memory of its own, as safetensors wants it."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights: a resumed search must have the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_run(
    run_dir: str | Path, model: nn.Module | None = None, example_input: Any = None, *, finetuned: bool = True
) -> nn.Module:
    """The slim network of a run, ready to use: the fine-tuned one if there is one and `finetuned`.

    Without `model`, the dense network is built as the run's config.json says (a zoo name or factory); a run
    that began in Python with a network of your own needs `model` (any weights) and `example_input`.
    """
    run = RunDir.open(run_dir)
    if model is None:
        model, example_input = _original(run)
    policy = Policy.from_json(run.read_json(rundir.POLICY))
    slim = apply_policy(model, example_input, policy)
    name = rundir.MODEL_FINETUNED if finetuned and run.has(rundir.MODEL_FINETUNED) else rundir.MODEL
    from amc.zoo import load_weights

    load_weights(slim, run.file(name))
    return slim.eval()


def _original(run: RunDir) -> tuple[nn.Module, Any]:
    """The dense network of config.json, with random weights, and an example for it."""
    from amc.zoo import create_model

    config = run.config()
    if not config.get("model"):
        raise RunError(
            f"'{run.path}' was made from a network in Python; load it with load_run(run, model, example_input)"
        )
    model = create_model(config["model"], **config.get("model_args", {}))
    return model, torch.zeros(1, *config["input_shape"])


def amc_version() -> str:
    try:
        return version("amc-compress")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


__all__ = ["Observer", "Result", "SearchConfig", "compress", "load_run", "prepare"]
