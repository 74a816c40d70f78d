"""What a run is doing now, read from its directory: for `amc watch` and the live report. Only reads.

A running job keeps status.json up to date (`amc.compression.status`); a job that was killed leaves its last one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from amc.errors import RunError
from amc.report.record import ranked
from amc.report.tables import format_clock, format_count, format_score, part_of
from amc.report.words import budgets_of
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import StudyConfig
from amc.run.settings.durations import parse_duration
from amc.run.settings.scores import ScoreKind, score_of_record
from amc.search import EpisodeRecord, load_journal

LATEST = 20  # episodes whose mean time predicts the time of the others

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class Search:
    """The episodes of one agent."""

    agent: str
    planned: int
    episodes: tuple[EpisodeRecord, ...]
    dense: float | None
    dense_macs: float | None

    @property
    def best(self) -> EpisodeRecord | None:
        """The most rewarded episode."""
        return next(iter(ranked(self.episodes)), None)

    def best_so_far(self) -> list[float | None]:
        """The score of the most rewarded policy after each episode; None before one has a score."""
        best: EpisodeRecord | None = None
        found: list[float | None] = []
        for episode in self.episodes:
            if episode.reward is not None and (best is None or episode.reward > (best.reward or -math.inf)):
                best = episode
            found.append(None if best is None else best.score)
        return found


@dataclass(frozen=True, slots=True)
class Live:
    """A run at one moment. Times are in seconds."""

    path: str
    title: str
    state: State
    stage: str  # "" if unknown
    part: str  # of a sweep, a schedule or a study: point-3, round-1, a cell; "" otherwise
    elapsed: float | None  # of the job; None unless it runs
    stage_elapsed: float | None
    steps: tuple[int, int] | None  # of the stage: done, and of how many
    left: float | None  # of the stage, as the pace so far predicts
    search: Search | None  # of the part that is under way; None before its first episode
    finished: tuple[tuple[str, float | None], ...]  # parts with their scores
    parts: int  # planned; 0 for a single search
    parts_name: str  # points, rounds, cells, or "" for a single search
    epochs: tuple[Mapping[str, Any], ...]  # of the fine-tuning under way
    scores: tuple[tuple[str, float], ...]  # of the finished job: dense, pruned, recovered, fine-tuned
    kind: ScoreKind  # of all scores here
    percent: bool  # write scores as percentages
    resumed_by: str  # the command that goes on with a stopped job

    def score(self, value: float | None) -> str:
        """A score as text."""
        return format_score(None if value is None else self.kind.named(float(value)), percent=self.percent)

    @property
    def where(self) -> str:
        """The state, and the stage unless the job is finished."""
        stage = f"{self.part}: {self.stage}" if self.part and self.stage else self.stage
        if self.state == "stopped" and stage:
            return f"stopped in: {stage}"
        return stage if self.state == "running" and stage else self.state

    @property
    def times(self) -> str:
        """The times of a running job; "" otherwise."""
        parts = ((self.stage_elapsed, "{} in this stage"), (self.left, "about {} left"), (self.elapsed, "{} in all"))
        return ", ".join(text.format(format_clock(seconds)) for seconds, text in parts if seconds is not None)

    @property
    def sentence(self) -> str:
        """The state, the stage and the times in one line."""
        steps = f", {self.steps[0]} of {self.steps[1]}" if self.steps and self.state == "running" else ""
        return f"{self.where}{steps}{f' ({self.times})' if self.times else ''}"


def read_live(run: RunDir, *, now: float | None = None) -> Live:
    """The run as it is; `now`: seconds since 1970. Raises RunError for a damaged file."""
    now = time.time() if now is None else now
    config = run.config()
    running = run.writer() is not None
    status = _status(run)
    kind_of_parts, names = _parts(config)
    inner = _under_way(run, names, status)
    own = inner.config()
    summary = inner.read_json(files.SUMMARY) if inner.has(files.SUMMARY) else {}
    search, kind = _search(inner, own, summary, status.get("macs")), score_of_record({**own, **summary})
    stage = str(status.get("stage", ""))
    steps = (status["done"], status["total"]) if status.get("total") else None
    if stage.startswith("search") and search is not None:
        steps = len(search.episodes), search.planned
    since = status.get("stage_began") if running else None
    took = None if since is None else max(0.0, now - since)
    whole = run.read_json(files.SUMMARY) if run.has(files.SUMMARY) else {}
    state: State = "running" if running else "finished" if _is_finished(run, names, whole) else "stopped"
    return Live(
        path=str(run.path),
        title=" · ".join(str(part) for part in (own.get("model"), own.get("data"), _aim(own)) if part),
        state=state,
        stage=stage,
        part=inner.path.name if inner.path != run.path else "",
        elapsed=max(0.0, now - status["began"]) if running and status else None,
        stage_elapsed=took,
        steps=steps,
        left=None if took is None else _left(inner, own, stage, steps, took, search),
        search=search,
        finished=_finished_parts(run, names),
        parts=len(names),
        parts_name=kind_of_parts,
        epochs=tuple(status.get("epochs", ())),
        scores=_scores(summary) if state == "finished" and not names else (),
        kind=kind,
        percent=kind.is_share and _fractions(search, summary),
        resumed_by="finetune" if run.has(files.FINETUNE_STATE) else "resume",
    )


def _status(run: RunDir) -> Mapping[str, Any]:
    """What the job says of itself; empty if it says nothing, or has just ended."""
    try:
        return run.read_json(files.STATUS) if run.has(files.STATUS) else {}
    except RunError:
        return {}


def _aim(config: Mapping[str, Any]) -> str:
    """What the search is for."""
    if config.get("max_drop") is not None:
        return f"at most {config['max_drop']:g} points less"
    return ",".join(map(str, budgets_of(config))) or str(config.get("reward", ""))


def _parts(config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What the parts of a job are called, and the names of their directories; none for a single search."""
    if config.get("study"):
        return "cells", tuple(cell.name for cell in StudyConfig(**config["study"]).cells())
    points, rounds = int(part_of(config, "sweep").get("points", 0)), len(config.get("schedule") or ())
    if points:
        return "points", tuple(f"point-{number}" for number in range(1, points + 1))
    return ("rounds" if rounds else ""), tuple(f"round-{number}" for number in range(1, rounds + 1))


