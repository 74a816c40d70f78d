"""The preparation of a search: structure, certificate, calibration, ranking, reconstruction, and the dense score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from amc.compression.latency import aligned, guarded, latency_of
from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import Evaluate, Evaluator, PairedEvaluator, as_evaluator, score_of, scored_on
from amc.compression.scoring.metrics import tally
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.selection.by_confidence import check_resolution
from amc.compression.settings import SearchConfig
from amc.deploy.table import Bench, Latency, open_bench
from amc.errors import EvaluationError
from amc.pruning import Calibration, calibrate
from amc.pruning.methods import Method, create_method, problem_of
from amc.recovery.kernels import slow_bfloat16
from amc.run.provenance import data_fingerprint, execution
from amc.run.settings.scores import get_score
from amc.search import (
    Metric,
    Problem,
    RewardFunction,
    SmallestWithin,
    check_costs,
    get_reward,
    rewarded_metric,
)
from amc.structure import Certificate, Structure, inspect
from amc.structure.batches import Reader, limited
from amc.structure.copying import copy_model
from amc.structure.modes import device_of

DEFAULT_RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Inputs:
    """The user's inputs to a search, besides its settings; `amc.compress` describes each."""

    model: nn.Module
    example_input: Any
    calibration: Iterable[Any]
    evaluate: Any
    test: Any = None
    reward: RewardFunction | None = None  # the caller's own function; None: the one that the settings name


@dataclass(frozen=True)
class Job:
    """A search that is ready to run."""

    model: nn.Module
    example_input: Any
    config: SearchConfig
    structure: Structure
    certificate: Certificate | None
    method: Method
    problem: Problem
    scorer: PolicyScorer
    dense_score: float
    reward: RewardFunction
    confirm: PairedEvaluator | None  # with max_drop: on images that the search never scores
    warnings: tuple[str, ...]
    latency: Latency | None = None  # if it is among the costs
    origin: Mapping[str, Any] = field(default_factory=dict)  # as in `amc.search.JournalContent`


def prepare(
    inputs: Inputs, config: SearchConfig, observer: Observer | None = None, *, table: Path | None = None
) -> Job:
    """Everything before the first episode; the cheap checks of the user's input come first.

    `table`: the latency table of the run that is resumed.
    """
    watch, warnings = observer or Observer(), list[str]()
    model, example_input = inputs.model, inputs.example_input

    def warn(text: str) -> None:
        warnings.append(text)
        watch.warning(text)

    tally(get_score(config.score))  # refuses a score whose package is not installed
    reward = inputs.reward or get_reward(config.reward)
    watch.stage("structure")
    method = create_method(
        config.method, model, inspect(model, example_input), config.method_options, lock=config.lock, only=config.only
    )
    watch.stage("check of the structure")
    method, certificate = method.checked(example_input, keep_sets=config.keep_sets)
    structure = method.structure
    watch.structure(structure, certificate)
    rewarded = config.metric if config.max_drop is not None else rewarded_metric(reward)
    problem, latency = _problem(model, structure, example_input, method, config, rewarded, table, watch, warn)
    check_costs(reward, problem.policy_costs(problem.dense.tolist()))
    score = as_evaluator(inputs.evaluate, autocast=config.bf16, score=config.score, example_input=example_input)
    seen = data_fingerprint(score.held) if isinstance(score, Evaluator) and score.held else None
    slow = slow_bfloat16(device_of(model)) if config.bf16 else None
    if slow:
        warn(slow)
    watch.stage("dense score")
    whole = copy_model(model)  # never run the network to slice: a forward may store state in it
    score, confirm, dense = _scorers(whole, score, config)
    watch.dense(get_score(config.score).named(dense))
    for warning in _near_chance(score, whole, dense):
        warn(warning)
    if config.max_drop is not None:
        reward = SmallestWithin(config.max_drop / 100, dense, config.metric, config.confidence)
        if confirm is not None:
            check_resolution(reward, confirm.images, "confirmation")
        elif not 0 <= dense <= 1:
            raise EvaluationError(
                f"max_drop is in points of accuracy, and the dense network scores {dense:.4g}: "
                "let evaluate return a share between 0 and 1"
            )
    watch.stage("calibration")
    reader = Reader.of(example_input)
    batches = limited(inputs.calibration, config.calibration_images, reader)
    gathered = calibrate(model, structure, batches, layers=method.calibrated(), seed=config.seed)
    for warning in (*method.warnings(), *_warnings(gathered)):
        warn(warning)
    watch.stage("ranking and reconstruction")
    again = limited(batches, config.bn_images or 0, reader)
    scorer = PolicyScorer(method.builder(gathered), score, again, dense=problem.dense.tolist())
    return Job(
        model, example_input, config, structure, certificate, method, problem, scorer, dense, reward, confirm,
        tuple(warnings), latency, _origin(dense, batches, seen),
    )  # fmt: skip


