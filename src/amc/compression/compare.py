"""Several runs side by side: their networks scored on the same images, and the one to take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc.compression.load import check_weights, load_run, settings_of
from amc.compression.observer import Observer
from amc.compression.prepare import SEARCH_SHARE, leaves_images
from amc.compression.progress import listening
from amc.compression.scoring.evaluator import Evaluator, as_evaluator
from amc.errors import RunError
from amc.report.compare.choice import Answers
from amc.report.compare.compared import Compared, compared
from amc.report.compare.entries import Entry, images_of, read_entries, same_dense
from amc.report.compare.page import write_comparison
from amc.run.provenance import data_fingerprint
from amc.run.settings.scores import ScoreKind, score_of_record
from amc.search.statistics import PairedDrop
from amc.search.statistics import compare as paired
from amc.structure.copying import copy_model


@dataclass(frozen=True)
class Trial:
    """What is scored for one entry."""

    evaluator: Evaluator
    network: nn.Module
    dense: Callable[[], nn.Module] | None  # called once for each dense network; None: it is not known


def compare(
    runs: Sequence[str | os.PathLike[str]],
    model: nn.Module | None = None,
    example_input: Any = None,
    *,
    evaluate: Any = None,
    cost: str | None = None,
    page: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    progress: bool = False,
) -> Compared:
    """Compare finished runs and say which network to take: the cheapest within one standard error of the best score.

    `runs`: run directories; a schedule counts as its last round, and a sweep as all its points. `model` and
    `example_input`: the dense network, as of `load_run`; needed for runs with a network of your own. `evaluate`: the
    data that the searches were scored on, or other labelled data. All networks are scored on it, image by image; on
    data of the searches, only on the images that no search has scored, if there are any. Without it, or if the score
    does not judge single images, the scores are those of the runs' files, without uncertainty. `cost`: "macs",
    "params", "size", "memory" or "latency" decides between networks that are equally good; by default the one that all
    searches were given. `page`: an HTML file to write. Raises RunError for runs that are unfinished or cannot be
    compared.

    >>> less = amc.compress(net, x, calibration=train, evaluate=train, budget="macs<=30%", episodes=3, run_dir="runs/b")
    >>> found = amc.compare(["runs/mine", "runs/b"], net, x, evaluate=train, page="compared.html")
    >>> found.taken in ("runs/mine", "runs/b")
    True
    """
    entries = read_entries(runs)
    with listening(observer, progress=progress) as watch:
        if evaluate is None:
            answers, notes = None, ["No data was given, so that no network was scored."]
        else:
            answers, notes = _answers_on(evaluate, entries, model, example_input, watch)
    result = compared(entries, answers, notes=notes, cost=cost)
    if page is not None:
        write_comparison(result, Path(page))
    return result


def score_kind(entries: Sequence[Entry]) -> ScoreKind:
    """The score of all runs."""
    return score_of_record({**entries[0].config, **entries[0].summary})


def not_single(kind: ScoreKind) -> str:
    """Why a score has no answers for single images."""
    return f"{kind.label} does not call single images right or wrong"


def all_leave_images(entries: Sequence[Entry], images: int) -> bool:
    """Whether no search has scored the last quarter of the search split, of which each had `images` images.

    A search scores three quarters or, with an allowed loss, half of its images; the quarter is part of neither.
    """
    configs = [settings_of(entry.run) for entry in entries]
    alike = len({entry.config.get("search_images") for entry in entries}) == 1
    return alike and all(config.max_drop is not None or leaves_images(config, images) for config in configs)


def unseen_part(evaluator: Evaluator) -> Evaluator:
    """The score on the quarter of the search split for which `all_leave_images` holds."""
    return evaluator.divided(SEARCH_SHARE)[1]


def answers_of(
    entries: Sequence[Entry], load: Callable[[Entry], Trial], watch: Observer, *, unseen: bool | None
) -> Answers:
    """Score every network, and every dense network once. `unseen`: as in `Answers`.

    Raises RunError for networks of other classes or on other numbers of images.
    """
    right, dense = dict[str, Tensor](), dict[str, Tensor]()
    chances: dict[str, float | None] = {}  # 1 / classes
    for entry in entries:
        watch.stage(f"score of {entry.label}, {entry.name}")
        trial = load(entry)
        chances[entry.label] = trial.evaluator.chance(trial.network)
        right[entry.label] = trial.evaluator.correct(trial.network)
        known = next((other.label for other in entries if other.label in dense and same_dense(entry, other)), None)
        if known is not None:
            dense[entry.label] = dense[known]
        elif trial.dense is not None:
            dense[entry.label] = trial.evaluator.correct(trial.dense())
    _check_alike(entries, right, chances)
    return Answers(
        images=len(right[entries[0].label]),
        unseen=unseen,
        scores={label: _share(mask) for label, mask in right.items()},
        dense={label: (_share(mask), _pair(mask, right[label])) for label, mask in dense.items()},
        pairs={(one, two): _pair(right[one], right[two]) for one, two in permutations(right, 2)},
    )


def _answers_on(
    evaluate: Any, entries: Sequence[Entry], model: nn.Module | None, example_input: Any, watch: Observer
) -> tuple[Answers | None, list[str]]:
    """The answers on the caller's data; None, and a note that says why, if it has no single images."""
    kind = score_kind(entries)
    score = as_evaluator(evaluate, score=kind.name, example_input=example_input)
    if not isinstance(score, Evaluator) or not kind.per_image:
        reason = not_single(kind) if isinstance(score, Evaluator) else "evaluate is a function"
        return None, [f"The networks were not scored again: {reason}."]
    if model is not None:
        for entry in entries:
            check_weights(entry.first, model)
    images = data_fingerprint(score.held) if score.held else None
    searched = images is not None and all(images_of(entry) == images for entry in entries)
    unseen = all_leave_images(entries, len(score)) if searched else None
    part = unseen_part(score) if unseen else score

    def load(entry: Entry) -> Trial:
        own = None if entry.first.config().get("model") else model
        network = load_run(entry.run.path, None if own is None else copy_model(own), example_input)
        return Trial(part, network, None if model is None else lambda: model)

    return answers_of(entries, load, watch, unseen=unseen), []


def _check_alike(entries: Sequence[Entry], right: Mapping[str, Tensor], chances: Mapping[str, float | None]) -> None:
    """Raise RunError unless all networks answered as many images, and with as many classes."""
    first = entries[0]
    for other in entries[1:]:
        images = [len(right[entry.label]) for entry in (first, other)]
        what = f"images ({images[0]} and {images[1]})" if images[0] != images[1] else ""
        if chances[first.label] != chances[other.label]:
            counts = [_classes(chances[entry.label]) for entry in (first, other)]
            what = f"classes ({counts[0]} and {counts[1]})"
        if what:
            raise RunError(
                f"'{first.name}' and '{other.name}' cannot be compared: they differ in their {what}; compare runs on "
                "the same data"
            )


def _classes(chance: float | None) -> str:
    return "one logit" if chance is None else f"{1 / chance:.0f}"


def _pair(before: Tensor, now: Tensor) -> PairedDrop:
    return paired(before.numpy(), now.numpy())


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)
