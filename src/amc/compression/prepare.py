"""The preparation of a search: structure, certificate, calibration, ranking, reconstruction, and the dense score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from amc.compression.inputs import Inputs
from amc.compression.job import Confirm, Job, costs_of
from amc.compression.latency import aligned, guarded, latency_of
from amc.compression.observer import Observer
from amc.compression.prepared import Prepared, key_of, read, write
from amc.compression.scoring.batchnorm import statistics_on
from amc.compression.scoring.engine.base import Engine
from amc.compression.scoring.engine.choice import TORCH, Task, choose_engine
from amc.compression.scoring.evaluator import (
    BesideDense,
    Evaluate,
    Evaluator,
    PairedEvaluator,
    heard,
    score_of,
    scored_on,
)
from amc.compression.scoring.metrics import tally
from amc.compression.scoring.moments import moments_on
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.cluster import check_cluster
from amc.compression.scoring.workers.processes import check_memory
from amc.compression.selection.by_confidence import check_resolution
from amc.compression.settings import SearchConfig
from amc.deploy.table import Bench, Latency, open_bench
from amc.errors import EvaluationError, RunError
from amc.pruning import Calibration, Pruner, calibrate
from amc.pruning.methods import CHANNEL, Builder, Method, create_method, problem_of
from amc.pruning.ranking import Order
from amc.recovery.distances import CheckedLoss
from amc.recovery.distillation import checked_loss
from amc.run.provenance import execution
from amc.run.settings.scores import get_score
from amc.run.weights import digest
from amc.search import (
    CostFunction,
    Metric,
    Problem,
    RewardFunction,
    SmallestWithin,
    check_costs,
    get_reward,
    rewarded_metric,
)
from amc.structure import Certificate, inspect
from amc.structure.batches import Reader, limited
from amc.structure.copying import copy_model
from amc.structure.modes import device_of
from amc.structure.trace import Example

T = TypeVar("T")

DEFAULT_RUNTIME = "onnxruntime"
SEARCH_SHARE = 3 / 4  # of the images to score on that the search scores; the finalists are compared on the others
LEAST_UNSEEN = 100  # images, below which none are set aside for the finalists


def prepare(
    inputs: Inputs,
    config: SearchConfig,
    observer: Observer | None = None,
    *,
    table: Path | None = None,
    engine: str | None = None,
    kept: Path | None = None,
) -> Job:
    """Everything before the first episode; the cheap checks of the user's input come first.

    `table`: the latency table of the run that is resumed; `engine`: the name of its engine. `kept`: the file that keeps
    what is prepared for resuming (`amc.compression.prepared`).
    """
    inputs = inputs.of_part(config.part)
    return _Preparation(inputs, config, observer or Observer(), engine, kept).job(table)


@dataclass(frozen=True)
class _Dense:
    """The dense network's score, and the evaluator that scores the others."""

    score: Evaluate
    value: float
    confirm: Confirm | None  # as in `Job`
    images: str | None  # digest of the images that are scored; None if unknown


@dataclass(frozen=True)
class _Calibrated:
    """The calibration, and what it was computed on."""

    batches: Sequence[Example]
    digest: str  # of the batches
    calibration: Calibration
    key: str | None  # as in `Prepared`
    orders: Mapping[str, Order] | None = None  # as in `Prepared`, of an earlier session


