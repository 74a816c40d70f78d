"""The tables of a study: every method under every constraint, as HTML, Markdown, CSV and JSON.

A row has the median of its seeds, and with several seeds the range. Costs, scores and what runtimes measure are three
tables of the same rows, so that each fits a page.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.report import sections
from amc.report.page import open_run, render_template
from amc.report.tables import (
    DASH,
    format_bytes,
    format_count,
    format_milliseconds,
    format_score,
    format_seconds,
    named_scores,
    part_of,
)
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import StudyConfig
from amc.run.settings.study import Cell, listed
from amc.search import load_journal

NO_ENERGY = "the machine shows no energy counters (/sys/class/powercap/intel-rapl:*/energy_uj)"
MARKDOWN, TABLE, RECORD = "study.md", "study.csv", "study.json"
Values = dict[str, list[float]]  # of every seed, by the name of the column


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a row."""

    key: str
    title: str
    kind: str  # "count", "bytes", "share", "score", "ms", "times" or "seconds"


COSTS = (
    Column("macs", "MACs", "count"),
    Column("macs_share", "MACs left", "share"),
    Column("params", "parameters", "count"),
    Column("params_share", "parameters left", "share"),
    Column("size", "stored", "bytes"),
    Column("memory", "memory", "bytes"),
)
SCORES = (
    Column("score", "pruned", "score"),
    Column("standard_error", "± of the difference", "share"),
    Column("uniform", "uniform, pruned", "score"),
    Column("random", "random, pruned", "score"),
    Column("score_recovered", "recovered", "score"),
    Column("score_finetuned", "fine-tuned", "score"),
)
TEST = (
    Column("test", "pruned", "score"),
    Column("test_recovered", "recovered", "score"),
    Column("test_finetuned", "fine-tuned", "score"),
)
TIMES = (Column("seconds", "search", "seconds"), Column("finetune_seconds", "fine-tuning", "seconds"))
RESULTS = ("score_finetuned", "score_recovered", "score")  # what ranks: the last that a row has, never the test split


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One method under one constraint, or the dense network."""

    method: str
    constraint: str
    values: Values
    done: int  # seeds with a result
    reason: str  # why there is none, or not of all seeds

    @property
    def name(self) -> str:
        """The row's title."""
        return f"{self.method}, {self.constraint}" if self.constraint else self.method

    def median(self, key: str) -> float | None:
        """The median of the seeds; None if no seed has this figure."""
        return statistics.median(found) if (found := self.values.get(key)) else None

    @property
    def result(self) -> float | None:
        """The score of the network that the row ends with, on the images of the search; None without a result."""
        return next((value for key in RESULTS if (value := self.median(key)) is not None), None)

    @property
    def test(self) -> float | None:
        """The score of that network on the test split."""
        keys = (key.replace("score", "test") for key in RESULTS)
        return next((value for key in keys if (value := self.median(key)) is not None), None)

    @property
    def spread(self) -> float:
        """From the lowest to the highest result of the seeds."""
        values = next((self.values[key] for key in RESULTS if key in self.values), [0.0])
        return max(values) - min(values)


