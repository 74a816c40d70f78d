"""The smallest confirmed network: which candidates, in what order, and how often a confirmation errs."""

import numpy as np
import pytest

from amc.compression.selection.by_confidence import ByConfidence, check_resolution, feasible, smaller
from amc.errors import AmcError, EvaluationError
from amc.search import EpisodeRecord, Metric, SmallestWithin
from amc.search.statistics import PairedDrop

REWARD = SmallestWithin(0.005, 0.9, Metric.MACS, confidence=0.8)
N = 2500


def record(episode, macs, drop, error=0.0, keep=None):
    return EpisodeRecord(episode, keep or (episode + 1,), {"macs": macs}, 0.9 - drop, 0.0, standard_error=error)


def paired(drop_in_images):
    return PairedDrop(N, lost=30 + drop_in_images, gained=30)


def test_candidates_are_the_feasible_ones_cheapest_first():
    failed = EpisodeRecord(9, (9,), {"macs": 1.0}, None, None, "boom")
    records = [
        record(0, 80.0, 0.001),
        record(1, 50.0, 0.004),
        record(2, 40.0, 0.006),  # too much
        record(3, 30.0, 0.004, error=0.003),  # 0.004 + 0.8416 * 0.003 = 0.0065: too unsure
        record(4, 60.0, 0.002, error=0.003),
        record(5, 50.0, 0.003),  # as cheap as 1, and better
        record(6, 50.0, 0.004, keep=(2,)),  # 1 again
        failed,
    ]
    assert [found.cost["macs"] for found in feasible(records, REWARD)] == [50, 50, 60, 80]
    assert [found.keep for found in feasible(records, REWARD)] == [(6,), (2,), (5,), (1,)]
    # None feasible: the nearest alone. Nothing scored: a fault of the caller.
    assert [found.keep for found in feasible([records[2], records[3]], REWARD)] == [(3,)]
    with pytest.raises(ValueError, match="none of the episodes"):
        feasible([failed], REWARD)


def test_first_confirmed_candidate_is_taken_and_no_more_are_measured():
    found = [record(i, 10.0 * i, 0.0) for i in range(1, 6)]
    drops = {1: 20, 2: 9, 3: 2, 4: 1}
    measured = []

    def measure(candidate):
        measured.append(candidate.episode)
        return paired(drops[candidate.episode])

    result = ByConfidence(REWARD, measure, images=N).choose(found)
    taken = result.trials[-1]
    # 9 of 2500 are 0.36 points; sqrt(69 + 4) * 0.84 / 2500 makes that 0.65. 2 are 0.08, which makes 0.35.
    assert measured == [1, 2, 3]
    assert result.holds
    assert result.record.episode == taken.record.episode == 3
    assert [trial.confirmed for trial in result.trials] == [False, False, True]
    assert taken.drop == 2 / N
    assert taken.upper == pytest.approx(2 / N + 0.8416212 * np.sqrt(62 + 4 - 4 / N) / N)
    assert taken.standard_error == paired(2).standard_error
    assert result.summary["guarantee"] == {
        "max_drop": 0.5,
        "minimise": "macs",
        "confidence": 0.8,
        "images": N,
        "confirmed": True,
        "drop": 100 * taken.drop,
        "upper": 100 * taken.upper,
        "trials": [trial.to_json() for trial in result.trials],
    }


def test_if_none_is_confirmed_the_best_supported_is_marked():
    found = [record(i, 10.0 * i, 0.0) for i in range(1, 6)]
    drops = {1: 40, 2: 12, 3: 25, 4: 1}
    result = ByConfidence(REWARD, lambda candidate: paired(drops[candidate.episode]), images=N, tries=3).choose(found)
    assert not result.holds
    assert result.record.episode == 2
    assert len(result.trials) == 3
    with pytest.raises(ValueError, match="none of the episodes has a score"):
        ByConfidence(REWARD, lambda _: 0.0, images=N).choose([])


def test_a_score_of_the_users_own_counts_without_uncertainty():
    found = [record(1, 10.0, 0.0), record(2, 20.0, 0.0)]
    losses = {1: 0.0051, 2: 0.005}
    result = ByConfidence(REWARD, lambda candidate: losses[candidate.episode], images=None).choose(found)
    taken = result.trials[-1]
    assert (taken.confirmed, result.holds) == (True, False)  # the score that chose it cannot confirm it
    assert (result.record.episode, taken.upper, taken.standard_error) == (2, 0.005, None)


