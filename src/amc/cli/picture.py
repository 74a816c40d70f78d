"""A run as text for a terminal: its stage and times, the curve of its best score, and what is finished. Pure."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from amc.report.live import Live, Search, buckets, cost_left

WIDTH, HEIGHT = 80, 8  # columns of the whole picture, and rows of the curve
BEST, OTHER, BAR, EMPTY = "━", "·", "█", "░"
EPOCHS_SHOWN = 5


def picture(live: Live) -> list[str]:
    """The lines, each of at most `WIDTH` characters, but for a command to copy."""
    lines = [live.title, live.where, *([live.times] if live.times else []), *_bar(live), ""]
    if live.search is not None:
        lines += [*_curve(live, live.search), "", *_figures(live, live.search)]
    lines += [_epoch(live, epoch) for epoch in live.epochs[-EPOCHS_SHOWN:]]
    lines += [f"{name}: {live.score(score)}" for name, score in live.finished]
    if live.scores:
        lines.append("result    " + ", ".join(f"{name} {live.score(score)}" for name, score in live.scores))
    lines = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]
    if live.state == "stopped":
        lines.append(f"`amc {live.resumed_by} {shlex.quote(live.path)}` goes on")
    return lines


def _bar(live: Live) -> Iterator[str]:
    """How far the stage is, and how far the parts are."""
    if live.state == "running" and live.steps is not None:
        yield _share(*live.steps)
    if live.parts:
        yield f"{_share(len(live.finished), live.parts)} {live.parts_name}"


def _share(done: int, total: int) -> str:
    full = min(40, 40 * done // total)
    return f"{BAR * full}{EMPTY * (40 - full)} {done}/{total}"


def _figures(live: Live, search: Search) -> Iterator[str]:
    best, last = search.best, search.episodes[-1]
    if best is not None:
        yield f"best      {live.score(best.score)} at {cost_left(live, best)} (episode {best.episode})"
    yield f"last      {live.score(last.score) if last.error is None else f'failed: {last.error}'}"
    if search.dense is not None:
        yield f"dense     {live.score(search.dense)}"


def _epoch(live: Live, epoch: Mapping[str, Any]) -> str:
    score = "" if epoch.get("score") is None else f", score {live.score(epoch['score'])}"
    return f"epoch {epoch['epoch']:<3} loss {epoch['loss']:.3f}{score}"


def _curve(live: Live, search: Search) -> list[str]:
    """The best score so far (a line) and the single scores (dots), over the planned episodes."""
    best = search.best_so_far()
    known = [score for score in best if score is not None]
    if not known:
        return [f"{search.agent}: no policy has a score yet"]
    # Poor first policies would squeeze the curve: what lies below the floor is drawn on it, or left out.
    scores = [record.score for record in search.episodes if record.score is not None]
    low, high = min(statistics.median(scores), known[-1]), max(*known, *scores)
    if high - low < 1e-9:
        low, high = low - 0.5 * abs(low) - 1e-6, high + 1e-6
    labels = {0: live.score(high), HEIGHT // 2: live.score((low + high) / 2), HEIGHT - 1: live.score(low)}
    margin = max(map(len, labels.values()))
    width = WIDTH - margin - 3

    def row(value: float) -> int:
        return round((high - max(value, low)) / (high - low) * (HEIGHT - 1))

    grid = [[" "] * width for _ in range(HEIGHT)]
    for column, values in enumerate(buckets([record.score for record in search.episodes], search.planned, width)):
        for value in values:
            if value >= low:
                grid[row(value)][column] = OTHER
    for column, values in enumerate(buckets(best, search.planned, width)):
        if values:
            grid[row(values[-1])][column] = BEST
    rows = [f"{labels.get(number, ''):>{margin}} ┤{''.join(line)}".rstrip() for number, line in enumerate(grid)]
    end = f"{search.planned} episodes"
    return [*rows, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  0{end:>{width - 1}}"]
