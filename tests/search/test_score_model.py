"""The model of the score: against the scores it cannot know, a least-squares oracle, and its own uncertainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from amc.search import Metric, Problem, SearchTask, create_agent, search
from amc.search.score_model import MISFITS, SCALES, ScoreModel, _Choice, _evidences, _Terms
from amc.search.statistics import Measured
from tests.search.landscapes import TOYS
from tests.search.toys import chain_problem, record_of, residual_problem


def learnt(problem, score, count, *, seed=0, dense=True, errors=()):
    """A model of `count` random policies' scores, and the records."""
    agent = create_agent("random", SearchTask(problem, count, seed))
    records = search(problem, score, agent, episodes=count, seed=seed).episodes
    known = score(tuple(problem.dense.tolist())) if dense else None
    model = ScoreModel(problem, dense_score=known, errors=errors)
    for record in records:
        model.add(record)
    return model, records


def noisy(score, images):
    """The share of right answers among `images`, the same for the same policy."""

    def measured(keep):
        value = score(keep)
        right = np.random.default_rng(keep).binomial(images, value) / images
        return Measured(right, math.sqrt(right * (1 - right) / images))

    return measured


def unseen(problem, count=200):
    agent = create_agent("random", SearchTask(problem, count, 99))
    return [r.keep for r in search(problem, lambda keep: 0.5, agent, episodes=count, seed=99).episodes]


def predicted(model, problem, policies):
    """Expected scores of other policies, from the likeliest damages."""
    posterior = model.fit()
    damages = posterior.sample(np.random.default_rng(0), 0.0)
    keep = np.array(policies)
    index = np.stack([np.searchsorted(d.choices, keep[:, i]) for i, d in enumerate(problem.decisions)], axis=-1)
    return posterior.score_of(damages.of(index, 1 - keep / problem.dense))


@pytest.mark.parametrize("dense", [True, False], ids=["dense known", "dense unknown"])
@pytest.mark.parametrize("make", [residual_problem, chain_problem])
def test_it_predicts_scores_it_has_not_seen(make, dense: bool) -> None:
    problem, score = make()
    model, _ = learnt(problem, score, 120, dense=dense)
    policies = unseen(problem)
    true = np.array([score(keep) for keep in policies])
    error = predicted(model, problem, policies) - true
    assert np.sqrt(np.mean(error**2)) < 0.15 * true.std()


@pytest.mark.parametrize("images", [500, 2000])
def test_an_expected_score_is_nearer_to_the_truth_than_the_score(images: int) -> None:
    problem, score = residual_problem(9)
    model, records = learnt(problem, noisy(score, images), 100)
    true = np.array([score(record.keep) for record in records])
    seen = np.array([record.score for record in records])
    expected = {record.episode: value for record, value, _ in model.fit().expected()}
    better = np.array([expected[record.episode] for record in records])
    assert np.mean((better - true) ** 2) < 0.4 * np.mean((seen - true) ** 2)


def test_its_uncertainty_is_honest() -> None:
    """About two thirds of the true scores lie within one standard deviation, nearly all within three."""
    within = []
    for seed in range(6):
        problem, score = residual_problem(9, seed=seed)
        model, _ = learnt(problem, noisy(score, 1000), 60, seed=seed)
        for record, value, deviation in model.fit().expected():
            within.append(abs(value - score(record.keep)) / deviation)
    assert 0.5 < np.mean(np.array(within) < 1) < 0.9
    assert np.mean(np.array(within) < 3) > 0.95


@pytest.mark.parametrize("scale", [1.0, -1.0, 250.0], ids=["accuracies", "negative scores", "another unit"])
def test_scores_may_have_any_unit(scale: float) -> None:
    problem, score = residual_problem(9)

    def other(keep):
        return score(keep) - 2.0 if scale < 0 else scale * score(keep)

    model, _ = learnt(problem, other, 100)
    policies = unseen(problem)
    true = np.array([other(keep) for keep in policies])
    error = predicted(model, problem, policies) - true
    assert np.sqrt(np.mean(error**2)) < 0.15 * true.std()


def test_a_table_of_errors_that_tells_the_truth_is_believed() -> None:
    """With the true damages up to one factor, ten scores are enough."""
    problem, score = chain_problem(14)
    errors = [
        score.sensitivity[i] * (1 - np.array(d.choices) / d.size) ** score.power[i]
        for i, d in enumerate(problem.decisions)
    ]
    errors = [table / max(t.max() for t in errors) for table in errors]
    policies = unseen(problem)
    true = np.array([score(keep) for keep in policies])
    with_table, without = (learnt(problem, score, 10, errors=e)[0] for e in (errors, ()))
    wrong = [np.sqrt(np.mean((predicted(m, problem, policies) - true) ** 2)) for m in (with_table, without)]
    assert wrong[0] < wrong[1]


