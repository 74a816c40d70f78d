"""The figures of a run as text, for the command line and the page.

Reads the dictionary of `summary.json`. A missing field is shown as a dash. Pure: no files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.report.words import budgets_of, words_of
from amc.run.settings.scores import TOP1, NamedScore, score_of_record
from amc.search.budget import Budget, Metric

DASH = "–"  # shown for a missing value
_SCORE_KEYS = ("score", "score_recovered", "score_finetuned", "test", "test_recovered", "test_finetuned", "unseen")
_NAMED_KEYS = (*_SCORE_KEYS, "median", "score_tuned")  # all keys of scores
_LISTS = ("rounds", "candidates")


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One quantity of the dense and the slim network, as text.

    `change` compares the dense network with the fine-tuned one or, without fine-tuning, with the slim one.
    """

    quantity: str
    dense: str
    slim: str
    finetuned: str  # "" in every row of a run that was not fine-tuned
    change: str
    noise: bool = False  # whether the change is no larger than its standard error


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One budget and the recounted cost of the result."""

    text: str  # "macs<=50%: 49.71% recounted: held"
    held: bool | None  # None: the run has no recounted cost for this metric


def summary_table(summary: Mapping[str, Any]) -> list[SummaryRow]:
    """Rows of costs and scores. The file size, the memory and the test split have rows only if they were measured."""
    summary = named_scores(summary)
    dense, slim = part_of(summary, "dense"), part_of(summary, "slim")
    finetuned = any(_number(slim, key) is not None for key in ("score_finetuned", "test_finetuned"))
    percent, kind = scores_are_fractions(summary), score_of_record(summary)
    score = "Score" if kind is TOP1 else kind.label[:1].upper() + kind.label[1:]
    counted = "" if words_of(summary.get("method")).slices else ", nonzero"
    rows = [
        _cost_row(f"MACs{counted}", _number(dense, "macs"), _number(slim, "macs"), finetuned),
        _cost_row(f"Parameters{counted}", _number(dense, "params"), _number(slim, "params"), finetuned),
    ]
    sizes = (_number(dense, "size"), _number(slim, "size"))
    if sizes != (None, None):
        rows.append(_cost_row("File size", *sizes, finetuned, is_size=True))
    memory = (_number(dense, "memory"), _number(slim, "memory"))
    if memory != (None, None):
        rows.append(_cost_row("Memory of activations", *memory, finetuned, is_size=True))
    latency = part_of(summary, "latency")
    if latency:
        rows.append(_latency_row(latency, _number(dense, "latency"), _number(slim, "latency"), finetuned))
    for name, key in ((f"{score}, search split", "score"), (f"{score}, test split", "test")):
        after = _number(slim, f"{key}_finetuned")
        values = (_number(dense, key), _number(slim, key), after)
        if key == "test" and all(value is None for value in values):
            continue
        last = values[1] if after is None else after
        error = _number(slim, f"{key}_error" if after is None else f"{key}_finetuned_error")
        rows.append(
            SummaryRow(
                name,
                format_score(values[0], percent=percent),
                format_score(values[1], percent=percent),
                format_score(after, percent=percent) if finetuned else "",
                format_difference(values[0], last, percent=percent, error=error),
                within(values[0], last, error),
            )
        )
        recovered = _number(slim, f"{key}_recovered")
        if recovered is not None:  # without labels, on the calibration images
            error = _number(slim, f"{key}_recovered_error")
            rows.append(
                SummaryRow(
                    f"{name}, recovered",
                    format_score(values[0], percent=percent),
                    format_score(recovered, percent=percent),
                    DASH if finetuned else "",
                    format_difference(values[0], recovered, percent=percent, error=error),
                    within(values[0], recovered, error),
                )
            )
    return rows


def budget_lines(summary: Mapping[str, Any]) -> list[BudgetLine]:
    """One line per budget of the run, with the recounted cost of the result."""
    dense, slim = part_of(summary, "dense"), part_of(summary, "slim")
    return [
        _budget_line(budget, _number(dense, budget.metric.value), _number(slim, budget.metric.value))
        for budget in budgets_of(summary)
    ]


def named_scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with `NamedScore` values, if its score is not top-1 accuracy."""
    kind = score_of_record(summary)

    def named(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            key: kind.named(value) if key in _NAMED_KEYS and type(value) in (int, float) else value
            for key, value in part.items()
        }

    changed: dict[str, Any] = {name: named(summary[name]) for name in ("dense", "slim") if name in summary}
    changed |= {name: [named(part) for part in records_of(summary.get(name))] for name in _LISTS if name in summary}
    if isinstance(summary.get("baselines"), Mapping):
        changed["baselines"] = {name: named(part) for name, part in summary["baselines"].items()}
    return {**summary, **changed}


def scores_are_fractions(summary: Mapping[str, Any]) -> bool:
    """Whether every score of the run is in [0, 1], so that it can be shown as a percentage."""
    if not score_of_record(summary).is_share:
        return False
    rounds = summary.get("rounds") or ()
    parts = [part_of(summary, "dense"), part_of(summary, "slim"), *part_of(summary, "baselines").values(), *rounds]
    values = [_number(part, key) for part in parts if isinstance(part, Mapping) for key in _SCORE_KEYS]
    return all(value is None or 0 <= value <= 1 for value in values)