@dataclass(frozen=True, slots=True)
class Study:
    """A study in memory."""

    config: Mapping[str, Any]
    plan: StudyConfig
    dense: StudyRow
    rows: tuple[StudyRow, ...]
    machine: Mapping[str, Any]

    @property
    def done(self) -> int:
        """Searches with a result."""
        return sum(row.done for row in self.rows)

    @property
    def has_energy(self) -> bool:
        """Whether the machine that measured shows the energy of a pass."""
        return any(f"{runtime}_energy" in self.dense.values for runtime in listed(self.plan.runtimes))

    def columns(self) -> dict[str, tuple[Column, ...]]:
        """The columns that some row has, by the title of their table."""
        rows = (self.dense, *self.rows)
        tables = {"Costs": COSTS, "Scores on the images of the search": SCORES, "Scores on the test split": TEST}
        for runtime in listed(self.plan.runtimes):
            tables[f"On {runtime}"] = (
                Column(f"{runtime}_ms", "latency", "ms"),
                Column(f"{runtime}_times", "as fast", "times"),
                Column(f"{runtime}_bytes", "file", "bytes"),
                Column(f"{runtime}_energy", "energy", "mj"),
            )
        tables["Time"] = TIMES
        known = {key for row in rows for key, values in row.values.items() if values}
        found = {title: tuple(c for c in columns if c.key in known) for title, columns in tables.items()}
        return {title: columns for title, columns in found.items() if columns}

    def verdicts(self) -> dict[str, str]:
        """For every budget that several methods meet, in words: the method whose result scores best.

        Level with it are methods within the standard error of a difference, or, of several seeds, within their range.
        """
        found = {}
        for constraint in self.plan.constraints():
            rows = [row for row in self.rows if row.constraint == constraint.text and row.result is not None]
            if len(rows) > 1 and constraint.metric:
                best = max(rows, key=lambda row: row.result or 0.0)
                level = [row.method for row in rows if row is not best and self._level(best, row)]
                found[constraint.text] = f"{best.method} scores best" + (
                    f", {' and '.join(level)} within the uncertainty" if level else ""
                )
        return found

    def _level(self, best: StudyRow, other: StudyRow) -> bool:
        errors = [row.median("standard_error") or 0.0 for row in (best, other)]
        return (best.result or 0.0) - (other.result or 0.0) <= max(*errors, best.spread, other.spread)


def render_study(run: str | os.PathLike[str] | RunDir, *, now: str = "", refresh: int | None = None) -> Path:
    """Write the page of a study, and its tables beside it, atomically; returns the page's path.

    The tables of an unfinished study have the results so far. Raises `RunError` if the directory is not a study or
    contains a damaged file. `now` and `refresh` as in `render_report`.
    """
    directory = open_run(run)
    study = read_study(directory)
    directory.write_text(MARKDOWN, markdown(study))
    directory.write_text(TABLE, as_csv(study))
    directory.write_text(RECORD, json.dumps(to_json(study), indent=2) + "\n")
    page = render_template("study.html.j2", _context(directory, study), now=now, refresh=refresh)
    directory.write_text(files.REPORT, page)
    return directory.file(files.REPORT)


def read_study(run: RunDir) -> Study:
    """The results of a study so far."""
    config = run.config()
    plan = StudyConfig(**config["study"])
    measured = run.read_json(files.MEASURED) if run.has(files.MEASURED) else {}
    reasons, runtimes = part_of(measured, "reasons"), part_of(measured, "runtimes")
    cells: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells():
        cells.setdefault((cell.method, cell.constraint.text), []).append(cell)
    summaries = {cell.name: _summary(run, cell) for group in cells.values() for cell in group}
    rows = tuple(
        _row(run, method, constraint, group, summaries, reasons, runtimes)
        for (method, constraint), group in cells.items()
    )
    finished = [summary for summary in summaries.values() if summary]
    dense = _dense(finished, runtimes)
    return Study(config, plan, dense, rows, part_of(finished[0], "environment") if finished else {})


def markdown(study: Study) -> str:
    """The tables as Markdown."""
    parts = [f"# {_title(study)}\n", _about(study) + "\n"]
    for title, columns in study.columns().items():
        lines = [["", *(column.title for column in columns)], ["---"] * (len(columns) + 1)]
        lines += [[name, *cells] for name, cells in _lines(study, columns)]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    left_out = [f"- {row.name}: {row.reason}" for row in study.rows if row.reason]
    if left_out:
        parts.append("## Without a result\n\n" + "\n".join(left_out) + "\n")
    return "\n".join(parts)