def _under_way(run: RunDir, names: Sequence[str], status: Mapping[str, Any]) -> RunDir:
    """The run itself, or the part of it that is under way or was the last."""
    name = str(status.get("part") or "")
    if name in names and (run.path / name / files.CONFIG).is_file():
        return RunDir(run.path / name)
    begun = [run.path / name for name in names if (run.path / name / files.CONFIG).is_file()]
    begun.sort(key=lambda path: (path / files.CONFIG).stat().st_mtime)
    return RunDir(begun[-1]) if begun else run


def _search(
    run: RunDir, config: Mapping[str, Any], summary: Mapping[str, Any], dense_macs: float | None
) -> Search | None:
    """The agent's own search; before its first episode that of the latest baseline."""
    others = sorted(run.path.glob("journal-*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (run.file(files.JOURNAL), *others):
        content = load_journal(path) if path.exists() else None
        if content is None or not content.records:
            continue
        agent = str(content.header.get("agent", config.get("agent", "")))
        # The agents that propose a fixed number of policies do not say so in the journal; they take a moment.
        main = path.name == files.JOURNAL
        planned = int(config.get("episodes", 1)) if main or agent == "random" else len(content.records)
        dense = part_of(summary, "dense")
        score = dense.get("score", content.origin.get("dense_score"))
        return Search(
            agent,
            max(planned, len(content.records)),
            content.records,
            None if score is None else float(score),
            dense.get("macs", dense_macs),
        )
    return None


def _left(
    run: RunDir,
    config: Mapping[str, Any],
    stage: str,
    steps: tuple[int, int] | None,
    took: float,
    search: Search | None,
) -> float | None:
    """Seconds until the stage ends, as its pace so far predicts; None if unknown."""
    if steps is None or not steps[0]:
        return None
    done, total = steps
    if not stage.startswith("search") or search is None:
        return took * (total - done) / done
    lines = [line for line in run.read_jsonl(files.TIMINGS) if line.get("agent") == search.agent]
    times = [sum(line.get("seconds", {}).values()) for line in lines[-LATEST:]]
    if not times:
        return None
    left: float = sum(times) / len(times) * (total - done)
    used = search.episodes[-1].progress
    if config.get("time_limit") and used is not None:
        left = min(left, parse_duration(str(config["time_limit"]), "time-limit") * (1 - used))
    return left


def _is_finished(run: RunDir, names: Sequence[str], summary: Mapping[str, Any]) -> bool:
    if run.has(files.MEASURED):  # a study
        measured = run.read_json(files.MEASURED)
        return all(name in {**measured["reasons"], **measured["runtimes"]} for name in names)
    if names:
        return len(summary.get("points") or summary.get("rounds") or ()) == len(names)
    return bool(summary) and not run.has(files.FINETUNE_STATE)


def _finished_parts(run: RunDir, names: Sequence[str]) -> tuple[tuple[str, float | None], ...]:
    """The parts that have a result: their budgets and scores, in their own order."""
    found = []
    for name in names:
        part = RunDir(run.path / name)
        if part.has(files.SUMMARY):
            summary = part.read_json(files.SUMMARY)
            found.append((f"{name}, {summary.get('budget')}", _scores(summary)[-1][1] if _scores(summary) else None))
    return tuple(found)


def _scores(summary: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The scores of a summary on the images of the search, in the order in which they came about."""
    dense, slim = part_of(summary, "dense"), part_of(summary, "slim")
    found = [("dense", dense.get("score")), ("pruned", slim.get("score"))]
    found += [("recovered", slim.get("score_recovered")), ("fine-tuned", slim.get("score_finetuned"))]
    return tuple((name, score) for name, score in found if score is not None)


def _fractions(search: Search | None, summary: Mapping[str, Any]) -> bool:
    """Whether every score lies in [0, 1]."""
    values = [score for _, score in _scores(summary)]
    if search is not None:
        values += [record.score for record in search.episodes if record.score is not None]
        values += [] if search.dense is None else [search.dense]
    return all(0 <= value <= 1 for value in values)


def cost_left(live: Live, episode: EpisodeRecord) -> str:
    """What a policy keeps of the MACs: a share, or a number if the dense network's are not known yet."""
    macs, search = episode.cost.get("macs"), live.search
    if macs is None:
        return ""
    dense = None if search is None else search.dense_macs
    return f"{macs / dense:.1%} of the MACs" if dense else f"{format_count(macs)} MACs"


def buckets(values: Sequence[float | None], planned: int, width: int) -> list[list[float]]:
    """The values of `width` columns that stand for `planned` episodes; None is left out.

    With fewer episodes than columns an episode has several columns.
    """
    columns: list[list[float]] = [[] for _ in range(width)]
    for number, value in enumerate(values):
        first = number * width // planned
        for column in range(first, max(first + 1, (number + 1) * width // planned)):
            if value is not None:
                columns[column].append(value)
    return columns
