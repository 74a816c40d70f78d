"""The text of a run's page, section by section. The template does the layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.report.charts.learning import describe
from amc.report.charts.tradeoff import describe_tradeoff
from amc.report.charts.training import describe_training
from amc.report.comparison import reward_comparisons, score_comparisons, share_left
from amc.report.figures import both_widths, is_percent, reward_curve, score_curve, trade_off, training_curve
from amc.report.record import RunRecord
from amc.report.tables import (
    DASH,
    format_bytes,
    format_count,
    format_milliseconds,
    format_points,
    format_ratio,
    format_score,
    format_seconds,
    part_of,
    records_of,
)
from amc.report.words import goal_of, is_priced, metric_label, metric_of
from amc.run.settings.scores import score_of_record
from amc.search import EpisodeRecord

_SHOWN_BEST = 5
_LESS = {"size": "smaller", "memory": "less"}  # of costs in bytes: what a lower one is


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    notes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a small table: its name, its other cells, and whether its policy is the result."""

    name: str
    cells: tuple[str, ...]
    taken: bool = False


def title_of(summary: Mapping[str, Any]) -> str:
    """The network, the data and the goal."""
    return " · ".join(str(part) for part in (summary.get("model"), summary.get("data"), goal_of(summary)) if part)


def subtitle(summary: Mapping[str, Any]) -> str:
    """The method, agent, number of episodes, seed and time."""
    parts = [f"{summary['method']} pruning" if summary.get("method") else "pruning"]
    if summary.get("agent"):
        parts.append(f"agent {summary['agent']}")
    if summary.get("episodes") is not None:
        parts.append(f"{summary['episodes']} episodes")
    if summary.get("seed") is not None:
        parts.append(f"seed {summary['seed']}")
    if isinstance(summary.get("seconds"), int | float):
        parts.append(f"searched for {format_seconds(summary['seconds'])}")
    return ", ".join(parts)


def tiles(dense: Mapping[str, Any], slim: Mapping[str, Any], *, percent: bool) -> list[Tile]:
    """The headline figures: the remaining share of each cost, and the scores."""
    headlines = []
    for label, key in (
        ("MACs left", "macs"),
        ("Parameters left", "params"),
        ("File size left", "size"),
        ("Memory left", "memory"),
    ):
        if dense.get(key) and slim.get(key):
            text, word = (format_bytes, _LESS[key]) if key in _LESS else (format_count, "fewer")
            notes = (f"{text(slim[key])} of {text(dense[key])}", f"{dense[key] / slim[key]:.2f}× {word}")
            headlines.append(Tile(label, format_ratio(dense[key], slim[key]), notes))
    for label, key in (("Search score", "score"), ("Test score", "test")):
        tuned, recovered = slim.get(f"{key}_finetuned"), slim.get(f"{key}_recovered")
        before, after = slim.get(key), recovered if tuned is None else tuned
        if before is None and after is None:
            continue
        pruned = "not recovered" if after is None else f"{format_score(before, percent=percent)} as pruned"
        notes = (f"{format_score(dense.get(key), percent=percent)} dense", pruned)
        headlines.append(Tile(label, format_score(before if after is None else after, percent=percent), notes))
    return headlines


def curves(record: RunRecord) -> dict[str, object]:
    """The charts and their text: scores with a budget, rewards without one."""
    summary = {**record.config, **record.summary}
    percent, priced = is_percent(record), is_priced(summary)
    curve = reward_curve(record) if priced else score_curve(record)
    trade = trade_off(record)
    best = record.best[0] if record.best else None
    shown = None if best is None else best.reward if priced else best.score
    others = [value for value in curve.random if value is not None]
    label = metric_label(metric_of(summary))
    cost = label[:1].upper() + label[1:]
    return {
        "priced": priced,
        "planned": curve.planned,
        "curve": curve,
        "curve_text": describe(curve),
        "charts": both_widths(curve, "curve"),
        "trade_charts": both_widths(trade, "trade") if trade.points else [],
        "trade_text": describe_tradeoff(trade),
        "episodes": episode_rows(record),
        "trade": trade,
        "comparisons": (reward_comparisons if priced else score_comparisons)(record, percent=percent),
        "best_score": format_score(shown, percent=curve.percent),
        "random_best": format_score(max(others, default=None), percent=curve.percent),
        "uniform_score": format_score(curve.uniform, percent=curve.percent),
        "cost_title": cost,
        "cost_left": f"{cost} left",
    }


