"""A model of the score, learnt from scored policies: additive damages with an honest uncertainty.

A policy's damage is a sum over its groups, and over pairs of neighbouring groups, of terms with coefficients >= 0 that
are learnt. A link turns the score into the damage: the score itself, or its logarithm, whichever explains the scores
better. Terms that jump at a sparsity, and the distances between neighbours' sparsities, are there only if the scores
speak for them. The coefficients have a Bayesian posterior that counts the sampling error of every score and what the
model cannot explain. Additive errors of layers are an old idea (SPDY, arXiv 2201.13096, multiplies tables of them by
coefficients too); here scores fit the coefficients, and their uncertainty steers the search.

Pure: no torch, no files.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from amc.search.journal import EpisodeRecord
from amc.search.problem import BoolArray, FloatArray, IntArray, Problem

POWERS = ((1.0, 0.3), (2.0, 1.0), (4.0, 0.3))  # of a group's sparsity, each with the prior scale of its coefficient
EDGES = (0.4, 0.5, 0.6, 0.7, 0.8)  # sparsities above which a group may lose a constant: layers may collapse
EDGE = 0.2  # prior scale of what they lose there
WEAK = 0.3  # factor of these prior scales beside a table of errors
PAIR = 0.3  # prior scale of the product of two neighbours' sparsities
APART = 0.3  # prior scale of the distance between them: layers may have to agree
SCALES = np.geomspace(3e-3, 3.0, 11)  # of all coefficients, in units of the damage; the evidence chooses
MISFITS = np.array([0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1])  # standard deviation of what the model cannot explain; likewise
DOUBT = 3.0  # of log evidence that each kind of terms must bring which is not always used
ROUNDING = 1e-9  # of a sparsity
JITTER = 1e-9  # least variance of a damage
REFIT = 8  # records after which scale, misfit and link are chosen anew; of hundreds, for each full hundred
SAMPLES = 64  # posterior samples in an expectation


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries of linear algebra that are loaded; looking for them takes milliseconds."""
    return ThreadpoolController()


def _one_thread() -> AbstractContextManager[object]:
    """Sums then have a fixed order, and more threads do not speed up small matrices."""
    limit: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limit


class Damages:
    """The damage of every policy, for one set of coefficients."""

    def __init__(
        self, groups: FloatArray, pairs: FloatArray, apart: FloatArray | None = None, constant: float = 0.0
    ) -> None:
        """`groups` [groups, most choices]; `pairs`, `apart` [groups - 1]: of products and of distances; `constant`."""
        self.groups, self.apart = groups, np.zeros_like(pairs) if apart is None else apart
        self._pairs, self._constant = pairs, constant

    def of(self, index: IntArray, sparsity: FloatArray) -> FloatArray:
        """Damages [...] of policies. `index` [..., groups]: places among the choices; `sparsity` [..., groups]."""
        alone = self.groups[np.arange(len(self.groups)), index].sum(axis=-1)
        left, right = sparsity[..., :-1], sparsity[..., 1:]
        return np.asarray(self._constant + alone + (left * right) @ self._pairs + np.abs(left - right) @ self.apart)


