"""Paired comparison of two networks: hand arithmetic, and the bound's coverage against simulation."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amc.errors import AmcError, EvaluationError
from amc.search.statistics import GUARD, Measured, PairedDrop, compare, least_bound, quantile, upper_bound


def test_counts_come_from_the_answers_of_the_same_images():
    before = [True, True, True, False, False, True]
    now = [True, False, False, True, False, True]
    assert compare(before, now) == PairedDrop(images=6, lost=2, gained=1)
    assert compare(torch.tensor(before), np.array(now)) == PairedDrop(6, 2, 1)
    assert compare(now, before) == PairedDrop(6, 1, 2)
    with pytest.raises(ValueError, match=r"\[6\] and \[5\]"):
        compare(before, now[:5])


def test_drop_and_standard_error_match_hand_arithmetic():
    paired = PairedDrop(images=2500, lost=44, gained=31)
    assert paired.drop == pytest.approx(0.0052)
    # (44 + 31 + 4 - 13 * 13 / 2500) ** 0.5 / 2500
    assert paired.standard_error == pytest.approx(math.sqrt(79 - 0.0676) / 2500)
    assert paired.upper(0.8) == pytest.approx(0.0052 + 0.8416212 * 0.0035538, abs=1e-7)
    assert PairedDrop(2500, 31, 44).drop == pytest.approx(-0.0052)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_standard_error_is_that_of_the_differences_image_by_image(counts):
    images, lost, gained = counts
    if lost + gained > images:
        return
    each = np.repeat([1.0, -1.0, 0.0], [lost, gained, images - lost - gained])
    plain = float(each.std()) / math.sqrt(images)
    guarded = math.sqrt(plain**2 + GUARD / images**2)
    assert PairedDrop(images, lost, gained).standard_error == pytest.approx(guarded)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_no_changed_answer_is_no_certainty(confidence):
    # The exact test's bound after no event in n: (1 - p) ** n = 1 - confidence, about -ln(1 - confidence) / n.
    exact = 1 - (1 - confidence) ** (1 / 500)
    assert exact <= least_bound(500, confidence) <= 1.3 * exact
    assert least_bound(500, confidence) == PairedDrop(500, 0, 0).upper(confidence)


@pytest.mark.parametrize(("confidence", "worst"), [(0.8, 0.77), (0.9, 0.87), (0.95, 0.92)])
def test_bound_holds_about_as_often_as_it_says(confidence, worst):
    """Coverage over 20,000 draws each, from pure losses to many answers changing both ways."""
    generator, z = np.random.default_rng(0), quantile(confidence)
    for images in (100, 500, 2500):
        for drop in (0.001, 0.005, 0.02):
            for both in (0.0, 0.005, 0.03):
                chances = [drop + both, both, 1 - drop - 2 * both]
                lost, gained, _ = generator.multinomial(images, chances, size=20_000).T
                spread = lost + gained + GUARD - (lost - gained) ** 2 / images
                upper = (lost - gained) / images + z * np.sqrt(spread) / images
                assert float((upper >= drop).mean()) >= worst
    assert PairedDrop(images, int(lost[0]), int(gained[0])).upper(confidence) == pytest.approx(upper[0])


def test_unknown_error_leaves_the_drop_as_it_is():
    assert upper_bound(0.004, None, 0.95) == 0.004
    assert upper_bound(0.004, 0.001, 0.5) == 0.004
    assert upper_bound(0.004, 0.001, 0.95) == pytest.approx(0.004 + 0.00164485)


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, 95.0, float("nan")])
def test_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(AmcError, match=r"confidence must be in \[0.5, 1\)"):
        quantile(confidence)


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, -1, 0), (5, 3, 3)])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="do not fit"):
        PairedDrop(*counts)


def test_measured_is_a_float_that_keeps_its_error():
    score = Measured(0.9, 0.01)
    assert score == 0.9
    assert isinstance(score, float)
    assert json.dumps({"score": score}) == '{"score": 0.9}'
    assert repr(score) == "Measured(0.9, 0.01)"
    for same in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert (same, same.standard_error) == (0.9, 0.01)
    assert type(score - 0.1) is float
    for error in (-0.1, float("nan"), float("inf")):
        with pytest.raises(EvaluationError, match="standard error"):
            Measured(0.9, error)