def test_too_few_images_are_refused():
    check_resolution(REWARD, 400, "search")
    # 2 * 0.8416 / 300 = 0.0056
    with pytest.raises(AmcError, match=r"max-drop 0.5 cannot be told on 300 confirmation images.*0.56 points"):
        check_resolution(REWARD, 300, "confirmation")


SMALLER = [
    record(0, 80.0, 0.001),
    record(1, 60.0, 0.004),  # the smallest feasible one
    record(2, 59.0, 0.006),  # not 3% less
    record(3, 50.0, 0.010),
    record(4, 51.0, 0.020),  # 3 costs less and scores more
    record(5, 40.0, 0.030),
    record(6, 30.0, 0.050),
    EpisodeRecord(9, (9,), {"macs": 1.0}, None, None, "boom"),
]


def test_smaller_policies_are_those_that_none_beats_the_dearest_first():
    assert [found.episode for found in smaller(SMALLER, SMALLER[1], REWARD)] == [3, 5, 6]
    assert smaller(SMALLER, SMALLER[6], REWARD) == ()


@pytest.mark.parametrize(
    ("drops", "measured", "taken"),
    [
        ({1: 0, 3: 1, 5: 2, 6: 40}, [1, 3, 5, 6], 5),  # until the first that is not confirmed
        ({1: 0, 3: 40, 5: 0, 6: 0}, [1, 3], 1),  # what would hold after it is not tried
        ({1: 0, 3: 0, 5: 0, 6: 0}, [1, 3, 5, 6], 6),
        ({1: 40, 0: 0, 3: 0}, [1, 0], 0),  # where the smallest feasible one is not confirmed, nothing smaller is
        ({1: 0, 3: None}, [1, 3], 1),
    ],
)
def test_smaller_policies_are_tried_as_long_as_each_is_confirmed(drops, measured, taken):
    asked = []

    def measure(candidate):
        asked.append(candidate.episode)
        if drops[candidate.episode] is None:
            raise EvaluationError("evaluate fails")
        return paired(drops[candidate.episode])

    result = ByConfidence(REWARD, measure, images=N, descend=True).choose(SMALLER)
    assert asked == measured
    assert (result.record.episode, result.holds) == (taken, True)
    assert result.summary["guarantee"]["upper"] <= 0.5


def test_the_number_of_tries_bounds_the_descent():
    result = ByConfidence(REWARD, lambda _: paired(0), images=N, tries=2, descend=True).choose(SMALLER)
    assert [trial.record.episode for trial in result.trials] == [1, 3]


@pytest.mark.parametrize(("confidence", "unconfirmed", "confirmed"), [(0.8, 0.5, 0.2), (0.95, 0.1, 0.05)])
def test_confirmation_errs_more_rarely_than_it_says_where_the_search_alone_errs_often(
    confidence, unconfirmed, confirmed
):
    """Two hundred policies a search, the true loss growing as the cost falls: the figures of docs/accuracy.md."""
    generator = np.random.default_rng(1)
    searches, wrong_alone, wrong, taken = 150, 0, 0, 0
    reward = SmallestWithin(0.005, 0.9, Metric.MACS, confidence=confidence)
    for _ in range(searches):
        cost = generator.uniform(0.3, 1.0, 200)
        loss = 0.057 * (1 - cost) ** 1.5 + np.abs(generator.normal(0, 0.004, 200))
        changed = 0.01 + 1.5 * loss
        chances = np.stack([(changed + loss) / 2, (changed - loss) / 2, 1 - changed], axis=1)
        lost, gained, _ = generator.multinomial(N, chances).T
        seen = [PairedDrop(N, int(b), int(c)) for b, c in zip(lost, gained, strict=True)]
        records = [record(i, cost[i], x.drop, x.standard_error) for i, x in enumerate(seen)]
        found = feasible(records, reward)

        def measure(candidate, chances=chances):
            b, c, _ = generator.multinomial(N, chances[candidate.episode])
            return PairedDrop(N, int(b), int(c))

        result = ByConfidence(reward, measure, images=N).choose(records)
        wrong_alone += loss[found[0].episode] > reward.max_drop
        taken += result.holds
        wrong += result.holds and loss[result.record.episode] > reward.max_drop
    assert taken > 0.8 * searches
    assert wrong_alone / searches > unconfirmed
    assert wrong / taken < confirmed
