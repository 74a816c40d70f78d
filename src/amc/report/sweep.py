"""Writes the page of a sweep, RUN/report.html: accuracy against cost, with links to the points' own pages."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.report import sections
from amc.report.charts.curve import Curve, CurvePoint, curve_chart, describe_curve, scored
from amc.report.charts.drawing import NARROW, WIDE
from amc.report.page import open_run, render_template
from amc.report.tables import (
    format_bytes,
    format_count,
    format_ratio,
    format_score,
    named_scores,
    part_of,
    records_of,
    scores_are_fractions,
)
from amc.report.words import metric_label, words_of
from amc.run import files
from amc.run.directory import RunDir


@dataclass(frozen=True, slots=True)
class PointRow:
    """One point as text."""

    number: int
    budget: str
    macs: str
    params: str
    size: str
    pruned: str  # score of the search
    score: str  # as the curve shows it
    uniform: str  # as pruned, of the uniform policy
    test: str
    link: str  # relative address of the point's own page; "" if absent
    knee: bool


def render_sweep(run: str | os.PathLike[str] | RunDir, *, now: str = "", refresh: int | None = None) -> Path:
    """Write the page of a sweep atomically and return its path.

    The page of an unfinished sweep shows the points so far. Raises `RunError` if the directory is not a run or contains
    a damaged file. `now` and `refresh` as in `render_report`.
    """
    directory = open_run(run)
    config = directory.config()
    summary = directory.read_json(files.SUMMARY) if directory.has(files.SUMMARY) else {}
    page = render_template("sweep.html.j2", _context(directory, config, summary), now=now, refresh=refresh)
    directory.write_text(files.REPORT, page)
    return directory.file(files.REPORT)


def point_rows(summary: Mapping[str, Any], run: RunDir | None = None) -> list[PointRow]:
    """One row per finished point, the largest budget first. Links only to pages that exist in `run`."""
    curve = curve_of(summary)
    shown = {point.number: point for point in curve.points}
    return [_row(number, point, shown, curve, run) for number, point in _numbered(summary)]


def curve_of(summary: Mapping[str, Any]) -> Curve:
    """The curve of a sweep's summary."""
    metric = str((summary.get("sweep") or {}).get("metric", "macs"))
    points, dense, knee = [], None, None
    for number, point in _numbered(summary):
        slim, whole = part_of(point, "slim"), part_of(point, "dense")
        after = slim.get("unseen", slim.get("score_recovered", slim.get("score")))
        dense = whole.get("unseen", whole.get("score"))
        knee = number if point.get("budget") == summary.get("knee") else knee
        cost = whole.get(metric)
        if after is not None and cost and slim.get(metric):
            points.append(
                CurvePoint(number, slim[metric] / cost, after, point.get("standard_error"), slim.get("score"))
            )
    percent = all(scores_are_fractions(point) for _, point in _numbered(summary))
    return Curve(points, dense, knee, metric_label(metric), percent)


def _numbered(summary: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The points by their number, with named scores."""
    points = (named_scores(point) for point in records_of(summary.get("points")))
    return [(int(str(point.get("run", "")).rpartition("-")[2] or 0), point) for point in points]


def _row(
    number: int, point: Mapping[str, Any], shown: Mapping[int, CurvePoint], curve: Curve, run: RunDir | None
) -> PointRow:
    dense, slim = part_of(point, "dense"), part_of(point, "slim")
    uniform = part_of(point, "baselines").get("uniform") or {}
    page = f"point-{number}/{files.REPORT}"
    return PointRow(
        number=number,
        budget=str(point.get("budget") or ""),
        macs=format_ratio(dense.get("macs"), slim.get("macs")),
        params=format_ratio(dense.get("params"), slim.get("params")),
        size=format_bytes(slim.get("size")),
        pruned=format_score(slim.get("score"), percent=curve.percent),
        score=scored(shown[number], percent=curve.percent) if number in shown else "",
        uniform=format_score(uniform.get("score"), percent=curve.percent),
        test=format_score(slim.get("test_recovered", slim.get("test")), percent=curve.percent),
        link=page if run is not None and run.has(page) else "",
        knee=number == curve.knee,
    )


def _context(run: RunDir, config: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, object]:
    summary = {**config, **results}
    curve, points = curve_of(summary), _numbered(summary)
    dense = part_of(points[0][1], "dense") if points else {}
    plan = part_of(summary, "sweep")
    rows = point_rows(summary, run)
    best = next((row for row in rows if row.knee), rows[0] if rows else None)
    return {
        "title": " · ".join(str(part) for part in (summary.get("model"), summary.get("data")) if part),
        "fallback": str(run.path),
        "subtitle": _subtitle(summary, plan, curve),
        "words": words_of(summary.get("method")),
        "done": len(rows),
        "planned": plan.get("points"),
        "knee": summary.get("knee"),
        "images": points[0][1].get("images") if points else None,
        "dense": {
            "macs": format_count(dense.get("macs")),
            "params": format_count(dense.get("params")),
            "size": format_bytes(dense.get("size")),
            "score": format_score(curve.dense, percent=curve.percent),
            "search": format_score(dense.get("score"), percent=curve.percent),
            "test": format_score(dense.get("test"), percent=curve.percent),
        },
        "rows": rows,
        "charts": [curve_chart(curve, WIDE, name="curve-wide"), curve_chart(curve, NARROW, name="curve-narrow")],
        "chart_text": describe_curve(curve),
        "settings": sections.plain_items(config),
        "machine": sections.plain_items(summary.get("environment")),
        "python_path": json.dumps(str(run.path / f"point-{best.number}"), ensure_ascii=False) if best else "",
        "shell_path": shlex.quote(str(run.path)),
    }


def _subtitle(summary: Mapping[str, Any], plan: Mapping[str, Any], curve: Curve) -> str:
    ends = f"from {plan.get('start')} to {plan.get('end')} ({curve.cost})"
    parts = [f"{summary.get('method') or ''} pruning to {plan.get('points')} budgets, {ends}".strip()]
    parts += [f"{summary['episodes']} episodes together"] if summary.get("episodes") is not None else []
    parts += [f"seed {summary['seed']}"] if summary.get("seed") is not None else []
    return ", ".join(parts)
