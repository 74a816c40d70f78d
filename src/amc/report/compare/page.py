"""Writes the page of a comparison: one HTML file that works offline and without scripts."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from amc.report import sections
from amc.report.charts.drawing import NARROW, WIDE
from amc.report.charts.front import FrontChart, FrontPoint, describe_front, format_cost, front_chart
from amc.report.compare.compared import Compared, GroupRow, cost_title, format_paired, is_noise
from amc.report.compare.entries import COSTS, Entry
from amc.report.page import render_template
from amc.report.tables import (
    DASH,
    format_milliseconds,
    format_ratio,
    format_score,
    format_seconds,
    part_of,
)
from amc.report.words import metric_label
from amc.run import files
from amc.run.lines import atomic_write_bytes
from amc.run.settings.scores import score_of_record
from amc.search.statistics import PairedDrop

_SHOWN_GROUPS = 12  # before the others are folded away
POINTS = " points"  # said below the tables, and not in every cell
_LISTED = ("macs", "params", "size", "memory")


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two scores as text, in points where they are percentages."""

    text: str
    noise: bool  # no larger than its standard error


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One network as text."""

    label: str
    name: str
    link: str  # relative address of the run's own page; "" if absent
    taken: bool
    what: str  # method, goal and agent
    costs: tuple[tuple[str, str, str], ...]  # of each in _LISTED: name, value, share of the dense one
    latency: str
    pruned: str
    recovered: str
    tuned: str
    test: str
    uniform: str
    random: str
    score: str
    from_dense: Difference
    from_best: Difference  # "the best" for the best itself


def write_comparison(compared: Compared, path: str | os.PathLike[str]) -> Path:
    """Write the page at `path` atomically and return it. Raises RunError if it cannot be written."""
    page = Path(path)
    text = render_template("compare.html.j2", _context(compared, page))
    atomic_write_bytes(page, text.encode())
    return page


def describe(entry: Entry) -> str:
    """What a network is: its method, goal, agent, episodes and seed, and the time to score policies."""
    summary = entry.summary
    parts = [str(summary.get("method") or ""), entry.goal, str(summary.get("agent") or "")]
    parts += [f"{summary['episodes']} episodes"] if summary.get("episodes") is not None else []
    parts += [f"seed {summary['seed']}"] if summary.get("seed") is not None else []
    parts += [f"searched for {format_seconds(summary['seconds'])}"] if summary.get("seconds") is not None else []
    return ", ".join(part for part in parts if part)


def network_rows(compared: Compared, folder: Path | None = None) -> list[NetworkRow]:
    """One row for each network, in the order given. Links, from `folder`, lead only to pages that exist."""
    return [_row(entry, compared, folder) for entry in compared.entries]


def _row(entry: Entry, compared: Compared, folder: Path | None) -> NetworkRow:
    def score(value: float | None) -> str:
        return format_score(value, percent=compared.percent)

    answers, label = compared.answers, entry.label
    drop = None if answers is None or label not in answers.dense else answers.dense[label][1]
    return NetworkRow(
        label=label,
        name=entry.name,
        link=_link(entry, folder),
        taken=label == compared.choice.taken,
        what=describe(entry),
        costs=tuple(
            (metric_label(m), format_cost(m, entry.slim(m)), format_ratio(entry.dense(m), entry.slim(m)))
            for m in _LISTED
        ),
        latency=format_milliseconds(entry.slim("latency")),
        pruned=score(entry.slim("score")),
        recovered=score(entry.slim("score_recovered")),
        tuned=score(entry.slim("score_finetuned")),
        test=score(entry.test),
        uniform=score(entry.baseline("uniform")),
        random=score(entry.baseline("random")),
        score=score(compared.scores[label]),
        from_dense=Difference(DASH, noise=True) if drop is None else _paired(drop),
        from_best=_from_best(compared, label),
    )


def _link(entry: Entry, folder: Path | None) -> str:
    if folder is None or not entry.run.has(files.REPORT):
        return ""
    return quote(os.path.relpath(entry.run.file(files.REPORT).resolve(), folder.resolve()))


def _context(compared: Compared, page: Path) -> dict[str, object]:
    entries, answers = compared.entries, compared.answers
    groups = compared.groups()
    labels = [entry.label for entry in entries]
    taken = compared.entry(compared.choice.taken)
    return {
        "title": _title(compared),
        "subtitle": f"{len(entries)} networks, {'of one dense network' if compared.shared_dense else 'of several'}",
        "sentence": compared.sentence(),
        "rule": answers is not None,
        "notes": compared.notes,
        "rows": network_rows(compared, page.parent),
        "labels": labels,
        "has": _columns(compared),
        "images": "" if answers is None else answers.which,
        "unseen": None if answers is None else answers.unseen,
        "dense": _dense_cells(compared),
        "score": score_of_record(entries[0].summary).label,
        "charts": [_drawn(compared, metric) for metric in COSTS if len(compared.costs(metric)) > 1],
        "pairs": [_pair_row(compared, first, labels) for first in labels] if answers is not None else [],
        "groups": [_group_cells(row) for row in groups[:_SHOWN_GROUPS]],
        "more_groups": [_group_cells(row) for row in groups[_SHOWN_GROUPS:]],
        "differing": _differing(entries),
        "settings": sections.plain_items(_shared([entry.config for entry in entries])),
        "machine": sections.plain_items(_shared([part_of(entry.summary, "environment") for entry in entries])),
        "taken": taken,
        "python_path": json.dumps(taken.name, ensure_ascii=False),
        "shell_paths": " ".join(shlex.quote(entry.name) for entry in entries),
    }


def _title(compared: Compared) -> str:
    models = dict.fromkeys(str(entry.summary.get("model") or "") for entry in compared.entries)
    data = dict.fromkeys(str(entry.config.get("data") or "") for entry in compared.entries)
    return " · ".join(part for part in (", ".join(filter(None, models)), ", ".join(filter(None, data))) if part)


def _columns(compared: Compared) -> dict[str, bool]:
    """Which columns have a value in some row."""
    entries = compared.entries
    known = {
        "recovered": "score_recovered", "tuned": "score_finetuned", "latency": "latency", "memory": "memory",
    }  # fmt: skip
    columns = {name: any(entry.slim(key) is not None for entry in entries) for name, key in known.items()}
    columns |= {name: any(entry.baseline(name) is not None for entry in entries) for name in ("uniform", "random")}
    return columns | {"test": any(entry.test is not None for entry in entries)}


def _dense_cells(compared: Compared) -> dict[str, str] | None:
    """The dense network as text; None if there are several."""
    if not compared.shared_dense:
        return None

    def known(key: str) -> float | None:
        """From the first run that has it: an earlier version counted less."""
        return next((value for entry in compared.entries if (value := entry.dense(key)) is not None), None)

    return {
        **{metric: format_cost(metric, known(metric)) for metric in COSTS},
        "search": format_score(known("score"), percent=compared.percent),
        "test": format_score(known("test"), percent=compared.percent),
        "score": format_score(_dense_score(compared), percent=compared.percent),
    }


def _dense_score(compared: Compared) -> float | None:
    """The score of the dense network on the same images; None if it is unknown, or there are several."""
    first, answers = compared.entries[0], compared.answers
    if not compared.shared_dense:
        return None
    if answers is None:
        return first.dense("score")
    return answers.dense[first.label][0] if first.label in answers.dense else None


def _drawn(compared: Compared, metric: str) -> dict[str, object]:
    """One chart, its description, and its data as rows."""
    chart, costs = _chart(compared, metric), compared.costs(metric)
    drawings: list[Markup] = [
        front_chart(chart, frame, name=f"{metric}-{width}") for frame, width in ((WIDE, "wide"), (NARROW, "narrow"))
    ]
    rows = [
        (point.label, format_cost(metric, costs[point.label]), format_score(point.score, percent=chart.percent),
         "on the front" if point.on_front else "")
        for point in chart.points
    ]  # fmt: skip
    return {"title": cost_title(metric), "drawings": drawings, "text": describe_front(chart), "rows": rows}


def _chart(compared: Compared, metric: str) -> FrontChart:
    front, scores, answers = compared.front(metric), compared.scores, compared.answers
    best = compared.choice.best
    points = [
        FrontPoint(
            label,
            cost,
            scores[label],
            None if answers is None or label == best else answers.pairs[best, label].standard_error,
            on_front=label in front,
            taken=label == compared.choice.taken,
        )
        for label, cost in compared.costs(metric).items()
    ]
    return FrontChart(points, _dense_score(compared), cost_title(metric), metric, compared.percent)


def _pair_row(compared: Compared, first: str, labels: list[str]) -> tuple[str, list[Difference | None]]:
    """The differences of all networks from the first; None from itself."""
    assert compared.answers is not None
    pairs = compared.answers.pairs
    return first, [None if second == first else _paired(pairs[first, second]) for second in labels]


def _paired(pair: PairedDrop) -> Difference:
    """The unit is said below the table."""
    return Difference(format_paired(pair).removesuffix(POINTS), is_noise(pair))


def _from_best(compared: Compared, label: str) -> Difference:
    best, answers = compared.choice.best, compared.answers
    if label == best:
        return Difference("the best", noise=False)
    if answers is None:
        return Difference(compared.difference(best, label).removesuffix(POINTS), noise=False)
    return _paired(answers.pairs[best, label])


def _group_cells(row: GroupRow) -> tuple[str, list[float | None]]:
    """The name, and the kept shares in percent."""
    return row.name, [None if share is None else 100 * share for share in row.shares]


def _shared(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all records have with one value."""
    first, *others = records
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _differing(entries: tuple[Entry, ...]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, each with the values of all runs."""
    shared = _shared([entry.config for entry in entries])
    names = dict.fromkeys(name for entry in entries for name in entry.config if name not in shared)
    shown = [dict(sections.plain_items(entry.config)) for entry in entries]
    return [(name, [config.get(name, DASH) for config in shown]) for name in names]