def as_csv(study: Study) -> str:
    """One line a row: plain numbers, the medians of the seeds; shares and scores as fractions."""
    columns = [column for group in study.columns().values() for column in group]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "constraint", "seeds", *(column.key for column in columns), "reason"])
    for row in (study.dense, *study.rows):
        values = [row.median(column.key) for column in columns]
        cells = ["" if value is None else f"{value:.10g}" for value in values]
        writer.writerow([row.method, row.constraint, row.done, *cells, row.reason])
    return text.getvalue()


def to_json(study: Study) -> dict[str, Any]:
    """The study as a record: the figures of every seed."""

    def record(row: StudyRow) -> dict[str, Any]:
        return {
            "method": row.method, "constraint": row.constraint, "seeds": row.done, "reason": row.reason or None,
            "values": row.values,
        }  # fmt: skip

    return {
        "model": study.config.get("model"),
        "data": study.config.get("data"),
        "study": study.plan.to_json(),
        "dense": record(study.dense),
        "rows": [record(row) for row in study.rows],
        "verdicts": study.verdicts(),
        "energy": None if study.has_energy else NO_ENERGY,
        "environment": dict(study.machine),
    }


def _summary(run: RunDir, cell: Cell) -> dict[str, Any]:
    """The summary of a cell with named scores; empty if its search is not finished."""
    place = run.file(cell.name)
    if not (place / files.SUMMARY).exists():
        return {}
    return named_scores(RunDir.open(place).read_json(files.SUMMARY))


def _row(
    run: RunDir, method: str, constraint: str, cells: Sequence[Cell], summaries: Mapping[str, Any],
    reasons: Mapping[str, Any], runtimes: Mapping[str, Any],
) -> StudyRow:  # fmt: skip
    values: Values = {}
    finished = [cell for cell in cells if summaries[cell.name]]
    for cell in finished:
        inner, summary = RunDir.open(run.file(cell.name)), summaries[cell.name]
        figures = {
            **_figures(summary), **_timings(part_of(runtimes, cell.name), "slim"),
            "standard_error": _error(inner, summary), "finetune_seconds": _tuning(inner),
        }  # fmt: skip
        _add(values, figures)
    failed = [str(reasons[cell.name]) for cell in cells if cell.name in reasons]
    failed += [
        f"{runtime}: {found['error']}"
        for cell in finished
        for runtime, found in part_of(runtimes, cell.name).items()
        if "error" in found
    ]
    return StudyRow(method, constraint, values, len(finished), "; ".join(dict.fromkeys(failed)))


def _dense(finished: Iterable[Mapping[str, Any]], runtimes: Mapping[str, Any]) -> StudyRow:
    values: Values = {}
    for summary in finished:
        dense = part_of(summary, "dense")
        shares = {"macs_share": 1.0, "params_share": 1.0}
        _add(values, {key: dense.get(key) for key in ("macs", "params", "size", "memory", "score", "test")} | shares)
        break  # it is the same in every cell
    for found in runtimes.values():
        _add(values, _timings(found, "dense"))
    return StudyRow("dense", "", values, 0, "")


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    dense, slim, baselines = (part_of(summary, name) for name in ("dense", "slim", "baselines"))
    figures = {key: slim.get(key) for key in ("macs", "params", "size", "memory")}
    figures |= {
        f"{key}_share": slim[key] / dense[key] for key in ("macs", "params") if dense.get(key) and slim.get(key)
    }
    figures |= {column.key: slim.get(column.key) for column in (*SCORES, *TEST) if column.key in slim}
    figures |= {name: part_of(baselines, name).get("score") for name in ("uniform", "random")}
    return figures | {"seconds": summary.get("seconds")}


def _timings(found: Mapping[str, Any], network: str) -> dict[str, Any]:
    """What runtimes measured of the dense or the slim network."""
    figures: dict[str, Any] = {}
    for runtime, record in found.items():
        timing = part_of(part_of(record, "networks"), network)
        figures[f"{runtime}_ms"], figures[f"{runtime}_bytes"] = timing.get("latency_ms"), timing.get("file_bytes")
        figures[f"{runtime}_energy"] = timing.get("energy_mj")
        if timing.get("ratio"):
            figures[f"{runtime}_times"] = 1 / timing["ratio"]
    return figures


