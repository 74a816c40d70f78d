from typing import Any

import pytest

from amc.report.tables import (
    BudgetLine,
    SummaryRow,
    budget_lines,
    format_count,
    format_score,
    format_seconds,
    summary_table,
)

DENSE = {"macs": 40_000_000, "params": 250_000, "score": 0.9, "test": 0.89}
SLIM = {"macs": 20_000_000, "params": 100_000, "score": 0.75, "test": 0.74}


def summary(**changes: Any) -> dict[str, Any]:
    return {"budget": "macs<=50%", "dense": DENSE, "slim": SLIM} | changes


def test_a_change_of_a_score_has_its_standard_error_and_is_noise_within_it() -> None:
    slim = {"score": 0.9, "score_error": 0.01, "test": 0.8, "test_error": 0.02, "test_recovered": 0.86}
    rows = summary_table(summary(dense={"score": 0.905, "test": 0.85}, slim=slim | {"test_recovered_error": 0.0049}))
    changes = {row.quantity: (row.change, row.noise) for row in rows if "split" in row.quantity}
    assert changes == {
        "Score, search split": ("−0.50 ± 1.00 points", True),
        "Score, test split": ("−5.00 ± 2.00 points", False),
        "Score, test split, recovered": ("+1.00 ± 0.49 points", False),
    }
    tuned = slim | {"test_finetuned": 0.851, "test_finetuned_error": 0.003}
    rows = summary_table(summary(dense={"score": 0.905, "test": 0.85}, slim=tuned))
    found = next(row for row in rows if row.quantity == "Score, test split")
    assert (found.change, found.noise) == ("+0.10 ± 0.30 points", True)
    other = summary_table(summary(dense={"score": 31.5}, slim={"score": 31.0, "score_error": 0.25}))
    assert [row.change for row in other if "Score" in row.quantity] == ["−0.5 ± 0.25"]


def test_table_before_fine_tuning() -> None:
    assert summary_table(summary()) == [
        SummaryRow("MACs", "40.00 M", "20.00 M", "", "50.00% left (2.00× fewer)"),
        SummaryRow("Parameters", "250.0 k", "100.0 k", "", "40.00% left (2.50× fewer)"),
        SummaryRow("Score, search split", "90.00%", "75.00%", "", "−15.00 points"),
        SummaryRow("Score, test split", "89.00%", "74.00%", "", "−15.00 points"),
    ]


def test_table_compares_with_the_fine_tuned_network() -> None:
    slim = SLIM | {"score_finetuned": 0.91, "test_finetuned": 0.885}
    rows = summary_table(summary(slim=slim))
    assert [row.finetuned for row in rows] == ["20.00 M", "100.0 k", "91.00%", "88.50%"]
    assert [row.change for row in rows[2:]] == ["+1.00 points", "−0.50 points"]


def test_table_leaves_the_test_split_out_where_it_was_not_measured() -> None:
    rows = summary_table(summary(dense={"macs": 4, "params": 2, "score": 0.5}, slim={"macs": 2, "params": 1}))
    assert [row.quantity for row in rows] == ["MACs", "Parameters", "Score, search split"]
    assert rows[2] == SummaryRow("Score, search split", "50.00%", "–", "", "–")


def test_scores_that_are_no_fractions_are_no_percentages() -> None:
    rows = summary_table(summary(dense=DENSE | {"score": 31.25}, slim=SLIM | {"score": 30.5}))
    assert rows[2] == SummaryRow("Score, search split", "31.25", "30.5", "", "−0.75")


def test_empty_summary_is_all_dashes() -> None:
    for row in summary_table({}):
        assert (row.dense, row.slim, row.finetuned, row.change) == ("–", "–", "", "–")
    assert budget_lines({}) == []


@pytest.mark.parametrize(
    ("budget", "macs", "text", "held"),
    [
        ("macs<=50%", 19_880_000, "macs<=50%: 49.70% recounted: held", True),
        ("flops <= 50%", 20_000_000, "macs<=50%: 50.00% recounted: held", True),
        ("macs<=50%", 20_000_002, "macs<=50%: 50.000005% recounted: exceeded", False),
        ("macs<=50%", 24_000_000, "macs<=50%: 60.00% recounted: exceeded", False),
        ("macs<=20M", 20_000_000, "macs<=20000000: 20,000,000 recounted: held", True),
        ("macs<=19M", 20_000_000, "macs<=19000000: 20,000,000 recounted: exceeded", False),
    ],
)
def test_budget_is_judged_on_the_recounted_cost(budget: str, macs: int, text: str, held: bool) -> None:
    assert budget_lines(summary(budget=budget, slim=SLIM | {"macs": macs})) == [BudgetLine(text, held)]


def test_every_budget_has_a_line_and_an_unknown_cost_is_not_called_held() -> None:
    lines = budget_lines(summary(budget="params<=50%,latency<=3ms"))
    assert lines == [
        BudgetLine("params<=50%: 40.00% recounted: held", True),
        BudgetLine("latency<=3ms: not recounted yet", None),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (512, "512"),
        (999, "999"),
        (1000, "1.000 k"),
        (269_722, "269.7 k"),
        (999_999, "1.000 M"),
        (20_158_912, "20.16 M"),
        (4_089_184_256, "4.089 G"),
        (5e12, "5.000 T"),
    ],
)
def test_counts_have_four_digits(value: float | None, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0304, "30.4 ms"),
        (1.93, "1.9 s"),
        (59.97, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_scores() -> None:
    assert format_score(0.71401) == "71.40%"
    assert format_score(-1.25, percent=False) == "-1.25"
    assert format_score(float("nan")) == "–"


def test_a_latency_is_a_row_of_its_own_and_its_budget_is_measured() -> None:
    summary = {
        "budget": "latency<=50%",
        "dense": {"macs": 100, "params": 10, "score": 0.9, "latency": 2.0},
        "slim": {"macs": 40, "params": 5, "score": 0.8, "latency": 0.98765},
        "latency": {"runtime": "onnxruntime", "steady": True},
    }
    row = next(row for row in summary_table(summary) if row.quantity.startswith("Latency"))
    assert (row.quantity, row.dense, row.slim) == ("Latency, onnxruntime", "2 ms", "0.9877 ms")
    assert row.change == "2.03× as fast"
    assert [(line.text, line.held) for line in budget_lines(summary)] == [("latency<=50%: 49.38% measured: held", True)]
    summary["budget"] = "latency<=1ms"
    assert budget_lines(summary)[0].text == "latency<=1ms: 0.9877 ms measured: held"
    busy = summary | {"latency": {"runtime": "onnxruntime", "steady": False}}
    assert any("too busy" in row.change for row in summary_table(busy))


def test_a_recovered_network_has_rows_of_its_own() -> None:
    summary = {
        "score": "top1",
        "dense": {"macs": 100, "params": 100, "score": 0.9, "test": 0.8},
        "slim": {
            "macs": 50, "params": 50, "score": 0.7, "score_recovered": 0.85, "test": 0.6, "test_recovered": 0.75,
        },
    }  # fmt: skip
    rows = {row.quantity: (row.dense, row.slim, row.finetuned, row.change) for row in summary_table(summary)}
    assert rows["Score, search split"] == ("90.00%", "70.00%", "", "−20.00 points")
    assert rows["Score, search split, recovered"] == ("90.00%", "85.00%", "", "−5.00 points")
    assert rows["Score, test split, recovered"] == ("80.00%", "75.00%", "", "−5.00 points")
