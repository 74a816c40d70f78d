"""What a job tells a logging service: which figures, under which names and steps, and each of them once.

A file in the run's directory, `logged-NAME.jsonl`, remembers the service's own run and the episodes that it has. So a
job that is resumed goes on in the same run of the service, and tells it only what it does not have yet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from amc.compression.observer import Observer
from amc.errors import reason_of
from amc.recovery import EpochRecord
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings.scores import NamedScore
from amc.search import EpisodeRecord, EpisodeTiming

_ODD = re.compile(r"[^\w./ -]")  # letters that MLflow refuses in a name


class Service(Protocol):
    """A logging service, open for one run of its own."""

    key: str  # by which a later session opens the same run again

    def settings(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep settings, under a name such as `settings/search` or `point-3/settings/search`."""

    def metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        """Add a step to a series such as `search/planner`; `values` are finite."""

    def close(self, *, finished: bool) -> None:
        """Send what is left. `finished`: the job has its result; if not, it was stopped or failed."""


Open = Callable[[Path, str | None], Service]  # the job's directory and the key of an earlier session -> service


class Logger(Observer):
    """Tells one service what it hears of a job.

    The service is opened at the first episode, epoch or result: a directory that a failing job leaves must stay empty.
    If the service fails, `warn` hears it once, and the job goes on without the service.
    """

    def __init__(self, name: str, open_service: Open, directory: Path, warn: Callable[[str], None]) -> None:
        self.name = name
        self._open, self._warn = open_service, warn
        self._directory = RunDir(directory)
        self._service: Service | None = None
        self._known: set[tuple[str, int]] = set()  # series and step of what the service has
        self._waiting: list[Callable[[Service], None]] = []  # until the service is open
        self._part, self._finished, self._failed = "", False, False
        self._best: dict[str, EpisodeRecord] = {}  # the most rewarded, by series

    def job_part(self, name: str) -> None:
        self._part = name

    def job_settings(self, job: str, settings: Mapping[str, Any]) -> None:
        series = self._series(f"settings/{job}")
        self._tell(series, 0, lambda service: service.settings(series, settings), once=True, later=True)

    def dense(self, score: float) -> None:
        self._metrics("dense", {"score": _value(score)}, 0, once=True, later=True)

    def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
        name = f"search/{agent}"
        best = self._best.setdefault(self._series(name), record)
        if record.reward is not None and (best.reward is None or record.reward > best.reward):
            best = self._best[self._series(name)] = record
        values = {"score": record.score, "reward": record.reward, "best": best.score, **record.cost}
        figures = {key: _value(value) for key, value in values.items() if value is not None}
        self._metrics(name, figures, record.episode, once=timing.replayed)

    def epoch(self, epoch: EpochRecord, score: float | None) -> None:
        figures = {"loss": epoch.loss, "lr": epoch.lr, **({} if score is None else {"score": _value(score)})}
        self._metrics("finetune", figures, epoch.epoch)

    def job_result(self, summary: Mapping[str, Any]) -> None:
        figures = {
            f"{network}/{name}": float(value)
            for network in ("dense", "slim")
            for name, value in (summary.get(network) or {}).items()
            if isinstance(value, int | float)
        }
        if figures:  # a sweep and a schedule have those of their parts
            self._metrics("result", figures, 0)
        self._finished = True

    def close(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            self._guarded(lambda: service.close(finished=self._finished))

    def _metrics(
        self, name: str, values: Mapping[str, float], step: int, *, once: bool = False, later: bool = False
    ) -> None:
        series = self._series(name)
        finite = {_ODD.sub("_", key): value for key, value in values.items() if math.isfinite(value)}
        self._tell(series, step, lambda service: service.metrics(series, finite, step), once=once, later=later)

    def _tell(
        self, series: str, step: int, told: Callable[[Service], None], *, once: bool = False, later: bool = False
    ) -> None:
        """Tell the service, and remember that it knows. `once`: unless it knows already; `later`: when it is open."""

        def tell(service: Service) -> None:
            if once and (series, step) in self._known:
                return
            told(service)
            self._known.add((series, step))
            self._directory.append_jsonl(self._file, {"series": series, "step": step}, durable=False)

        if self._failed:
            return
        self._finished = False
        self._waiting.append(tell)
        if not later or self._service is not None:
            self._guarded(self._send)

    def _send(self) -> None:
        """Tell the service what waits, in order."""
        if self._service is None:
            self._service = self._opened()
        while self._waiting:
            self._waiting.pop(0)(self._service)

    def _opened(self) -> Service:
        self._directory.path.mkdir(parents=True, exist_ok=True)
        lines = self._directory.read_jsonl(self._file)
        key = next((line["key"] for line in lines if "key" in line), None)
        self._known = {(line["series"], line["step"]) for line in lines if "series" in line}
        service = self._open(self._directory.path, key)
        if key is None:
            self._directory.append_jsonl(self._file, {"key": service.key})
        return service

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call, unless the service has failed before; its first error is a warning."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever a service raises: the job is worth more than its log
            self._failed = True
            self._warn(f"logger {self.name} is left out from here on, it failed: {reason_of(error)}")

    @property
    def _file(self) -> str:
        return files.logged(self.name)

    def _series(self, name: str) -> str:
        return _ODD.sub("_", f"{self._part}/{name}" if self._part else name)


def _value(score: float) -> float:
    """The metric's own value: an error, which a search negates, is positive."""
    own = score.own if isinstance(score, NamedScore) else None
    return float(score) if own is None else own