def _origin(dense: float, calibration: Any, search: str | None) -> dict[str, Any]:
    """The machine, the dense score and the data of this session, for the journal. `search`: digest, None if unknown."""
    data = {"calibration": data_fingerprint(calibration), "search": search}
    return {"environment": execution(), "dense_score": float(dense), "data": data}


def _problem(
    model: nn.Module, structure: Structure, example_input: Any, method: Method, config: SearchConfig,
    rewarded: Metric | None, table: Path | None, watch: Observer, warn: Callable[[str], None],
) -> tuple[Problem, Latency | None]:  # fmt: skip
    """The search problem, with the latency among its costs if requested. Calls `warn` about its table."""
    if not config.times_latency:
        return problem_of(method, config.budgets, rewarded), None
    problem_of(method, tuple(b for b in config.budgets if b.metric is not Metric.LATENCY))  # before anything is timed
    decisions = aligned(method.decisions, config.round_to)
    watch.stage("latency table")
    latency = latency_of(
        model, structure, example_input, decisions, method.builder(None).build, bench_of(config),
        budgets=config.budgets, stored=table, warn=warn,
    )  # fmt: skip
    budgets = guarded(config.budgets, latency)
    costs = {Metric.LATENCY: latency.cost}
    return problem_of(method, budgets, rewarded, decisions=decisions, measured=costs), latency


def bench_of(config: SearchConfig) -> Bench:
    """The bench that times networks for this search."""
    token = None if config.token_file is None else Path(config.token_file)
    runtime = config.runtime or DEFAULT_RUNTIME
    return open_bench(runtime, threads=config.latency_threads, device_url=config.device_url, token_file=token)


def _scorers(model: nn.Module, score: Evaluate, config: SearchConfig) -> tuple[Evaluate, PairedEvaluator | None, float]:
    """The evaluator of the search, the one that confirms its result on other images, and the dense network's score.

    Only `max_drop` divides the images: a bound on the loss holds only on images that did not choose the network.
    """
    if config.max_drop is None or not isinstance(score, Evaluator):
        return score, None, score_of(score, model, "dense")
    halves = score.halves()
    searched, confirm = (scored_on("dense", partial(PairedEvaluator, half, model)) for half in halves)
    return searched, confirm, searched.dense_score


def _warnings(calibration: Calibration) -> Iterator[str]:
    scarce = calibration.scarcest()
    if scarce is not None:
        name, gram = scarce
        yield (
            f"few calibration samples: layer {name} has {gram.matrix.shape[-1]} inputs and only {gram.samples} "
            "samples, so its fit is regularised more strongly; more calibration images would give a better network"
        )


def _near_chance(score: Evaluate, model: nn.Module, dense: float) -> list[str]:
    """A warning unless the dense network scores better than guessing by two standard errors."""
    evaluator = score.evaluator if isinstance(score, PairedEvaluator) else score
    if not isinstance(evaluator, Evaluator):
        return []
    chance = evaluator.chance(model)
    if chance is None or dense > chance + 2 * math.sqrt(chance * (1 - chance) / len(evaluator)):
        return []
    return [
        f"the dense network scores {dense:.4g}, which may be chance ({chance:.4g}): check its weights, the order of "
        "the classes and the normalisation of the images"
    ]
