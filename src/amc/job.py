"""A search made ready: structure, certificate, calibration, ranking, reconstruction, and the dense score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from amc.config import SearchConfig
from amc.errors import AmcError, DataError, EvaluationError
from amc.evaluation import as_evaluator
from amc.modes import evaluating
from amc.problem import make_problem
from amc.pruning import Pruner, calibrate
from amc.scoring import Evaluate, PolicyScorer
from amc.search import EpisodeRecord, EpisodeTiming, Problem, parse_budgets
from amc.structure import Certificate, Structure, certify, inspect, restrict


@dataclass(frozen=True, slots=True)
class Observer:
    """What the caller wants to hear while the job runs; every hook may be left out."""

    stage: Callable[[str], None] = lambda _: None
    structure: Callable[[Structure, Certificate | None], None] = lambda *_: None
    dense: Callable[[float], None] = lambda _: None
    episode: Callable[[str, EpisodeRecord, EpisodeTiming], None] = lambda *_: None  # agent, record, timing


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
    dense = score_of(score, model, "dense")
    watch.dense(dense)
    watch.stage("calibration")
    batches = limited(calibration, config.calibration_images)
    gathered = calibrate(model, structure, batches, seed=config.seed)
    watch.stage("ranking and reconstruction")
    pruner = Pruner(model, structure, gathered, ranking=config.ranking, reconstruct=config.reconstruct)
    scorer = PolicyScorer(pruner, score, limited(batches, config.bn_images))
    return Job(model, example_input, config, structure, certificate, problem, scorer, dense)


def score_of(score: Evaluate, model: nn.Module, which: str) -> float:
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
