"""The toys' optima are exact, their kinds differ as they say, and their sampling noise is what it claims to be."""

import itertools

import numpy as np
import pytest

from amc.search import Bounds, SearchTask, create_agent, roll_out
from tests.search.landscapes import TOYS, Landscape, Sampled, additive, agreeing, collapsing, interacting
from tests.search.optima import optimum
from tests.search.toys import chain_problem, residual_problem

KINDS = (additive, interacting, collapsing, agreeing)


def small(kind, make, seed, budget="macs<=50%"):
    return kind(*make(4, budget, seed), seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", ["macs<=40%", "macs<=75%", "macs<=100%"])
@pytest.mark.parametrize("make", [residual_problem, chain_problem])
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_that_of_an_exhaustive_search(kind, make, budget, seed):
    landscape = small(kind, make, seed, budget)
    problem, limit = landscape.problem, landscape.problem.limit(landscape.problem.budgets[0])
    every = np.array(list(itertools.product(*(d.choices for d in problem.decisions))))
    feasible = every[problem.costs[problem.metric](every) <= limit].tolist()
    assert optimum(landscape) == pytest.approx(max(map(landscape, feasible)), abs=1e-12)


def test_the_additive_toys_are_the_ones_of_closed_form():
    for make, groups in ((residual_problem, 9), (chain_problem, 14)):
        problem, score = make(groups, seed=2)
        landscape = additive(problem, score, 2)
        for seed in range(5):
            policy = drawn(problem, seed)
            assert landscape(policy) == pytest.approx(score(policy), abs=1e-12)


def drawn(problem, seed):
    agent = create_agent("random", SearchTask(problem, episodes=1, seed=seed))
    agent.begin_episode(0, 0)
    return roll_out(problem, Bounds(problem), agent.act).keep_counts


def damage(landscape, keep):
    return -np.log((landscape(keep) - landscape.chance) / (landscape.top - landscape.chance))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_with_pairs_have_an_interaction_of_neighbours(kind):
    landscape = small(kind, residual_problem, 0)
    dense = [d.size for d in landscape.problem.decisions]
    halves = {
        frozenset(cut): [k // 2 if i in cut else k for i, k in enumerate(dense)] for cut in ((), (0,), (1,), (0, 1))
    }
    none, first, second, both = (damage(landscape, keep) for keep in halves.values())
    excess = both - none - (first - none) - (second - none)
    if kind is interacting:
        assert excess > 0.001  # two narrow neighbours lose more than each alone
    elif kind is agreeing:
        assert excess < -0.1  # and here less: they agree again
    else:
        assert excess == pytest.approx(0, abs=1e-12)


def test_a_collapse_is_a_jump_at_one_width_of_every_group():
    landscape, smooth = (small(kind, residual_problem, 1) for kind in (collapsing, additive))
    for jumps, table in zip(landscape.single, smooth.single, strict=True):
        steps = np.diff(jumps - 0.5 * table)
        assert (steps < -0.02).sum() == 1
        assert np.abs(steps).sum() == pytest.approx(-steps.min())


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_has_room_between_random_policies_and_its_optimum(name):
    landscape = TOYS[name](0)
    assert isinstance(landscape, Landscape)
    policies = [drawn(landscape.problem, seed) for seed in range(100)]
    assert optimum(landscape) > max(map(landscape, policies)) + 0.01


class TestSampling:
    """Scores as measured on some images."""

    landscape = small(additive, residual_problem, 0)
    policy = drawn(landscape.problem, 3)

    def test_a_policy_always_has_the_same_score_and_seeds_differ(self):
        scores = [Sampled(self.landscape, 500, seed)(self.policy) for seed in (0, 0, 1)]
        assert scores[0] == scores[1] != scores[2]
        assert scores[0].standard_error == scores[1].standard_error
        assert round(500 * scores[0]) == pytest.approx(500 * scores[0])  # images are counted

    @pytest.mark.parametrize("images", [500, 2000])
    def test_the_noise_is_as_large_as_the_standard_error_says(self, images):
        measured = [Sampled(self.landscape, images, seed) for seed in range(600)]
        drops = np.array([sampled.dense - sampled(self.policy) for sampled in measured])
        claimed = np.mean([sampled(self.policy).standard_error for sampled in measured])
        true = self.landscape.top - self.landscape(self.policy)
        assert drops.mean() == pytest.approx(true, abs=4 * claimed / 600**0.5)
        assert drops.std() == pytest.approx(claimed, rel=0.12)
        # l = 1.25 d and g = 0.25 d of the images: the variance of a difference of multinomial counts.
        assert drops.std() == pytest.approx(((1.5 * true - true**2) / images) ** 0.5, rel=0.12)

    def test_the_dense_score_is_binomial(self):
        dense = np.array([Sampled(self.landscape, 500, seed).dense for seed in range(600)])
        top = self.landscape.top
        assert dense.std() == pytest.approx((top * (1 - top) / 500) ** 0.5, rel=0.12)