@dataclass(frozen=True)
class _Preparation:
    """The steps of `prepare`, in order."""

    inputs: Inputs
    config: SearchConfig
    watch: Observer
    engine: str | None = None  # as in `prepare`
    kept: Path | None = None  # as in `prepare`
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def earlier(self) -> Prepared:
        """What an earlier session has kept."""
        try:
            return Prepared() if self.kept is None else read(self.kept)
        except RunError as error:
            self.watch.warning(f"{error}: what it held is computed again")
            return Prepared()

    def job(self, table: Path | None) -> Job:
        """The search, ready to run."""
        inputs, config = self.inputs, self.config
        tally(get_score(config.score))  # refuses a score whose package is not installed
        if config.ray is not None:
            check_cluster(config.ray)
        elif config.workers is not None:
            check_memory(config.workers)
        reward = inputs.reward or get_reward(config.reward)
        method, certificate, structure_key = self.method()
        in_whole = inputs.in_whole(method, config.count)
        problem, latency = self.problem(method, costs_of(in_whole), reward, table)
        check_costs(reward, problem.policy_costs(problem.dense.tolist()))
        dense = self.dense(method.structure.macs)
        if config.max_drop is not None:
            reward = self.smallest(config.max_drop, dense)
        calibrated = self.calibrated(method)
        loss = self.distill_loss(calibrated.batches)
        scorer = self.scorer(method, problem, dense.score, calibrated)
        self.keep(structure_key, certificate, calibrated, scorer.builder)
        origin = {
            "environment": self.environment(scorer.engine),
            "dense_score": float(dense.value),
            "data": {"calibration": calibrated.digest, "search": dense.images},
        }
        return Job(
            inputs.model, inputs.example_input, config, method.structure, certificate, method, problem, scorer,
            dense.value, reward, dense.confirm, tuple(self.warnings), calibrated.batches, latency, origin,
            loss, inputs.agent, in_whole=in_whole,
        )  # fmt: skip

    def environment(self, engine: Engine) -> dict[str, Any]:
        """What decides the last digits of a score; plain torch goes without saying, as in earlier versions."""
        plain = engine.name == TORCH and not self.config.bf16
        place = execution(device_of(self.inputs.model))
        return place if plain else {**place, "engine": engine.name}

    def warn(self, text: str) -> None:
        """Show a warning, and keep it for the summary."""
        self.warnings.append(text)
        self.watch.warning(text)

    def method(self) -> tuple[Method, Certificate | None, str | None]:
        """The method without the groups that the certificate locks, the certificate, and the key of the structure."""
        inputs, config = self.inputs, self.config
        self.watch.stage("structure")
        structure = inspect(inputs.model, inputs.example_input, approximate=config.approximate)
        options, locks = config.method_options, {"lock": config.lock, "only": config.only}
        method = create_method(config.method, inputs.model, structure, options, **locks)
        self.watch.stage("check of the structure")
        key = self.key(structure=method.structure, keep_sets=config.keep_sets)
        known = self.earlier.certificate if self.earlier.structure_key == key else None
        method, certificate = method.checked(
            inputs.example_input, keep_sets=config.keep_sets, known=known, on_check=self.watch.stage_step
        )
        self.watch.structure(method.structure, certificate)
        if inputs.part is not None:
            for note in inputs.part.notes():
                self.warn(note)
            if config.method == CHANNEL:
                inputs.part.check(method.structure)
        return method, certificate, key

    def problem(
        self, method: Method, counted: Mapping[Metric, CostFunction], reward: RewardFunction, table: Path | None
    ) -> tuple[Problem, Latency | None]:
        """The search problem, with the latency among its costs if requested. `counted` replaces the method's costs."""
        inputs, config = self.inputs, self.config
        rewarded = config.metric if config.max_drop is not None else rewarded_metric(reward)
        if not config.times_latency:
            return problem_of(method, config.budgets, rewarded, measured=counted), None
        problem_of(method, tuple(b for b in config.budgets if b.metric is not Metric.LATENCY))  # before any timing
        decisions = aligned(method.decisions, config.round_to)
        self.watch.stage("latency table")
        latency = latency_of(
            inputs.model, method.structure, inputs.example_input, decisions, method.builder(None).build,
            bench_of(config), budgets=config.budgets, stored=table, warn=self.warn, on_step=self.watch.stage_step,
        )  # fmt: skip
        budgets, costs = guarded(config.budgets, latency), {Metric.LATENCY: latency.cost}
        return problem_of(method, budgets, rewarded, decisions=decisions, measured=costs), latency

    def dense(self, macs: int) -> _Dense:
        """The score of the dense network, with the engine that the search will use.

        Some of the images are set aside, to confirm the result of the search.
        """
        inputs, config = self.inputs, self.config
        score_name = config.score
        score = inputs.score(inputs.evaluate, score_name)
        images = score.fingerprint() if isinstance(score, Evaluator) else None
        self.watch.stage("dense score")
        whole = copy_model(inputs.model)  # never run the network to slice: a forward may store state in it
        if isinstance(score, Evaluator):
            score.fit_layout_(whole)
        if isinstance(score, Evaluator) and inputs.part is None:  # torch calls the whole network, whatever it does
            task = Task(whole, [batch for batch, _ in score.held], macs, others=config.bn_images or 0)
            choice = choose_engine(task, config.engine, bf16=config.bf16, recorded=self.engine)
            score = score.using(choice.engine)
            for warning in choice.warnings:
                self.warn(warning)
        if config.max_drop is not None and isinstance(score, Evaluator):
            searched, confirm = (self.compared(PairedEvaluator, half, whole) for half in score.divided(1 / 2))
            dense = _Dense(searched, searched.dense_score, confirm, images)
        elif isinstance(score, Evaluator) and leaves_images(config, len(score)):
            searching, rest = score.divided(SEARCH_SHARE)
            beside: Callable[..., Confirm] = PairedEvaluator if score.kind.per_image else BesideDense
            dense = self.beside(searching, whole, images, self.compared(beside, rest, whole))
        else:
            dense = self.beside(score, whole, images)
        self.watch.dense(get_score(score_name).named(dense.value))
        for warning in _near_chance(dense.score, whole, dense.value):
            self.warn(warning)
        return dense

    def beside(self, score: Evaluate, whole: nn.Module, images: str | None, confirm: Confirm | None = None) -> _Dense:
        """The dense score, and that of the others: with its standard error where single images are right or wrong."""
        if isinstance(score, Evaluator) and score.kind.per_image:
            score = self.compared(PairedEvaluator, score, whole)
            return _Dense(score, score.dense_score, confirm, images)
        with heard(score, self.watch.stage_step):
            return _Dense(score, score_of(score, whole, "dense"), confirm, images)

    def compared(self, kind: Callable[[Evaluator, nn.Module], T], score: Evaluator, whole: nn.Module) -> T:
        """The score with the dense network's own, which is measured now."""
        with heard(score, self.watch.stage_step):
            return scored_on("dense", partial(kind, score, whole))

    def smallest(self, max_drop: float, dense: _Dense) -> SmallestWithin:
        """The reward of `max_drop`. Raises AmcError if the images or the score cannot show so small a loss."""
        reward = SmallestWithin(max_drop / 100, dense.value, self.config.metric, self.config.confidence)
        if dense.confirm is not None:
            check_resolution(reward, dense.confirm.images, "confirmation")
        elif not 0 <= dense.value <= 1:
            raise EvaluationError(
                f"max_drop is in points of accuracy, and the dense network scores {dense.value:.4g}: "
                "let evaluate return a share between 0 and 1"
            )
        return reward

    def calibrated(self, method: Method) -> _Calibrated:
        """The calibration, from an earlier session if it fits."""
        inputs, config = self.inputs, self.config
        self.watch.stage("calibration")
        batches, data = inputs.batches(config.calibration_images, self.warn)
        weights = digest(inputs.model.state_dict())
        key = self.key(structure=method.structure, weights=weights, data=data, settings=config.deciding())
        if self.earlier.calibration_key == key:
            return _Calibrated(batches, data, self.earlier.calibration, key, self.earlier.orders)
        layers = method.calibrated()
        counted = _counted(batches, self.watch.stage_step)
        calibration = calibrate(inputs.model, method.structure, counted, layers=layers, seed=config.seed)
        return _Calibrated(batches, data, calibration, key)

    def distill_loss(self, batches: Sequence[Example]) -> CheckedLoss | None:
        """The caller's own loss of recovery. AmcError now, and not after the search, if it cannot be minimised."""
        loss = self.inputs.distill_loss
        if loss is None or self.config.recover == "none":
            return None
        return checked_loss(loss, copy_model(self.inputs.model), batches[0])

    def scorer(self, method: Method, problem: Problem, score: Evaluate, calibrated: _Calibrated) -> PolicyScorer:
        """The scorer of policies."""
        inputs, config = self.inputs, self.config
        for warning in (*method.warnings(), *_warnings(calibrated.calibration)):
            self.warn(warning)
        self.watch.stage("ranking and reconstruction")
        again = limited(calibrated.batches, config.bn_images or 0, Reader.of(inputs.example_input))
        norms = statistics_on(inputs.model, again) if again and config.bn_rule == "difference" else None
        builder = method.builder(calibrated.calibration, calibrated.orders, self.watch.stage_step)
        moments = moments_on(inputs.model, again[0]) if again and method.structure.approximate else None
        return PolicyScorer(builder, score, again, dense=problem.dense.tolist(), norms=norms, moments=moments)

    def key(self, **parts: Any) -> str | None:
        """The digest of what a kept part is computed from, and of where; None if nothing is kept."""
        return None if self.kept is None else key_of(environment=execution(device_of(self.inputs.model)), **parts)

    def keep(
        self, structure_key: str | None, certificate: Certificate | None, calibrated: _Calibrated, builder: Builder
    ) -> None:
        """Keep what resuming needs, unless it is kept already."""
        if self.kept is None or structure_key is None or calibrated.key is None:
            return
        known = self.earlier
        if (known.structure_key, known.calibration_key) == (structure_key, calibrated.key):
            return
        orders = builder.orders if isinstance(builder, Pruner) else {}
        write(self.kept, Prepared(structure_key, certificate, calibrated.key, calibrated.calibration, orders))


def _counted(batches: Sequence[Example], on_batch: Callable[[int, int], None]) -> Iterator[Example]:
    """The batches; `on_batch` hears of each, once it is used, how many were and of how many."""
    for number, batch in enumerate(batches, start=1):
        yield batch
        on_batch(number, len(batches))


def leaves_images(config: SearchConfig, images: int) -> bool:
    """Whether a search under a budget leaves some of its images to the comparison of its finalists."""
    return config.max_drop is None and config.finalists > 0 and images * (1 - SEARCH_SHARE) >= LEAST_UNSEEN


def bench_of(config: SearchConfig) -> Bench:
    """The bench that times networks for this search."""
    token = None if config.token_file is None else Path(config.token_file)
    runtime = config.runtime or DEFAULT_RUNTIME
    return open_bench(runtime, threads=config.latency_threads, device_url=config.device_url, token_file=token)


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
