"""Results as tables and lines on a terminal.

Writes only to the consoles that `amc.cli` hands in.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from amc.report.finalists import finalists_sentence
from amc.report.guarantee import guarantee_verdict
from amc.report.pruned_part import part_sentence
from amc.report.schedule import schedule_rows
from amc.report.stopping import stop_sentence
from amc.report.sweep import curve_of, point_rows
from amc.report.tables import (
    budget_lines,
    format_bytes,
    format_count,
    format_ratio,
    format_score,
    format_seconds,
    named_scores,
    summary_table,
)
from amc.report.words import metric_label, metric_of, words_of
from amc.run import files

LOCKS_SHOWN = 8


def show_summary(console: Console, run: Path, summary: Mapping[str, Any]) -> None:
    """Show the result, the baselines and the path of the report; for a schedule each round, for a sweep each point."""
    summary = named_scores(summary)
    console.print()
    if summary.get("sweep"):
        console.print(_points_table(summary))
        console.print()
        _show_line(console, "knee", summary.get("knee") or "none: the curve is straight within its uncertainty")
    elif summary.get("schedule"):
        console.print(_rounds_table(summary))
        console.print()
    else:
        console.print(_result_table(summary))
        console.print()
        _show_promises(console, summary)
        _show_search(console, summary)
    if not words_of(summary.get("method")).slices:
        _show_line(console, "masked", "dropped weights are zero; most runtimes run the network no faster")
    for warning in summary.get("warnings") or ():
        _show_line(console, "warning", warning, style="yellow")
    if run.joinpath(files.REPORT).exists():
        console.print(f"report    {run / files.REPORT}", markup=False, soft_wrap=True)


def _result_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = summary_table(summary)
    finetuned = any(row.finetuned for row in rows)
    result = words_of(summary.get("method")).result
    for title in ("", "dense", result, *(("fine-tuned",) if finetuned else ()), "change"):
        table.add_column(title, justify="left" if title in ("", "change") else "right")
    for row in rows:
        cells = [row.quantity, row.dense, row.slim, *((row.finetuned,) if finetuned else ()), row.change]
        table.add_row(*cells)
    return table


def _rounds_table(summary: Mapping[str, Any]) -> Table:
    """Eight columns in 80 characters: costs as shares of the dense network's."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("round", "asked", "MACs", "params", "size", "pruned", "fine-tuned", "test"):
        table.add_column(title, justify="left" if title == "round" else "right", no_wrap=True)
    dense = summary.get("dense") or {}
    macs, params, size = format_count(dense.get("macs")), format_count(dense.get("params")), dense.get("size")
    scores = (format_score(dense.get("score")), format_score(dense.get("test")))
    table.add_row("dense", "", macs, params, format_bytes(size), "", *scores, style="dim")
    for row in schedule_rows(summary):
        cells = (row.asked, row.macs, row.params, row.size, row.pruned, row.tuned, row.test)
        table.add_row(str(row.number), *cells)
    return table


def _points_table(summary: Mapping[str, Any]) -> Table:
    """Seven columns in 80 characters."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("point", "budget", "MACs", "params", "uniform", "pruned", "result", "test"):
        table.add_column(title, justify="left" if title in ("point", "budget") else "right", no_wrap=True)
    curve = curve_of(summary)
    table.add_row("dense", "", "", "", "", "", format_score(curve.dense, percent=curve.percent), "", style="dim")
    for row in point_rows(summary):
        cells = (row.budget, row.macs, row.params, row.uniform, row.pruned, row.score, row.test)
        table.add_row(f"{row.number}{' knee' if row.knee else ''}", *cells)
    return table


def _show_promises(console: Console, summary: Mapping[str, Any]) -> None:
    """Show whether budgets and the allowed loss hold."""
    for line in budget_lines(summary):
        _show_line(console, "budget", line.text, style="green" if line.held else "red")
    verdict = guarantee_verdict(summary)
    if verdict:
        _show_line(console, "max-drop", verdict.sentence, style="green" if verdict.confirmed else "red")


def _show_search(console: Console, summary: Mapping[str, Any]) -> None:
    """Show the baselines and the time of the search."""
    for name, baseline in (summary.get("baselines") or {}).items():
        count = baseline.get("episodes", 1)
        what = f"best of {count}, median {format_score(baseline.get('median'))}" if count > 1 else "one policy"
        left = _left_of(baseline, summary)
        _show_line(console, name, f"{format_score(baseline.get('score'))}{left} ({what})")
    sentences = {
        "part": part_sentence(summary),
        "finalists": finalists_sentence(summary),
        "search": stop_sentence(summary),
    }
    for label, sentence in sentences.items():
        if sentence:
            _show_line(console, label, sentence)
    if summary.get("seconds") is not None:
        _show_line(console, "scoring", format_seconds(summary["seconds"]))


def _show_line(console: Console, label: str, text: object, style: str = "") -> None:
    """Print a labelled line, wrapped under its text if it is too long."""
    plain = textwrap.fill(str(text), console.width, initial_indent=f"{label:<9} ", subsequent_indent=" " * 10)
    console.print(plain, style=style, markup=False, soft_wrap=True)


def _left_of(baseline: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The cost of a baseline's best policy, if no budget makes the costs equal."""
    metric = metric_of(summary)
    dense = (summary.get("dense") or {}).get(metric)
    if str(summary.get("budget")) != "none" or not dense or metric not in baseline:
        return ""
    return f" at {format_ratio(dense, baseline[metric])} of the {metric_label(metric)}"


