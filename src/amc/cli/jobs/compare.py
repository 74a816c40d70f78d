"""`amc compare`: runs side by side, their networks scored on the data that the runs name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amc.cli.jobs.origin import data_of, network_of, source_of
from amc.compression.compare import Trial, all_leave_images, answers_of, not_single, score_kind, unseen_part
from amc.compression.load import load_run
from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import DataError, ModelError
from amc.report.compare.choice import Answers
from amc.report.compare.compared import Compared, compared
from amc.report.compare.entries import Entry, read_entries
from amc.run.settings.scores import ScoreKind


def run_compare(
    paths: Sequence[str | os.PathLike[str]], *, score: bool = True, cost: str | None = None, progress: Observer
) -> Compared:
    """Compare finished runs; the arguments are those of `amc.compare`.

    `score`: score the stored networks on the data that the runs name. If that is not possible, a note says why, and the
    scores are those of the runs' files.
    """
    entries = read_entries(paths)
    if not score:
        return compared(entries, None, cost=cost)
    try:
        answers, notes = _answers(entries, progress)
    finally:
        progress.close()
    return compared(entries, answers, notes=notes, cost=cost)


def _answers(entries: Sequence[Entry], progress: Observer) -> tuple[Answers | None, list[str]]:
    """The answers of all networks on the same images; None, and a note that says why, if they cannot be scored."""
    kind = score_kind(entries)
    reason = _objection(entries, kind)
    if reason is None:
        try:
            part = _Part.of(entries, kind)
            return answers_of(entries, part.trial, progress, unseen=part.unseen), []
        except (DataError, ModelError) as error:  # the data or the code of the network is not on this machine
            reason = str(error)
    return None, [f"The networks were not scored again: {reason}."]


def _objection(entries: Sequence[Entry], kind: ScoreKind) -> str | None:
    """Why the networks cannot be compared image by image; None if they can."""
    if not kind.per_image:
        return not_single(kind)
    for entry in entries:
        if not entry.config.get("model"):
            return f"'{entry.name}' was started from Python; to score its network, call amc.compare"
        if entry.config.get("evaluate"):
            return f"the score is a function, '{entry.config['evaluate']}', and not one of single images"
    return None


@dataclass(frozen=True)
class _Part:
    """The part of the search split that all networks are scored on."""

    kind: ScoreKind
    search_images: int | None  # the largest number of images that a search drew; None: all
    unseen: bool  # only the images that no search has scored

    @classmethod
    def of(cls, entries: Sequence[Entry], kind: ScoreKind) -> _Part:
        """Unseen images, if all searches drew the same ones and left some of them."""
        sources = [source_of(entry.run, "") for entry in entries]
        limits = [source.search_images for source in sources if source.search_images is not None]
        largest = max(limits) if len(limits) == len(sources) else None
        images = len(data_of(sources[0]).search)
        return cls(kind, largest, all_leave_images(entries, images))

    def trial(self, entry: Entry) -> Trial:
        """What is scored for an entry. Each run prepares the images in its own way."""
        source = replace(source_of(entry.run, ""), search_images=self.search_images)
        whole = Evaluator(data_of(source).search, score=self.kind.name)
        return Trial(
            unseen_part(whole) if self.unseen else whole,
            load_run(entry.run.path),
            lambda: network_of(source_of(entry.first, ""), entry.first.path),
        )