def episode_rows(record: RunRecord) -> list[Row]:
    """The data of the charts: every policy of the search and of its baselines."""
    percent, rows = is_percent(record), []
    for who, episodes in (("", record.episodes), ("uniform ", record.uniform), ("random ", record.random)):
        for episode in episodes:
            reward = format_score(episode.reward, percent=False).replace("-", "−")
            cells = (format_score(episode.score, percent=percent), share_left(episode.cost, record), reward)
            rows.append(Row(f"{who}{episode.episode}", cells))
    return rows


def training(record: RunRecord) -> dict[str, object]:
    """The fine-tuning as a chart and its text; without one, nothing."""
    curve = training_curve(record)
    drawn = sum(score is not None for score in curve.scores)
    return {
        "epochs": epoch_rows(record),
        "training_charts": both_widths(curve, "training") if drawn else [],
        "training_text": describe_training(curve) if drawn else "",
    }


def savings(record: RunRecord) -> list[tuple[str, str]]:
    """By group, the share of the MACs and the latency that its cut alone saves; empty where they are unknown."""
    dense = part_of(record.summary, "dense")
    return [
        (
            _share_saved(group.saves.get("macs"), dense.get("macs")),
            format_milliseconds(group.saves.get("latency")) if "latency" in group.saves else "",
        )
        for group in record.groups
    ]


def _share_saved(saved: float | None, dense: float | None) -> str:
    return "" if saved is None or not dense else f"{saved / dense:.1%}"


def best_rows(record: RunRecord) -> list[Row]:
    """The policies with the highest rewards. Without a budget, a cell shows the reward."""
    summary, percent = {**record.config, **record.summary}, is_percent(record)
    priced = is_priced(summary)
    return [_best_row(episode, record, priced, percent=percent) for episode in record.best[:_SHOWN_BEST]]


def _best_row(episode: EpisodeRecord, record: RunRecord, priced: bool, *, percent: bool) -> Row:
    metric = metric_of({**record.config, **record.summary})
    value, share = episode.cost.get(metric), share_left(episode.cost, record)
    cost = format_bytes(value) if metric in _LESS else format_count(value)
    cells = [format_score(episode.score, percent=percent), cost if share == DASH else f"{cost} ({share})"]
    if priced:
        cells.append(format_score(episode.reward, percent=False).replace("-", "−"))
    return Row(str(episode.episode), tuple(cells), taken=bool(record.summary) and episode.episode == record.chosen)


def trial_rows(record: RunRecord) -> list[Row]:
    """The candidates of the guarantee, in the order of measurement."""
    cost = {episode.episode: share_left(episode.cost, record) for episode in record.episodes}
    return [
        Row(
            str(trial.get("episode", DASH)),
            (
                cost.get(trial.get("episode", -1), DASH),
                format_points(trial.get("drop"), unit=""),
                format_points(trial.get("upper"), unit=""),
                "yes" if trial.get("confirmed") else "no",
            ),
            taken=trial.get("episode") == record.chosen,
        )
        for trial in records_of(part_of(record.summary, "guarantee").get("trials"))
    ]


def finalist_rows(record: RunRecord) -> list[Row]:
    """The best policies on images that the search never scored, as pruned and after a short recovery."""
    kind, percent = score_of_record(record.summary), is_percent(record)

    def score(trial: Mapping[str, Any], key: str) -> str:
        value = trial.get(key)
        return format_score(None if value is None else kind.named(value), percent=percent)

    return [
        Row(
            str(trial.get("episode", DASH)),
            tuple(score(trial, key) for key in ("score", "score_unseen", "score_recovered")),
            taken=bool(trial.get("chosen")),
        )
        for trial in records_of(part_of(record.summary, "finalists").get("trials"))
    ]