def test_neighbours_that_must_agree_are_found_out() -> None:
    """And where neighbours need not agree, no distance between them costs anything."""
    wrong, found = {}, {}
    for kind in ("agreeing, residual, 18", "additive, residual, 9"):
        landscape = TOYS[kind](0)
        model, _ = learnt(landscape.problem, landscape, 100)
        policies = unseen(landscape.problem)
        true = np.array([landscape(keep) for keep in policies])
        wrong[kind] = np.std(predicted(model, landscape.problem, policies) - true) / true.std()
        found[kind] = model.fit().sample(np.random.default_rng(0), 0.0).apart
    must, free = found.values()
    assert max(wrong.values()) < 0.2
    assert must[::2].mean() > 3 * must[1::2].mean()
    assert not free.any()


def test_a_damage_never_falls_as_a_group_alone_loses_more() -> None:
    problem, score = residual_problem(9)
    model, _ = learnt(problem, noisy(score, 500), 40)
    posterior, generator = model.fit(), np.random.default_rng(1)
    for _ in range(20):
        damages = posterior.sample(generator)
        for row, decision in zip(damages.groups, problem.decisions, strict=True):
            assert (np.diff(row[: len(decision.choices)]) <= 1e-12).all()


def test_draws_spread_as_the_scores_leave_it_open_and_not_at_temperature_0() -> None:
    problem, score = residual_problem(9)
    few, many = (learnt(problem, noisy(score, 2000), count)[0].fit() for count in (10, 200))

    def spread(posterior, temperature):
        generator = np.random.default_rng(0)
        return np.std([posterior.sample(generator, temperature).groups for _ in range(30)], axis=0).mean()

    assert spread(few, 1.0) > 1.5 * spread(many, 1.0)
    assert spread(few, 0.0) < 1e-12


@pytest.mark.parametrize("count", [10, 60], ids=["fewer records than terms", "more"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_the_evidence_is_that_of_the_normal_distribution(count: int, misfit: float) -> None:
    draw = np.random.default_rng(0)
    columns, damage = draw.normal(size=(count, 30)), draw.normal(size=count)
    variance = draw.uniform(1e-6, 1e-4, count) + misfit**2
    expected = [
        multivariate_normal(np.zeros(count), scale**2 * columns @ columns.T + np.diag(variance)).logpdf(damage)
        for scale in SCALES
    ]
    constant = -0.5 * count * math.log(2 * math.pi)
    assert _evidences(columns, SCALES, damage, variance) + constant == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("batch", "chosen"),
    [
        (1, [8, *range(16, 200, 8), *range(208, 300, 16)]),
        (50, [50, 100, 150, 200, 250]),
        (256, [256, 512]),
    ],
)
def test_scale_misfit_and_link_are_chosen_anew(batch: int, chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 8 records, of hundreds for each full hundred: the first time that the model is asked after that."""
    problem, score = residual_problem(9)
    model, asked = ScoreModel(problem), []
    choice = _Choice(False, _Terms(False, False), 0.1, 0.01)
    monkeypatch.setattr(model, "_most_evident", lambda features: asked.append(len(features)) or choice)
    keep = tuple(problem.dense.tolist())
    for number in range(1, max(chosen) + 1):
        model.add(record_of(problem, keep, score(keep), number))
        if number % batch == 0 and number >= 8:
            model.fit()
    assert asked == chosen


def test_failed_records_teach_nothing_and_one_record_is_enough() -> None:
    problem, score = residual_problem(9)
    model = ScoreModel(problem)
    keep = tuple(problem.dense.tolist())
    model.add(record_of(problem, keep, None))
    assert len(model) == 0
    model.add(record_of(problem, keep, score(keep)))
    ((record, value, _),) = model.fit().expected()
    assert record.keep == keep
    assert value == pytest.approx(score(keep), abs=0.01)


def test_a_single_group_has_no_pairs() -> None:
    problem, _ = residual_problem(9)
    one = Problem(problem.decisions[:1], {Metric.MACS: lambda keep: np.asarray(keep, dtype=float)[..., 0]})
    model = ScoreModel(one, dense_score=0.9)
    for place, keep in enumerate(one.decisions[0].choices):
        model.add(record_of(one, (keep,), 0.9 - 0.1 * (1 - keep / 16) ** 2, place))
    worst, *_, best = sorted(model.fit().expected(), key=lambda row: row[1])
    assert (worst[0].keep, best[0].keep) == ((one.decisions[0].choices[0],), (16,))


@pytest.mark.parametrize("unit", [1e-9, 1e9, 1e14], ids=str)
def test_scores_of_any_size_are_learnt(unit: float) -> None:
    problem, score = residual_problem(9)
    model, _ = learnt(problem, lambda keep: unit * score(keep), 60)
    policies = unseen(problem, 50)
    true = unit * np.array([score(keep) for keep in policies])
    assert np.corrcoef(predicted(model, problem, policies), true)[0, 1] > 0.9


def test_a_draw_that_does_not_converge_is_still_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*_, **__):
        raise RuntimeError("Maximum number of iterations reached.")

    problem, score = residual_problem(9)
    model, _ = learnt(problem, score, 30)
    monkeypatch.setattr("scipy.optimize.nnls", stuck)
    damages = model.fit().sample(np.random.default_rng(0))
    assert np.isfinite(damages.groups).all()
    assert (damages.groups >= 0).all()
