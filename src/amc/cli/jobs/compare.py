"""`amc compare`: runs side by side, their networks scored on the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from torch import Tensor, nn

from amc.cli.jobs.origin import data_of, network_of, source_of
from amc.compression.load import load_run, settings_of
from amc.compression.observer import Observer
from amc.compression.prepare import SEARCH_SHARE, leaves_images
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import DataError, ModelError, RunError
from amc.report.compare.choice import Answers
from amc.report.compare.compared import Compared, compared
from amc.report.compare.entries import Entry, read_entries, same_dense
from amc.run.settings import Source
from amc.run.settings.scores import ScoreKind, score_of_record
from amc.search.statistics import compare


def run_compare(
    paths: Sequence[str | os.PathLike[str]], *, score: bool = True, cost: str | None = None, progress: Observer
) -> Compared:
    """Compare finished runs.

    `score`: score the stored networks on the same images, so that differences have a paired uncertainty. If they cannot
    be scored, a note says why, and the scores are those of the runs' files. `cost`: decides between networks that are
    equally good; by default the one that all runs were searched for. Raises RunError for runs that cannot be compared.
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
    kind = score_of_record({**entries[0].config, **entries[0].summary})
    reason = _objection(entries, kind)
    if reason is None:
        try:
            return _scored(entries, kind, progress), []
        except (DataError, ModelError) as error:  # the data or the code of the network is not on this machine
            reason = str(error)
    return None, [f"The networks were not scored again: {reason}."]


def _objection(entries: Sequence[Entry], kind: ScoreKind) -> str | None:
    """Why the networks cannot be compared image by image; None if they can."""
    if not kind.per_image:
        return f"{kind.label} does not call single images right or wrong"
    for entry in entries:
        if not entry.config.get("model"):
            return f"'{entry.name}' was started from Python, so that its network and data have no names"
        if entry.config.get("evaluate"):
            return f"the score is a function, '{entry.config['evaluate']}', and not one of single images"
    return None


@dataclass(frozen=True)
class _Part:
    """The part of the search split that all networks are scored on."""

    search_images: int | None  # as in `Source`
    unseen: bool  # only the images that no search has scored

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> _Part:
        """Unseen images if all searches drew the same ones and left some of them."""
        limits = {entry.config.get("search_images") for entry in entries}
        if len(limits) > 1:
            return cls(None if None in limits else max(filter(None, limits)), unseen=False)
        images = len(data_of(source_of(entries[0].run, "")).search)
        configs = [settings_of(entry.run) for entry in entries]
        # Half or three quarters were searched, and the last quarter is part of neither.
        unseen = all(config.max_drop is not None or leaves_images(config, images) for config in configs)
        return cls(limits.pop(), unseen)

    def evaluator(self, source: Source, kind: ScoreKind) -> Evaluator:
        """The score on these images, prepared as this source prepares them."""
        whole = Evaluator(data_of(replace(source, search_images=self.search_images)).search, score=kind.name)
        return whole.divided(SEARCH_SHARE)[1] if self.unseen else whole


def _scored(entries: Sequence[Entry], kind: ScoreKind, progress: Observer) -> Answers:
    """Score every network, and every dense network once. Raises RunError for networks of other classes."""
    part, classes = _Part.of(entries), dict[str, float | None]()
    right, dense = dict[str, Tensor](), dict[str, Tensor]()
    for entry in entries:
        progress.stage(f"score of {entry.label}, {entry.name}")
        evaluator, network = part.evaluator(source_of(entry.run, ""), kind), load_run(entry.run.path)
        classes[entry.label] = evaluator.chance(network)
        right[entry.label] = evaluator.correct(network)
        known = next((other.label for other in entries if other.label in dense and same_dense(entry, other)), None)
        dense[entry.label] = evaluator.correct(_dense(entry)) if known is None else dense[known]
    _check_alike(entries, right, classes)
    return Answers(
        images=len(right[entries[0].label]),
        unseen=part.unseen,
        scores={label: _share(mask) for label, mask in right.items()},
        dense={label: (_share(mask), compare(mask, right[label])) for label, mask in dense.items()},
        pairs={(one, two): compare(right[one], right[two]) for one, two in permutations(right, 2)},
    )


def _dense(entry: Entry) -> nn.Module:
    return network_of(source_of(entry.first, ""), entry.first.path)


def _check_alike(entries: Sequence[Entry], right: Mapping[str, Tensor], classes: Mapping[str, float | None]) -> None:
    """Raise RunError unless all networks answered as many images, with as many classes."""
    first = entries[0]
    for other in entries[1:]:
        counts = [len(right[entry.label]) for entry in (first, other)]
        what = f"images ({counts[0]} and {counts[1]})" if counts[0] != counts[1] else ""
        if classes[first.label] != classes[other.label]:
            what = "classes: their networks have outputs of different sizes"
        if what:
            raise RunError(f"'{first.name}' and '{other.name}' cannot be compared: they differ in their {what}")


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)
