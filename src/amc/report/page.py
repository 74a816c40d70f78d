"""The page: a record of a run into RUN/report.html.

One file that works offline and without scripts; everything that comes from the run is escaped by the template
engine.
"""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from amc import rundir
from amc.report.charts import NARROW, WIDE, LearningCurve, describe, learning_curve
from amc.report.record import Episode, RunRecord, load_record
from amc.report.tables import (
    DASH,
    budget_lines,
    format_count,
    format_difference,
    format_ratio,
    format_score,
    format_seconds,
    scores_are_fractions,
    summary_table,
)
from amc.rundir import RunDir

_SHOWN_FAILURES = 20
_SHOWN_LOCKS = 12
_SHOWN_BEST = 5


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    notes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best policy of the search beside one baseline."""

    baseline: str
    score: str
    difference: str  # of the search over the baseline
    ahead: bool
    detail: str


def render_report(run: str | os.PathLike[str] | RunDir) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path.

    A search that is not finished gives a page of what there is so far. Raises `RunError` for a directory that
    is no run or holds a damaged file.
    """
    directory = run if isinstance(run, RunDir) else RunDir.open(run)
    directory.write_text(rundir.REPORT, render_page(load_record(directory)))
    return directory.file(rundir.REPORT)


def render_page(record: RunRecord) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader("amc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style = loader.get_source(environment, "report.css")[0]
    return environment.get_template("report.html.j2").render(style=Markup(style), **_context(record))


def _context(record: RunRecord) -> dict[str, object]:
    summary = {**record.config, **record.summary}  # the summary repeats what it needs of the configuration
    percent = _percent(record)
    curve = _curve(record, percent=percent)
    return {
        "record": record,
        "title": " · ".join(str(summary[key]) for key in ("model", "data", "budget") if summary.get(key)),
        "subtitle": _subtitle(summary),
        "finished": bool(record.summary),
        "planned": curve.planned,
        "tiles": _tiles(summary, percent=percent) if record.summary else [],
        "budgets": budget_lines(summary),
        "comparisons": _comparisons(record, percent=percent),
        "rows": summary_table(record.summary) if record.summary else [],
        "finetuned": any(row.finetuned for row in summary_table(record.summary)),
        "tested": any("test split" in row.quantity for row in summary_table(record.summary)),
        "curve": curve,
        "curve_text": describe(curve),
        "charts": [learning_curve(curve, WIDE, name="wide"), learning_curve(curve, NARROW, name="narrow")],
        "best": [_best_row(episode, record, percent=percent) for episode in record.best[:_SHOWN_BEST]],
        "has_uniform": any(group.uniform is not None for group in record.groups),
        "certificate": _certificate_text(summary.get("certificate")),
        "locked": [item for item in summary.get("locked") or () if isinstance(item, Mapping)][:_SHOWN_LOCKS],
        "locked_left": max(0, len(summary.get("locked") or ()) - _SHOWN_LOCKS),
        "failures": record.failed[:_SHOWN_FAILURES],
        "failures_left": max(0, len(record.failed) - _SHOWN_FAILURES),
        "times": _times(record.seconds),
        "epochs": [_epoch(epoch, percent=percent) for epoch in record.finetune],
        "settings": [(key, _plain_text(value)) for key, value in record.config.items()],
        "machine": [(key, _plain_text(value)) for key, value in (summary.get("environment") or {}).items()],
        "python_path": json.dumps(record.path, ensure_ascii=False),
        "shell_path": shlex.quote(record.path),
        "agent": str(summary.get("agent") or "search").upper(),
        "best_score": format_score(record.best[0].score, percent=percent) if record.best else DASH,
        "random_best": format_score(max(_scores(record.random), default=None), percent=percent),
        "uniform_score": format_score(curve.uniform, percent=percent),
    }


def _certificate_text(certificate: Any) -> str:
    """What was proved of the structure before the search; nothing where nothing was checked."""
    if not isinstance(certificate, Mapping) or not certificate.get("keep_sets"):
        return ""
    text = (
        f"Before the search, the sliced network was compared with the masked one on {certificate['keep_sets']} random "
        f"keep sets; the largest difference was {float(certificate.get('worst_error') or 0):.0e} of the output."
    )
    failed = certificate.get("locked") or ()
    return text + (f" Groups for which they differed, now locked: {len(failed)}." if failed else "")


def _percent(record: RunRecord) -> bool:
    scores = _scores(record.episodes) + _scores(record.random) + _scores(record.uniform)
    return scores_are_fractions(record.summary) and all(0 <= score <= 1 for score in scores)


def _scores(episodes: tuple[Episode, ...]) -> list[float]:
    return [episode.score for episode in episodes if episode.score is not None]


def _curve(record: RunRecord, *, percent: bool) -> LearningCurve:
    planned = record.config.get("episodes")
    return LearningCurve(
        scores=[episode.score for episode in record.episodes],
        first=record.episodes[0].number if record.episodes else 0,
        planned=planned if isinstance(planned, int) else len(record.episodes),
        warmup=record.warmup,
        uniform=max(_scores(record.uniform), default=_baseline(record.summary, "uniform").get("score")),
        random=[episode.score for episode in record.random],
        percent=percent,
    )


def _baseline(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return (summary.get("baselines") or {}).get(name) or {}


def _subtitle(summary: Mapping[str, Any]) -> str:
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


def _tiles(summary: Mapping[str, Any], *, percent: bool) -> list[Tile]:
    dense, slim = summary.get("dense") or {}, summary.get("slim") or {}
    tiles = []
    for label, key in (("MACs left", "macs"), ("Parameters left", "params")):
        if dense.get(key) and slim.get(key):
            counts = f"{format_count(slim[key])} of {format_count(dense[key])}"
            notes = (counts, f"{dense[key] / slim[key]:.2f}× fewer")
            tiles.append(Tile(label, format_ratio(dense[key], slim[key]), notes))
    for label, key in (("Score, search split", "score"), ("Score, test split", "test")):
        before, after = slim.get(key), slim.get(f"{key}_finetuned")
        if before is None and after is None:
            continue
        recovered = "not fine-tuned"
        if after is not None:
            recovered = f"{format_score(before, percent=percent)} before fine-tuning"
        notes = (f"{format_score(dense.get(key), percent=percent)} dense", recovered)
        tiles.append(Tile(label, format_score(before if after is None else after, percent=percent), notes))
    return tiles


def _comparisons(record: RunRecord, *, percent: bool) -> list[Comparison]:
    """The search beside each baseline, on the search split and without fine-tuning: like with like."""
    if not record.best:
        return []
    score = record.best[0].score
    assert score is not None
    random, uniform = _scores(record.random), _scores(record.uniform)
    summarised = _baseline(record.summary, "random")
    middle = median(random) if random else summarised.get("median")
    number = len(record.random) or summarised.get("episodes")
    detail = f"median {format_score(middle, percent=percent)}" if middle is not None else ""
    if number and number != len(record.episodes):
        detail += f"; compared with {len(record.episodes)} episodes of the search"
    candidates = [
        ("uniform policy", max(uniform, default=_baseline(record.summary, "uniform").get("score")), ""),
        (f"best of {number or 'the'} random policies", max(random, default=summarised.get("score")), detail),
    ]
    return [
        Comparison(
            baseline=name,
            score=format_score(other, percent=percent),
            difference=format_difference(other, score, percent=percent),
            ahead=score > other,
            detail=text,
        )
        for name, other, text in candidates
        if other is not None
    ]


def _best_row(episode: Episode, record: RunRecord, *, percent: bool) -> tuple[str, str, str]:
    dense = (record.summary.get("dense") or {}).get("macs")
    macs = episode.cost.get("macs")
    share = f" ({format_ratio(dense, macs)})" if dense and macs else ""
    return str(episode.number), format_score(episode.score, percent=percent), f"{format_count(macs)}{share}"


def _times(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """For every part of an episode: its name, its mean time and its share of the whole."""
    total = sum(seconds.values())
    if not total:
        return []
    return [(part, format_seconds(value), value / total) for part, value in seconds.items()]


def _epoch(epoch: Mapping[str, Any], *, percent: bool) -> tuple[str, str, str, str]:
    def number(key: str) -> str:
        value = epoch.get(key)
        return f"{value:.4g}" if isinstance(value, int | float) else DASH

    return (
        str(epoch["epoch"]),
        number("loss"),
        number("lr"),
        format_score(epoch.get("score"), percent=percent),
    )


def _plain_text(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
