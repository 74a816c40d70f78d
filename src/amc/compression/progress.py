"""A job's progress on a terminal: a bar and a clock where the line can be redrawn, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from amc.compression.observer import LogObserver, Observer, Together
from amc.compression.status import StatusFile
from amc.recovery import EpochRecord, StepRecord
from amc.report.stopping import sentence_of
from amc.report.tables import format_clock, format_count, format_score, format_seconds
from amc.run.settings.scores import NamedScore
from amc.search import EpisodeRecord, EpisodeTiming
from amc.structure import Certificate, Structure

PLAIN_EVERY = 20  # episodes between lines where there is no terminal to redraw
LONG = 2.0  # seconds, from which a stage's time is worth a line


@contextmanager
def listening(
    observer: Observer | None, *, progress: bool, run_dir: str | os.PathLike[str] | None = None
) -> Iterator[Observer]:
    """All that listens to a job inside the block: the log, the caller's observer, and a progress bar on stderr.

    `run_dir`: where `amc watch` may look.
    """
    bars = [ProgressBar(Console(stderr=True, highlight=False))] if progress else []
    status = [] if run_dir is None else [StatusFile(Path(run_dir))]
    watch = Together(LogObserver(), *([observer] if observer else []), *bars, *status)
    try:
        yield watch
    finally:
        watch.close()


class _Clock(ProgressColumn):
    """The time that the stage has taken, and the time that is left: 0:12<1:07."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        super().__init__()
        self._elapsed = elapsed

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(format_clock(self._elapsed()) + ("" if left is None else f"<{format_clock(left)}"))


class ProgressBar(Observer):
    """Live progress on a terminal, a line now and then elsewhere. `clock`: seconds."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock, self._began = clock, clock()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=5),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            _Clock(lambda: self._clock() - self._began),
            console=console,
            get_time=clock,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._episodes: Mapping[str, int] = {}
        self._best: EpisodeRecord | None = None  # the most rewarded
        self._dense_macs = 1

    def stage(self, name: str) -> None:
        """A new stage of the job begins."""
        self._end_stage()
        self._best = None
        self.console.print(f"· {name}", style="dim", markup=False)
        self._began = self._clock()
        self._advance("", None, 0, "")

    def stage_step(self, done: int, total: int) -> None:
        """One more step of a stage that is no search and no training."""
        self._advance("", max(done, total), done, "")

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
        self._advance(agent, total, record.episode + 1, note)
        last = record.episode + 1 == total or record.stopped is not None
        if last or (not self.console.is_terminal and (record.episode + 1) % PLAIN_EVERY == 0):
            left = f" at {self._macs_left(best)} of the MACs" if best else ""
            self._say(f"{agent} {record.episode + 1}/{total}: best {_score_of(best)}{left}, last {score}")
        if record.stopped is not None:
            self._say(f"{agent} {sentence_of(record.stopped.to_json(), record.episode + 1)}")
        if record.error is not None:
            self._say(f"episode {record.episode} failed: {record.error}", style="yellow")

    def training_step(self, step: StepRecord) -> None:
        """One more step of fine-tuning."""
        note = f"epoch {step.epoch}  loss {step.loss:.3f}  lr {step.lr:.4f}"
        self._advance("fine-tuning", step.total_steps, step.step, note)

    def epoch(self, epoch: EpochRecord, score: float | None) -> None:
        """One more pass over the training split."""
        scored = "" if score is None else f", score {format_score(score)}"
        self._say(f"epoch {epoch.epoch}: loss {epoch.loss:.3f}{scored}")

    def close(self) -> None:
        """Clear the line that was being redrawn."""
        self._end_stage()

    def _macs_left(self, record: EpisodeRecord) -> str:
        return f"{record.cost.get('macs', 0.0) / self._dense_macs:.1%}"

    def _advance(self, name: str, total: int | None, done: int, note: str) -> None:
        """Redraw the line. Without a total it shows the time alone."""
        if self._task is None or self._name != name or done < self._bar.tasks[0].completed:
            self._end_task()
            self._name = name
            self._bar.start()
            self._task = self._bar.add_task(f" {name}" if name else "", total=total, note="", count="")
        count = "" if total is None else f"{done}/{total}"
        self._bar.update(self._task, completed=done, total=total, note=note, count=count)

    def _end_stage(self) -> None:
        """Clear the line; say how long a long stage took."""
        if self._task is not None:
            self._end_task()
            seconds = self._clock() - self._began
            if seconds >= LONG:
                self._say(f"took {format_seconds(seconds)}", style="dim")

    def _end_task(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(f"  {text}", style=style, markup=False, soft_wrap=not self.console.is_terminal)


def _short(score: float | None) -> str:
    if isinstance(score, NamedScore) and score.own is not None:
        return format_score(score)
    return "failed" if score is None else f"{score:.4f}"


def _score_of(record: EpisodeRecord | None) -> str:
    return _short(record.score if record else None)