class _Terms(NamedTuple):
    """The terms that are used only if the scores speak for them."""

    edges: bool  # of single groups
    apart: bool  # the distances between neighbours


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the evidence chooses."""

    logarithmic: bool  # the link, as in `_Fit`
    terms: _Terms
    scale: float  # of the prior
    misfit: float  # standard deviation


@dataclass(frozen=True, slots=True)
class _Fit:
    """The posterior of the coefficients."""

    logarithmic: bool  # the link: damage = -log(score / reference), or reference - score
    reference: float
    misfit: float  # standard deviation
    used: BoolArray  # the terms of the model, of all that there are
    features: FloatArray  # of the records [N, P]; P: the number of used terms
    prior: FloatArray  # standard deviations of the coefficients [P]
    damage: FloatArray  # of the records [N]
    variance: FloatArray  # of `damage` around the model [N]
    factor: FloatArray  # upper triangular [P, P]: factor.T @ factor is the posterior precision


class ScoreModel:
    """Learns from records; gives samples of the damages, and expected scores."""

    def __init__(
        self, problem: Problem, *, dense_score: float | None = None, errors: Sequence[FloatArray] = ()
    ) -> None:
        """`dense_score`: of the network before pruning. `errors`: see `SearchTask.errors`."""
        self._problem, self._dense = problem, dense_score
        self._groups = len(problem.decisions)
        self._index = [{k: place for place, k in enumerate(d.choices)} for d in problem.decisions]
        self._basis = [_basis(1 - np.array(d.choices) / d.size) for d in problem.decisions]
        if errors:
            self._basis = [np.column_stack([b, e]) for b, e in zip(self._basis, errors, strict=True)]
        powers = [scale * (WEAK if errors else 1.0) for _, scale in POWERS]
        edges = np.repeat([False, True, False], [len(POWERS), len(EDGES), bool(errors)])
        prior = [*powers, *[EDGE] * len(EDGES), *([1.0] if errors else [])]
        constant = [1.0, 1.0]  # of both signs: the reference may be too low or too high
        neighbours = np.repeat([PAIR, PAIR, APART], self._groups - 1)
        self._prior = np.concatenate([np.tile(prior, self._groups), neighbours, constant])
        self._edges = np.concatenate([np.tile(edges, self._groups), np.zeros(len(neighbours) + 2, dtype=bool)])
        self._apart = np.zeros_like(self._edges)
        self._apart[-(self._groups - 1) - 2 : -2] = True
        self._records: list[EpisodeRecord] = []
        self._rows: list[FloatArray] = []
        self._chosen: _Choice | None = None
        self._judged = 0  # how many records there were when it was chosen

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: EpisodeRecord) -> None:
        """Learn a scored policy. Records without a score are skipped."""
        if record.score is not None:
            self._records.append(record)
            self._rows.append(self._features(record.keep))

    def fit(self) -> Posterior:
        """The posterior from all records so far; there must be one at least."""
        with _one_thread():
            return Posterior(self, self._fitted())

    def _fitted(self) -> _Fit:
        features, count = np.array(self._rows), len(self._records)
        step = REFIT * max(1, count // 100)
        if self._chosen is None or count // step > self._judged // step:  # batches may skip a multiple
            self._chosen, self._judged = self._most_evident(features), count
        chosen = self._chosen
        reference, damage, noise = self._damages(chosen.logarithmic)
        variance = noise + chosen.misfit**2
        used = self._used(chosen.terms)
        features, prior = features[:, used], chosen.scale * self._prior[used]
        precision = features.T / variance @ features + np.diag(1 / prior**2)
        factor = np.asarray(np.linalg.cholesky(precision).T)
        return _Fit(
            chosen.logarithmic, reference, chosen.misfit, used, features, prior, damage, variance, factor
        )  # fmt: skip

    def _used(self, terms: _Terms) -> BoolArray:
        """The terms of the model, of all that there are."""
        return ~(self._edges & (not terms.edges)) & ~(self._apart & (not terms.apart))

    def _most_evident(self, features: FloatArray) -> _Choice:
        """The choice with the largest marginal likelihood of the scores, coefficients of either sign."""
        weighted = features * self._prior
        columns = {
            terms: weighted[:, self._used(terms)]
            for terms in itertools.starmap(_Terms, itertools.product((False, True), repeat=2))
        }
        best, found = (
            -math.inf,
            _Choice(False, _Terms(False, False), float(SCALES[len(SCALES) // 2]), float(MISFITS[1])),
        )
        for logarithmic, terms in itertools.product((False, True), columns):
            if logarithmic and not self._positive():
                continue
            _, damage, noise = self._damages(logarithmic)
            doubt = DOUBT * sum(terms)
            slope = sum(math.log(record.score or 1.0) for record in self._records) if logarithmic else 0.0
            spread = max(float(np.abs(damage).max()), 1e-6)  # scores have any unit: scale and misfit follow theirs
            scales, misfits = SCALES * spread, MISFITS * spread
            table = np.array([_evidences(columns[terms], scales, damage, noise + misfit**2) for misfit in misfits])
            scale, misfit = np.unravel_index(np.argmax(table.T), table.T.shape)  # of equal ones the least scale
            evidence = float(table[misfit, scale]) - slope - doubt
            if evidence > best:
                best = evidence
                found = _Choice(logarithmic, terms, float(scales[scale]), float(misfits[misfit]))
        return found

    def _positive(self) -> bool:
        scores = [record.score or 0.0 for record in self._records]
        return min(scores) > 0 and (self._dense is None or self._dense > 0)

    def _damages(self, logarithmic: bool) -> tuple[float, FloatArray, FloatArray]:
        """The reference, the damages of the records [N], and the variance of their sampling error [N]."""
        scores = np.array([record.score for record in self._records], dtype=np.float64)
        errors = np.array([record.standard_error or 0.0 for record in self._records])
        reference = float(scores.max()) if self._dense is None else self._dense
        if logarithmic:
            return reference, -np.log(scores / reference), (errors / scores) ** 2 + JITTER
        return reference, reference - scores, errors**2 + JITTER * max(1.0, float(np.abs(scores).max())) ** 2

    def _features(self, keep: Sequence[int]) -> FloatArray:
        """One row [P]: every group's terms, the neighbours', and the constant with both signs."""
        index = [places[k] for places, k in zip(self._index, keep, strict=True)]
        alone = np.concatenate([basis[place] for basis, place in zip(self._basis, index, strict=True)])
        sparsity = 1 - np.array(keep) / self._problem.dense
        pairs, apart = sparsity[:-1] * sparsity[1:], np.abs(np.diff(sparsity))
        return np.concatenate([alone, pairs, -pairs, apart, [1.0, -1.0]])


class Posterior:
    """The coefficients that the records allow."""

    def __init__(self, model: ScoreModel, fit: _Fit) -> None:
        self._model, self._fit = model, fit
        self._records = tuple(model._records)  # the model may learn more

    def sample(self, generator: np.random.Generator, temperature: float = 1.0) -> Damages:
        """The damages for one draw of the coefficients; at temperature 0, for the likeliest ones.

        The draw minimises a randomly perturbed sum of squares with coefficients >= 0. Without that limit it would be
        an exact draw from the posterior (randomise, then optimise).
        """
        return self._model_damages(self._coefficients(generator, temperature))

    def expected(self) -> list[tuple[EpisodeRecord, float, float]]:
        """Every record with the expected score of its policy, and a standard deviation of it.

        The model's prediction, moved towards the record's own score by the share of the residual that is not
        sampling error.
        """
        fit = self._fit
        generator = np.random.default_rng(0)
        drawn = np.stack([fit.features @ self._coefficients(generator, 1.0) for _ in range(SAMPLES)])
        mean, share = drawn.mean(axis=0), fit.misfit**2 / fit.variance
        value = mean + share * (fit.damage - mean)
        deviation = np.sqrt(drawn.var(axis=0) * (1 - share) ** 2 + share * (fit.variance - fit.misfit**2))
        scores = self.score_of(value)
        spread = deviation * (scores if fit.logarithmic else 1.0)
        return list(zip(self._records, scores.tolist(), spread.tolist(), strict=True))

    def score_of(self, damage: FloatArray) -> FloatArray:
        """The score of a damage [...]."""
        reference = self._fit.reference
        return np.asarray(reference * np.exp(-damage) if self._fit.logarithmic else reference - damage)

    def _coefficients(self, generator: np.random.Generator, temperature: float) -> FloatArray:
        """A draw [P], >= 0."""
        fit, prior = self._fit, self._fit.prior
        damage = fit.damage + temperature * np.sqrt(fit.variance) * generator.standard_normal(len(fit.damage))
        centre = temperature * prior * generator.standard_normal(len(prior))
        from scipy.optimize import nnls  # here: it takes a while to import, and short searches need none

        with _one_thread():
            right = fit.features.T @ (damage / fit.variance) + centre / prior**2
            target = np.linalg.solve(fit.factor.T, right)
            try:
                return np.asarray(nnls(fit.factor, target, maxiter=30 * len(prior))[0])
            except RuntimeError:  # no convergence: rare, and one draw among many
                return np.asarray(np.maximum(np.linalg.solve(fit.factor, target), 0.0))

    def _model_damages(self, coefficients: FloatArray) -> Damages:
        model, groups = self._model, self._model._groups
        terms = model._basis[0].shape[1]
        used, coefficients = coefficients, np.zeros(len(self._fit.used))
        coefficients[self._fit.used] = used
        each = coefficients[: groups * terms].reshape(groups, terms)
        tables = [basis @ row for basis, row in zip(model._basis, each, strict=True)]
        more, less, apart = coefficients[groups * terms : -2].reshape(3, groups - 1)
        widest = max(map(len, tables))
        padded = np.stack([np.pad(table, (0, widest - len(table))) for table in tables])
        return Damages(padded, more - less, apart, float(coefficients[-2] - coefficients[-1]))


def _basis(sparsity: FloatArray) -> FloatArray:
    """The terms [choices, terms] of a group: powers, then edges."""
    powers = [sparsity**power for power, _ in POWERS]
    return np.stack([*powers, *(np.where(sparsity > edge + ROUNDING, 1.0, 0.0) for edge in EDGES)], axis=1)


def _evidences(columns: FloatArray, scales: FloatArray, damage: FloatArray, variance: FloatArray) -> FloatArray:
    """Log marginal likelihoods [scales] of damages [N], up to a constant.

    For each scale s their covariance is s² `columns` `columns`ᵀ + diag(`variance`), with `columns` [N, P].
    """
    if len(damage) > columns.shape[1]:
        return _evidences_of_many(columns, scales, damage, variance)
    kernel = columns @ columns.T
    return np.array([_evidence(kernel * scale**2, damage, variance) for scale in scales])


def _evidence(kernel: FloatArray, damage: FloatArray, variance: FloatArray) -> float:
    """Log marginal likelihood of damages [N] with covariance `kernel` + diag(`variance`), up to a constant."""
    try:
        factor = np.linalg.cholesky(kernel + np.diag(variance))
    except np.linalg.LinAlgError:  # no digits are left
        return -math.inf
    whitened = np.linalg.solve(factor, damage)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())


def _evidences_of_many(columns: FloatArray, scales: FloatArray, damage: FloatArray, variance: FloatArray) -> FloatArray:
    """The same for more records than terms, in time N P² instead of N³: one decomposition [P, P] for all scales."""
    deviation = np.sqrt(variance)
    white, target = columns / deviation[:, None], damage / deviation
    values, vectors = np.linalg.eigh(white.T @ white)
    projected = vectors.T @ (white.T @ target)
    grown = 1 + scales[:, None] ** 2 * np.maximum(values, 0.0)
    explained = (scales[:, None] ** 2 * projected**2 / grown).sum(axis=1)
    return np.asarray(-0.5 * (target @ target - explained + np.log(variance).sum() + np.log(grown).sum(axis=1)))