def show_structure(console: Console, record: Mapping[str, Any]) -> None:
    """Show groups with their share of the cost, locks with their reasons, and the budgets that can be reached."""
    macs, params, least = record["macs"], record["params"], record["least"]
    shape = "x".join(map(str, record["input"]))
    part = f", part {record['part']}" if "part" in record else ""
    console.print(
        f"{record['model']}{part}, input {shape}: {format_count(macs)} MACs, {format_count(params)} parameters, "
        f"{format_bytes(record['memory'])} of activations at once"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("MACs touched", justify="right", no_wrap=True)
    wide = console.width >= 110
    if wide:
        table.add_column("read by", overflow="ellipsis", no_wrap=True)
    for group in record["groups"]:
        share = f"{group['macs'] / max(1, macs):.1%}"
        table.add_row(group["name"], str(group["size"]), share, *((_few(group["consumers"]),) if wide else ()))
    if record["groups"]:
        console.print(table)
    console.print(
        f"prunable: {record['prunable_macs']:.1%} of the MACs; budgets down to macs<={least['macs'] / max(1, macs):.1%}"
        f", params<={least['params'] / max(1, params):.1%} or memory<={least['memory'] / max(1, record['memory']):.1%}"
        " can be reached"
    )
    reasons = Counter(item["reason"] for item in record["only_sliced"])
    only_sliced = "".join(f"; {count} only sliced: {reason}" for reason, count in reasons.most_common())
    console.print(f"refitted by least squares: {len(record['refitted'])} layers{only_sliced}", markup=False)
    if record["bound"]:
        console.print(f"sizes from the input's shape, which a slice binds: in {_few(record['bound'])}", markup=False)
    for note in record.get("notes", ()):
        console.print(note, markup=False)
    for item in record["locked"][:LOCKS_SHOWN]:
        console.print(f"locked: {item['name']} ({item['size']} channels): {item['reason']}", markup=False)
    if len(record["locked"]) > LOCKS_SHOWN:
        console.print(f"… and {len(record['locked']) - LOCKS_SHOWN} more locked; --json lists them all")
    certificate = record["certificate"]
    if certificate is not None:
        verdict = "holds" if certificate["passed"] else "failed for the groups locked above"
        console.print(
            f"certificate: sliced equals masked on {certificate['keep_sets']} random keep set(s): {verdict}"
            f" (largest difference {certificate['worst_error']:.0e})"
        )
    differences = (certificate or {}).get("approximate", {})
    for group in record["groups"]:
        if "approximate" in group:
            difference = differences.get(group["name"])
            told = "" if difference is None else f"; without a quarter of them the output differs by {difference:.1%}"
            console.print(f"approximate: {group['name']}: {group['approximate']}{told}", markup=False)


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


__all__ = ["show_structure", "show_summary"]


def show_why(console: Console, record: Mapping[str, Any]) -> None:
    """How the channels of a layer came to be tied or locked, in the order of the forward."""
    for each in record["why"]:
        count = len(each["channels"])
        fate = "can be pruned" if each["locked"] is None else "locked"
        console.print(f"{record['name']}: {spans(each['channels'])} ({count}): {fate}", markup=False)
        for number, step in enumerate(each["steps"], start=1):
            file = step["source"].rpartition("/")[2]
            kind = step["operator"].removeprefix("aten.").partition(".")[0] or "one attribute counts both"
            where = f" in '{step['module']}'" * bool(step["module"]) + f" ({file})" * bool(file)
            console.print(f"{number:3}. {kind}{where} joins {', '.join(step['joined'])}", markup=False)
        if each["locked"] is not None:
            console.print(f"     locked: {each['locked']['reason']}", markup=False)


def spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "channels 0-2, 5"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    text = ", ".join("-".join(map(str, span)) for span in found)
    return f"channel{'s' * (len(numbers) > 1)} {text}"