def candidate_rows(record: RunRecord) -> list[Row]:
    """The policies that were fine-tuned briefly, to choose one of them."""
    percent = is_percent(record)
    return [
        Row(
            str(candidate.get("episode", DASH)),
            (
                format_score(candidate.get("score"), percent=percent),
                format_score(candidate.get("score_tuned"), percent=percent),
                "taken on" if candidate.get("chosen") else "",
            ),
            taken=bool(candidate.get("chosen")),
        )
        for candidate in records_of(record.summary.get("candidates"))
    ]


def epoch_rows(record: RunRecord) -> list[Row]:
    """One row per epoch of fine-tuning."""
    percent = is_percent(record)

    def number(epoch: Mapping[str, Any], key: str) -> str:
        value = epoch.get(key)
        return f"{value:.4g}" if isinstance(value, int | float) else DASH

    return [
        Row(
            str(epoch["epoch"]),
            (number(epoch, "loss"), number(epoch, "lr"), format_score(epoch.get("score"), percent=percent)),
        )
        for epoch in record.finetune
    ]


def time_rows(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Each part of an episode: its name, mean time, and share of the episode's time."""
    total = sum(seconds.values())
    if not total:
        return []
    return [(part, format_seconds(value), value / total) for part, value in seconds.items()]


def latency_rows(record: RunRecord) -> list[Row]:
    """What each runtime takes for the dense and the slim network."""
    return [_latency_row(found) for found in record.latencies]


def _latency_row(found: Mapping[str, Any]) -> Row:
    dense, slim = (part_of(part_of(found, "networks"), name) for name in ("dense", "slim"))
    threads = found.get("threads")
    name = f"{found.get('runtime')}, {threads} thread{'' if threads == 1 else 's'}, batch {found.get('batch')}"
    if found.get("precision") != "float32":
        name += f", {found.get('precision')}"
    change = DASH
    if slim.get("ratio"):
        change = f"{1 / slim['ratio']:.2f}× as fast, ± {float(slim.get('uncertainty') or 0):.1%}"
        if slim.get("verdict") == "undecided":
            change = f"the same within the noise ({slim['ratio']:.1%} of the time)"
        elif found.get("steady") is False:
            change = "the machine was too busy to say"
    cells = (
        format_milliseconds(dense.get("latency_ms")), format_milliseconds(slim.get("latency_ms")), change,
        format_bytes(slim.get("file_bytes")),
    )  # fmt: skip
    return Row(name, cells)


def export_rows(record: RunRecord) -> list[Row]:
    """The exported files, and how far their outputs are from the network's."""
    rows = []
    for found in record.exports:
        errors = part_of(found, "errors")
        worst = max((float(error) for error in errors.values()), default=0.0)
        checked = f"{worst:.0e} on {found.get('checked_with')}"
        form = f"{found.get('format')}, {'float16' if found.get('half') else 'float32'}"
        network = "fine-tuned" if found.get("finetuned") else "of the search"
        rows.append(Row(str(found.get("path")), (form, network, format_bytes(found.get("bytes")), checked)))
    return rows


def certificate_text(certificate: Any) -> str:
    """The result of the structure check before the search; empty if nothing was checked."""
    if not isinstance(certificate, Mapping) or not certificate.get("keep_sets"):
        return ""
    text = (
        f"Before the search, the sliced network was compared with the masked one on {certificate['keep_sets']} random "
        f"keep sets; the largest difference was {float(certificate.get('worst_error') or 0):.0e} of the output."
    )
    for name, difference in (certificate.get("approximate") or {}).items():
        text += (
            f" {name} is approximate, since an average runs over its channels: sliced to three quarters, it differs "
            f"from the masked network by {float(difference):.1%} of the output."
        )
    failed = certificate.get("locked") or ()
    return text + (f" Groups for which they differed, now locked: {len(failed)}." if failed else "")


def plain_items(record: Any) -> list[tuple[str, str]]:
    """The fields of an object as text; empty for None."""
    return [(str(key), _plain_text(value)) for key, value in (record or {}).items()]


def _plain_text(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
