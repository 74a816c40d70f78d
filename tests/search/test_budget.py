"""Budgets as text."""

import pytest

from amc.errors import BudgetError
from amc.search.budget import Budget, Metric, parse_budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs<=50%", Budget(Metric.MACS, fraction=0.5)),
        ("  flops <= 50 % ", Budget(Metric.MACS, fraction=0.5)),
        ("FLOPs<=100%", Budget(Metric.MACS, fraction=1.0)),
        ("params<=1.2M", Budget(Metric.PARAMS, absolute=1.2e6)),
        ("macs<=150M", Budget(Metric.MACS, absolute=150e6)),
        ("macs<=1e6", Budget(Metric.MACS, absolute=1e6)),
        ("macs<=1.5g", Budget(Metric.MACS, absolute=1.5e9)),
        ("params<=20000", Budget(Metric.PARAMS, absolute=20000)),
        ("size<=1.2MB", Budget(Metric.SIZE, absolute=1.2e6)),
        ("size<=900kb", Budget(Metric.SIZE, absolute=900e3)),
        ("memory<=50%", Budget(Metric.MEMORY, fraction=0.5)),
        ("memory<=256KB", Budget(Metric.MEMORY, absolute=256e3)),
        ("latency<=5ms", Budget(Metric.LATENCY, absolute=5)),
        ("latency<=62.5%", Budget(Metric.LATENCY, fraction=0.625)),
    ],
)
def test_budget_is_read(text, budget):
    assert Budget.parse(text) == budget
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("macs<=0%", "0%"),
        ("macs<=-5%", "-5%"),
        ("macs<=101%", "101%"),
        ("macs<=nan%", "nan%"),
        ("macs<=inf", "inf"),
        ("macs<=0", "macs<=0"),
        ("macs<=half", "half"),
        ("macs<50%", "macs<50%"),
        ("macs<=", "macs<="),
        ("50%", "50%"),
        ("", "''"),
        ("energy<=50%", "energy"),
        ("memory<=4ms", "'ms'"),
        ("macs<=0.5", "50.0000%"),
        ("params<=1.2X", "'x'"),
        ("latency<=5", "latency<=5ms"),
        ("macs<=5ms", "'ms'"),
        ("macs<=50%%", "macs<=50%%"),
        ("macs<=1_0%", "1_0%"),
    ],
)
def test_malformed_budget_is_refused_with_value_and_remedy(text, names):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert names in message
    assert "\n" not in message
    assert any(word in message for word in ("write for example", "known:", "of the whole is"))


def test_budgets_are_joined_with_commas():
    assert parse_budgets("macs<=50%, params<=1.2M") == (
        Budget(Metric.MACS, fraction=0.5),
        Budget(Metric.PARAMS, absolute=1.2e6),
    )
    with pytest.raises(BudgetError, match="limits macs twice"):
        parse_budgets("macs<=50%,flops<=40%")


@pytest.mark.parametrize("text", ["macs<=50%,", ",macs<=50%", "macs<=50%, ,params<=1M", ","])
def test_a_comma_too_many_is_refused_with_the_whole_text(text):
    with pytest.raises(BudgetError) as caught:
        parse_budgets(text)
    assert f"budget {text!r} is malformed: it has a comma too many; write for example" in str(caught.value)


@pytest.mark.parametrize("percent", range(1, 101))
def test_limit_of_a_percentage_is_exact(percent):
    # 0.57 * 100 is 56.99999999999999 in floating point, which would refuse the 57 that the user allowed.
    assert Budget.parse(f"macs<={percent}%").limit(100) == percent


def test_absolute_budget_above_the_dense_cost_is_refused():
    assert Budget.parse("macs<=400").limit(400) == 400
    with pytest.raises(BudgetError, match="above the dense network's 400 macs"):
        Budget.parse("macs<=401").limit(400)


def test_budget_needs_exactly_one_kind_of_limit():
    with pytest.raises(BudgetError):
        Budget(Metric.MACS)
    with pytest.raises(BudgetError):
        Budget(Metric.MACS, fraction=0.5, absolute=3)