def _error(run: RunDir, summary: Mapping[str, Any]) -> float | None:
    """The standard error of the difference between the result and the dense network, on the images of the search."""
    keep = [group.get("kept") for group in summary.get("groups") or ()]
    records = load_journal(run.file(files.JOURNAL)).records if run.has(files.JOURNAL) else ()
    return next((record.standard_error for record in records if list(record.keep) == keep), None)


def _tuning(run: RunDir) -> float | None:
    """The seconds of fine-tuning."""
    epochs = [record for record in run.read_jsonl(files.FINETUNE) if "epoch" in record]
    return sum(float(record.get("seconds") or 0.0) for record in epochs) if epochs else None


def _add(values: Values, figures: Mapping[str, Any]) -> None:
    for key, value in figures.items():
        if isinstance(value, int | float):
            values.setdefault(key, []).append(value)


def _lines(study: Study, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """The rows of one table as text, the dense network first."""
    rows = [study.dense, *(row for row in study.rows if row.done)]
    return [(row.name, [_text(row, column) for column in columns]) for row in rows]


def _text(row: StudyRow, column: Column) -> str:
    """The median, and the range of several seeds."""
    values = row.values.get(column.key, [])
    if not values:
        return DASH
    middle = _formatted(statistics.median(values), column.kind)
    if row.constraint and len(values) > 1 and min(values) != max(values):
        return f"{middle} ({_formatted(min(values), column.kind)} to {_formatted(max(values), column.kind)})"
    return middle


def _formatted(value: float, kind: str) -> str:
    if kind == "score":
        return format_score(value, percent=0 <= value <= 1)
    if kind == "share":
        return f"{value:.2%}"
    if kind == "mj":
        return f"{value:.3g} mJ"
    if kind == "times":
        return f"{value:.2f}×"
    formats = {"count": format_count, "bytes": format_bytes, "ms": format_milliseconds, "seconds": format_seconds}
    return formats[kind](value)


def _title(study: Study) -> str:
    named = (study.config.get("model"), study.config.get("data"))
    return "Study of " + " · ".join(str(part) for part in named if part)


def _about(study: Study) -> str:
    """What was compared, and how far it is."""
    plan = study.plan
    parts = [f"{study.done} of {len(plan.cells())} searches have a result"]
    parts += [f"{study.config.get('episodes')} policies each"]
    epochs = f"{plan.epochs} epoch{'s' if plan.epochs > 1 else ''}"
    parts += [f"{epochs} of fine-tuning"] if plan.epochs else ["no fine-tuning"]
    parts += [f"medians of {plan.seeds} seeds, and their range"] if plan.seeds > 1 else ["one seed"]
    text = "; ".join(parts) + "."
    return text if study.has_energy or not listed(plan.runtimes) else f"{text} No energy: {NO_ENERGY}."


def _context(run: RunDir, study: Study) -> dict[str, object]:
    tables = [
        (title, [column.title for column in columns], [sections.Row(name, tuple(cells)) for name, cells in lines])
        for title, columns in study.columns().items()
        if (lines := _lines(study, columns))
    ]
    cells = study.plan.cells()
    return {
        "title": _title(study),
        "fallback": str(run.path),
        "about": _about(study),
        "done": study.done,
        "planned": len(cells),
        "tables": tables,
        "verdicts": study.verdicts(),
        "reasons": [(row.name, row.reason) for row in study.rows if row.reason],
        "links": [
            (cell.name, f"{cell.name}/{files.REPORT}") for cell in cells if run.has(f"{cell.name}/{files.REPORT}")
        ],
        "files": [name for name in (MARKDOWN, TABLE, RECORD) if run.has(name)],
        "settings": sections.plain_items({**study.config, **study.plan.to_json(), "study": None}),
        "machine": sections.plain_items(study.machine),
    }