def format_count(value: float | None) -> str:
    """Text such as "20.47 M", "272.5 k" or "512": four digits and a power of 1000."""
    if value is None:
        return DASH
    rounded = float(f"{value:.4g}")  # round first, so that 999,999 is 1 M and not 1000 k
    for scale, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(rounded) >= scale:
            scaled = rounded / scale
            return f"{scaled:.{max(0, 4 - len(str(int(abs(scaled)))))}f}{suffix}"
    return f"{value:g}"


def format_bytes(value: float | None) -> str:
    """Text such as "1.079 MB", in powers of 1000 as in budgets."""
    text = format_count(value)
    return text if value is None else f"{text}{'' if text[-1].isalpha() else ' '}B"


def format_points(value: float | None, *, unit: str = " points") -> str:
    """A loss in points of accuracy: "0.21 points"; a gain is negative."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.2f}{unit}".replace("-", "−")


def format_score(value: float | None, *, percent: bool = True) -> str:
    """Text such as "71.40%", or "0.7140" if scores are not fractions."""
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, NamedScore) and value.own is not None:
        return f"{value.own:.4g}"
    return f"{value * 100:.2f}%" if percent else f"{value:.4g}"


def within(first: float | None, second: float | None, error: float | None) -> bool:
    """Whether two scores differ by no more than the standard error of their difference; False if it is unknown."""
    return None not in (first, second, error) and abs((second or 0.0) - (first or 0.0)) <= (error or 0.0)


def format_difference(
    first: float | None, second: float | None, *, percent: bool = True, error: float | None = None
) -> str:
    """`second` minus `first`, such as "−1.20 ± 0.41 points", or "−0.012 ± 0.004" if scores are not fractions."""
    if first is None or second is None:
        return DASH
    if isinstance(first, NamedScore) and first.own is not None:
        second, first, percent = first.kind.turned(second), first.own, False
    text, unit = (f"{(second - first) * 100:+.2f}", " points") if percent else (f"{second - first:+.4g}", "")
    if error is not None:
        text += f" ± {100 * error:.2f}" if percent else f" ± {error:.3g}"
    return text.replace("-", "−") + unit


def format_ratio(dense: float | None, slim: float | None) -> str:
    """Text such as "49.71%": `slim` as a share of `dense`."""
    return DASH if not dense or slim is None else f"{slim / dense:.2%}"


def format_seconds(seconds: float | None) -> str:
    """Text such as "3 min 20 s"; times below one second are in milliseconds."""
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:  # rounding would make a longer time "60.0 s"
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_clock(seconds: float) -> str:
    """A running time as on a clock: "0:07", "12:30", or "1h02m" from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _budget_line(budget: Budget, dense: float | None, slim: float | None) -> BudgetLine:
    if slim is None or (budget.fraction is not None and dense is None):
        return BudgetLine(f"{budget}: not recounted yet", None)
    if budget.fraction is not None:
        assert dense is not None
        held, recounted = slim <= budget.limit(dense), format_ratio(dense, slim)
        if not held and recounted == f"{budget.fraction:.2%}":
            recounted = f"{slim / dense:.6%}"  # never "50.00%: exceeded"
    else:
        assert budget.absolute is not None
        unit = " bytes" if budget.metric.in_bytes else ""
        held, recounted = slim <= budget.absolute, f"{slim:,.15g}{unit}"
    how = "recounted"
    if budget.metric is Metric.LATENCY:
        how, recounted = "measured", recounted if budget.fraction is not None else format_milliseconds(slim)
    return BudgetLine(f"{budget}: {recounted} {how}: {'held' if held else 'exceeded'}", held)


def _cost_row(
    quantity: str, dense: float | None, slim: float | None, finetuned: bool, *, is_size: bool = False
) -> SummaryRow:
    text = format_bytes if is_size else format_count
    left, change = text(slim), DASH
    if dense and slim:
        change = f"{format_ratio(dense, slim)} left ({dense / slim:.2f}× {'less' if is_size else 'fewer'})"
    return SummaryRow(quantity, text(dense), left, left if finetuned else "", change)


def _latency_row(latency: Mapping[str, Any], dense: float | None, slim: float | None, finetuned: bool) -> SummaryRow:
    """The latencies of both networks. Fine-tuning does not change the latency."""
    change = f"{dense / slim:.2f}× as fast" if dense and slim else DASH
    if dense and slim and latency.get("steady") is False:
        change = "the machine was too busy to say"
    left = format_milliseconds(slim)
    name = f"Latency, {latency['runtime']}" if latency.get("runtime") else "Latency"
    return SummaryRow(name, format_milliseconds(dense), left, left if finetuned else "", change)


def format_milliseconds(value: float | None) -> str:
    """Text such as "1.234 ms", with four digits."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4g} ms"


def part_of(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at `key` of `summary`; empty if it is missing."""
    part = summary.get(key)
    return part if isinstance(part, Mapping) else {}


def records_of(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; empty for any other value."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _number(part: Mapping[str, Any], key: str) -> float | None:
    value = part.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
