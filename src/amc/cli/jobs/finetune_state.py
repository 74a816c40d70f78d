"""The unfinished fine-tuning of a run, on disk.

RUN/finetune-state.json holds the settings and the measured candidates, RUN/finetune*.ckpt the training under way. Both
are removed when the result is in the run's summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amc.errors import AmcError, RunError
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.files import FINETUNE_STATE as STATE
from amc.run.provenance import difference, execution
from amc.run.settings import CandidateConfig, FineTuneConfig, Given

CHECKPOINT = "finetune.ckpt"


class FineTuneState:
    """The settings of the fine-tuning and how far it has come, on disk; the same for all processes."""

    def __init__(self, run: RunDir, accelerator: Any) -> None:
        self.run, self.accelerator = run, accelerator
        self.main = accelerator is None or accelerator.process_index == 0
        self.settings, self.candidate_config = FineTuneConfig(), CandidateConfig()
        self.measured: list[dict[str, Any]] = []
        self.places: list[dict[str, Any]] = []  # versions, threads and instruction sets it ran under, in turn

    def plan(self, given: Given[FineTuneConfig], candidates: Given[CandidateConfig], restart: bool) -> None:
        """Resume an unfinished fine-tuning if its settings match; settings that are not given keep their values.

        Otherwise start a new one.
        """
        candidate_config = candidates.make()
        settings = self._resolved(given.make(), candidate_config)
        resumed = self.run.has(STATE) and not restart
        if not resumed and not restart and self.checkpoints():
            raise RunError(
                f"'{self.run.path}' has a fine-tuning under way, and {STATE}, which says with what settings, is "
                "missing; restore it from a copy, or add --restart to begin anew"
            )
        if resumed:
            self._take(self._stored())
            resumed = self._continues(given, candidates)
        if not resumed:
            self.settings, self.candidate_config = settings, candidate_config
            self.measured, self.places = [], []
        self.wait()
        if not resumed:
            self.clear()

    def _continues(self, given: Given[FineTuneConfig], candidates: Given[CandidateConfig]) -> bool:
        """Whether the given settings are those of the unfinished fine-tuning.

        Raises RunError if they differ and a part of the fine-tuning is done.
        """
        before = {**asdict(self.settings), **asdict(self.candidate_config)}
        wanted = candidates.over(self.candidate_config)
        requested = {**asdict(self._resolved(given.over(self.settings), wanted)), **asdict(wanted)}
        differing = [name for name in (*given.values, *candidates.values) if requested[name] != before[name]]
        if differing and (self.measured or self.checkpoints()):
            name = differing[0]
            raise RunError(
                f"'{self.run.path}' has a fine-tuning under way with {name} {before[name]!r}, not {requested[name]!r}; "
                f"go on with it by `amc finetune {self.run.path}`, or add --restart to begin anew"
            )
        return not differing

    def _resolved(self, settings: FineTuneConfig, candidates: CandidateConfig) -> FineTuneConfig:
        """The settings with their defaults, which depend on the network: candidates are trained as they were pruned."""
        recovery = self.run.read_json(files.SUMMARY).get("recovery")
        kept = recovery is not None and recovery.get("reason") is None  # else the result is the network as pruned
        return settings.resolved(recovered=kept and candidates.candidates == 1)

    def save(self) -> None:
        """Write the state of the main process; the other processes read it."""
        here = execution()
        if not self.places or self.places[-1] != here:
            self.places.append(here)
        if self.main:
            record: dict[str, Any] = {"settings": asdict(self.settings), "measured": self.measured}
            record |= asdict(self.candidate_config)
            record["places"] = self.places
            self.run.write_json(STATE, record)
        self.wait()
        if not self.main:
            self._take(self._stored())
        self.wait()

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def checkpoint(self, candidate: int | None = None) -> Path:
        """The file with the checkpoint of a candidate, or of the fine-tuning itself."""
        return self.run.file(CHECKPOINT if candidate is None else f"finetune-candidate-{candidate}.ckpt")

    def checkpoints(self) -> list[Path]:
        return sorted(self.run.path.glob("finetune*.ckpt"))

    def clear(self) -> None:
        """Remove the state and the checkpoints: the fine-tuning is finished or discarded."""
        if self.main:
            for path in (*self.checkpoints(), self.run.file(STATE)):  # checkpoints need the state: it is last
                path.unlink(missing_ok=True)

    @classmethod
    def tidy(cls, run: RunDir) -> None:
        """Finish what was stopped after the summary was written, before the clean-up: the report, then the files."""
        if run.has(STATE):
            render_report(run)
            cls(run, accelerator=None).clear()

    def _stored(self) -> dict[str, Any]:
        """The content of the file, with every setting. Raises RunError if it is damaged."""
        anew = f"`amc finetune {self.run.path} --restart` begins anew"
        try:
            record = self.run.read_json(STATE)
        except RunError as error:
            raise RunError(f"{error}; {anew}") from None
        try:
            record["settings"] = asdict(FineTuneConfig(**record["settings"]).resolved())
        except (TypeError, AmcError) as error:
            raise RunError(f"'{self.run.file(STATE)}' is damaged ({error}); {anew}") from None
        return record

    def _take(self, record: Mapping[str, Any]) -> None:
        self.settings = FineTuneConfig(**record["settings"]).resolved()
        self.candidate_config = CandidateConfig(record["candidates"], record["candidate_epochs"])
        self.measured, self.places = list(record["measured"]), list(record.get("places", ()))

    def elsewhere(self) -> list[str]:
        """A warning for each other kind of machine or version that a part of this fine-tuning ran on."""
        differing = (difference(place, execution()) for place in self.places)
        return [
            f"part of this fine-tuning ran elsewhere ({words}): the weights may differ in the last digits"
            for words in dict.fromkeys(differing)
            if words is not None
        ]
