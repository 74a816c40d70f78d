"""How jobs and results look on a terminal: progress while they run, tables when they end.

Writes only to the consoles that `amc.cli` hands in.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from amc import rundir
from amc.recovery import EpochRecord, StepRecord
from amc.report import (
    budget_lines,
    format_bytes,
    format_count,
    format_ratio,
    format_score,
    format_seconds,
    guarantee_verdict,
    metric_label,
    metric_of,
    named_scores,
    schedule_rows,
    summary_table,
    words_of,
)
from amc.scores import NamedScore
from amc.search import EpisodeRecord, EpisodeTiming
from amc.structure import Certificate, Structure

LOCKS_SHOWN = 8
PLAIN_EVERY = 20  # episodes between lines where there is no terminal to redraw


class Progress:
    """Live progress on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=7),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: int | None = None
        self._name = ""
        self._episodes: Mapping[str, int] = {}
        self._best: EpisodeRecord | None = None  # the most rewarded
        self._dense_macs = 1

    def stage(self, name: str) -> None:
        """A new part of the job begins."""
        self._end_task()
        self._best = None
        self.console.print(f"· {name}", style="dim", markup=False)

    def structure(self, structure: Structure, certificate: Certificate | None) -> None:
        """What was found in the network."""
        self._dense_macs = max(1, structure.macs)
        proof = ""
        if certificate is not None:
            count = certificate.keep_sets
            proof = f"; sliced equals masked on {count} random keep set{'s' if count != 1 else ''}"
        self._say(
            f"{len(structure.groups)} groups, {structure.prunable_macs():.0%} of {format_count(structure.macs)} MACs "
            f"in layers that can be pruned{proof}"
        )
        for name, lock in certificate.failed if certificate else ():
            self._say(f"locked '{name}': {lock}", style="yellow")

    def warning(self, text: str) -> None:
        """Something the user should know, though the job goes on."""
        self.console.print(f"  warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def dense(self, score: float) -> None:
        """The score to compare with."""
        name = f" ({score.kind.label})" if isinstance(score, NamedScore) else ""
        self._say(f"dense network scores {format_score(score)}{name}")

    def plan(self, episodes: Mapping[str, int]) -> None:
        """How many episodes each agent has."""
        self._episodes = episodes

    def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
        """One more policy was scored."""
        if record.reward is not None and (self._best is None or record.reward > (self._best.reward or 0.0)):
            self._best = record
        total = self._episodes.get(agent, record.episode + 1)
        best = self._best
        at = f" ({self._macs_left(best)})" if best else ""
        score = _short(record.score)
        note = f"score {score}  best {_score_of(best)}{at}  MACs {self._macs_left(record)}"
        self._advance(f"  {agent}", total, record.episode + 1, note)
        last = record.episode + 1 == total
        if last or (not self.console.is_terminal and (record.episode + 1) % PLAIN_EVERY == 0):
            left = f" at {self._macs_left(best)} of the MACs" if best else ""
            self._say(f"{agent} {record.episode + 1}/{total}: best {_score_of(best)}{left}, last {score}")
        if record.error is not None:
            self._say(f"episode {record.episode} failed: {record.error}", style="yellow")

    def training(self, step: StepRecord) -> None:
        """One more step of fine-tuning."""
        note = f"epoch {step.epoch}  loss {step.loss:.3f}  lr {step.lr:.4f}"
        self._advance("  fine-tuning", step.total_steps, step.step, note)

    def epoch(self, epoch: EpochRecord, score: float) -> None:
        """One more pass over the training split."""
        self._say(f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, score {format_score(score)}")

    def close(self) -> None:
        """Clear the line that was being redrawn."""
        self._end_task()

    def _macs_left(self, record: EpisodeRecord) -> str:
        return f"{record.cost.get('macs', 0.0) / self._dense_macs:.1%}"

    def _advance(self, name: str, total: int, done: int, note: str) -> None:
        if self._task is None or self._name != name:
            self._end_task()
            self._name = name
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, note="")
        self._bar.update(self._task_id(), completed=done, total=total, note=note)

    def _task_id(self) -> Any:
        return self._task

    def _end_task(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task_id())
            self._bar.stop()
            self._task = None

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(f"  {text}", style=style, markup=False, soft_wrap=not self.console.is_terminal)


def _short(score: float | None) -> str:
    if isinstance(score, NamedScore) and score.error is not None:
        return format_score(score)
    return "failed" if score is None else f"{score:.4f}"


def _score_of(record: EpisodeRecord | None) -> str:
    return _short(record.score if record else None)


def show_summary(console: Console, run: Path, summary: Mapping[str, Any]) -> None:
    """What came out, the baselines, and where everything lies; of a schedule, round by round."""
    summary = named_scores(summary)
    console.print()
    if summary.get("schedule"):
        console.print(_rounds_table(summary))
        console.print()
    else:
        console.print(_result_table(summary))
        console.print()
        _show_promises(console, summary)
        _show_search(console, summary)
    if not words_of(summary.get("method")).slices:
        _tell(console, "masked", "weights that were dropped are zero: on most runtimes it runs no faster")
    for warning in summary.get("warnings") or ():
        _tell(console, "warning", warning, style="yellow")
    if run.joinpath(rundir.REPORT).exists():
        console.print(f"report    {run / rundir.REPORT}", markup=False, soft_wrap=True)


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


def _show_promises(console: Console, summary: Mapping[str, Any]) -> None:
    """Whether budgets and the allowed loss hold."""
    for line in budget_lines(summary):
        _tell(console, "budget", line.text, style="green" if line.held else "red")
    verdict = guarantee_verdict(summary)
    if verdict:
        _tell(console, "max-drop", verdict.sentence, style="green" if verdict.confirmed else "red")


def _show_search(console: Console, summary: Mapping[str, Any]) -> None:
    """The baselines beside, and the time that it took."""
    for name, baseline in (summary.get("baselines") or {}).items():
        count = baseline.get("episodes", 1)
        what = f"best of {count}, median {format_score(baseline.get('median'))}" if count > 1 else "one policy"
        left = _left_of(baseline, summary)
        _tell(console, name, f"{format_score(baseline.get('score'))}{left} ({what})")
    if summary.get("seconds") is not None:
        _tell(console, "scoring", format_seconds(summary["seconds"]))


def _tell(console: Console, label: str, text: object, style: str = "") -> None:
    """One labelled line, broken under its text where it is too long."""
    plain = textwrap.fill(str(text), console.width, initial_indent=f"{label:<9} ", subsequent_indent=" " * 10)
    console.print(plain, style=style, markup=False, soft_wrap=True)


def _left_of(baseline: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What a baseline's best policy keeps, where no budget makes that the same for all."""
    metric = metric_of(summary)
    dense = (summary.get("dense") or {}).get(metric)
    if str(summary.get("budget")) != "none" or not dense or metric not in baseline:
        return ""
    return f" at {format_ratio(dense, baseline[metric])} of the {metric_label(metric)}"


def show_structure(console: Console, found: Mapping[str, Any]) -> None:
    """Groups with their share of the cost, locks with their reasons, and what budgets can be reached."""
    macs, params, least = found["macs"], found["params"], found["least"]
    shape = "x".join(map(str, found["input"]))
    console.print(f"{found['model']}, input {shape}: {format_count(macs)} MACs, {format_count(params)} parameters")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("MACs touched", justify="right", no_wrap=True)
    wide = console.width >= 110
    if wide:
        table.add_column("read by", overflow="ellipsis", no_wrap=True)
    for group in found["groups"]:
        share = f"{group['macs'] / max(1, macs):.1%}"
        table.add_row(group["name"], str(group["size"]), share, *((_few(group["consumers"]),) if wide else ()))
    if found["groups"]:
        console.print(table)
    console.print(
        f"prunable: {found['prunable_macs']:.1%} of the MACs; budgets down to macs<={least['macs'] / max(1, macs):.1%}"
        f" or params<={least['params'] / max(1, params):.1%} can be reached"
    )
    reasons = Counter(item["reason"] for item in found["only_sliced"])
    only_sliced = "".join(f"; {count} only sliced: {reason}" for reason, count in reasons.most_common())
    console.print(f"refitted by least squares: {len(found['refitted'])} layers{only_sliced}", markup=False)
    for item in found["locked"][:LOCKS_SHOWN]:
        console.print(f"locked: {item['name']} ({item['size']} channels): {item['reason']}", markup=False)
    if len(found["locked"]) > LOCKS_SHOWN:
        console.print(f"… and {len(found['locked']) - LOCKS_SHOWN} more locked; --json lists them all")
    proof = found["certificate"]
    if proof is not None:
        verdict = "holds" if proof["passed"] else "failed for the groups locked above"
        console.print(
            f"certificate: sliced equals masked on {proof['keep_sets']} random keep set(s): {verdict}"
            f" (largest difference {proof['worst_error']:.0e})"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


__all__ = ["Progress", "show_structure", "show_summary"]
