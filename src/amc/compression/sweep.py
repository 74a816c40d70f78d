"""One search, many budgets: a curve of accuracy against cost from one preparation and one model of the score.

Every point is an ordinary run, in a directory of its own, whose agent has learnt from the policies of the points before
it. The smallest budget is searched first: there a policy's damage stands out most from the noise of its score.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.load import load_run, point_path, settings_of, weights_key
from amc.compression.observer import Observer
from amc.compression.pipeline import check_config, compress_in, inputs_of, opened, prepared_in
from amc.compression.progress import listening
from amc.compression.scoring.evaluator import PairedEvaluator, score_of
from amc.compression.settings import SearchConfig
from amc.compression.sweep_settings import SweepConfig
from amc.compression.verify import Recorded
from amc.compression.warm_start import earlier_records, fitting
from amc.errors import AmcError
from amc.pruning import Policy
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import amc_version, environment
from amc.run.settings.durations import LEAST
from amc.search import EpisodeRecord, load_journal
from amc.structure.copying import copy_model, undisturbed
from amc.structure.modes import device_of

FIRST_SHARE = 1 / 4  # of the episodes, for the first point: the others begin with what it has learnt


@dataclass(frozen=True)
class SweepPoint:
    """The result of one budget.

    >>> found = amc.sweep(net, x, calibration=train, evaluate=train, points=2, episodes=4)
    >>> point = found.points[-1]
    >>> point.budget, point.record["slim"]["macs"] == amc.count_macs(point.model, x)
    ('macs<=25%', True)
    """

    budget: str
    model: nn.Module  # as `Result.model`
    policy: Policy
    record: Mapping[str, Any]  # its entry of summary.json


@dataclass(frozen=True)
class Sweep:
    """The results of all budgets, the largest first.

    `knee`: the budget at the bend of the curve, by the rule of `knee_of`; None if it has no bend.

    >>> amc.sweep(net, x, calibration=train, evaluate=train, points=2, episodes=4)
    Sweep(2 points, macs<=80% to macs<=25%; knee: none)
    """

    points: tuple[SweepPoint, ...]
    knee: str | None
    summary: dict[str, Any]

    def __repr__(self) -> str:
        ends = f", {self.points[0].budget} to {self.points[-1].budget}" if self.points else ""
        return f"Sweep({len(self.points)} points{ends}; knee: {self.knee or 'none'})"


def sweep(
    model: nn.Module,
    example_input: Any,
    *,
    calibration: Iterable[Any],
    evaluate: Any,
    test: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    progress: bool = False,
    **settings: Any,
) -> Sweep:
    """Prune `model` to several budgets on one metric, with one preparation and one model of the score.

    settings: the fields of `SweepConfig` (metric, start, end, points) and of `SearchConfig`, but for budget, reward
        and max_drop. `episodes` counts the policies of all points together, `time_limit` the time of all of them;
        `patience` is that of each point.

    All other arguments are those of `amc.compress`.

    Raises AmcError (its kinds in `amc.errors`) with one clear line for whatever is wrong with the input.

    >>> settings = {"start": "80%", "end": "40%", "points": 3, "episodes": 9}
    >>> found = amc.sweep(net, x, calibration=train, evaluate=train, **settings)
    >>> [point.budget for point in found.points]
    ['macs<=80%', 'macs<=56.6%', 'macs<=40%']
    """
    refuse_budget(settings)
    ours = {field.name for field in fields(SweepConfig)}
    plan = SweepConfig(**{name: settings.pop(name) for name in sorted(ours & set(settings))})
    inputs, config = inputs_of(Inputs(model, example_input, calibration, evaluate, test), settings)
    with listening(observer, progress=progress, run_dir=run_dir) as watch, opened(run_dir, resume=resume) as run:
        return sweep_in(run, inputs, config, plan, watch, resume=resume, origin={})


def sweep_in(
    run: RunDir | None,
    inputs: Inputs,
    config: SearchConfig,
    plan: SweepConfig,
    watch: Observer,
    *,
    resume: bool,
    origin: Mapping[str, Any],
) -> Sweep:
    """`sweep` in a directory that is claimed or locked already; the arguments are those of `compress_in`."""
    config = at_smallest(config, plan)
    with undisturbed(inputs.model):
        inputs = replace(inputs, model=copy_model(inputs.model))  # plain; the user's own is never run
        if run is not None and resume:
            config = config.for_run(run.config())
            check_config(run, config, inputs.model)
            _check_plan(run, plan)
        elif run is not None:
            began = {"amc_version": amc_version(), **origin, **config.to_json(), "sweep": plan.to_json()}
            run.write_json(files.CONFIG, {**began, **weights_key(inputs.model)})
        return _Sweeping(run, inputs, config, plan, watch, dict(origin)).run_all()


def refuse_budget(given: Mapping[str, Any]) -> None:
    """Raise AmcError for a budget among the given settings, whatever it is."""
    if given.get("budget") is not None:
        raise AmcError(f"a sweep sets its budgets itself; leave out budget {given['budget']!r}")


def at_smallest(config: SearchConfig, plan: SweepConfig) -> SearchConfig:
    """The settings with the smallest budget of the plan. Raises AmcError for settings that a sweep cannot have."""
    if config.max_drop is not None or config.reward != "r_err":
        raise AmcError("a sweep has a budget at every point; leave max-drop and reward out")
    texts = plan.texts
    if config.episodes < plan.points:
        raise AmcError(f"{config.episodes} episodes are fewer than the {plan.points} points; give more episodes")
    return replace(config, budget=texts[-1])


def episodes_of(total: int, points: int) -> list[int]:
    """The episodes of each point in the order of the search; their sum is `total`."""
    first = max(1, min(round(FIRST_SHARE * total), total - points + 1))
    each, more = divmod(total - first, points - 1)
    return [first, *(each + (number < more) for number in range(points - 1))]


def knee_of(points: Sequence[tuple[float, float, float | None]]) -> int | None:
    """The place of the knee among (cost, score, standard error), costs falling; None if there is no bend.

    The knee lies highest above the straight line between the ends, in the score. A bend that is no larger than the
    standard error of its score is none.
    """
    if len(points) < 3:
        return None
    (first, high, _), (last, low, _) = points[0], points[-1]
    rises = [score - (low + (high - low) * (cost - last) / (first - last)) for cost, score, _ in points]
    place = max(range(1, len(points) - 1), key=rises.__getitem__)
    return place if rises[place] > (points[place][2] or 0.0) and rises[place] > 0 else None


def _check_plan(run: RunDir, plan: SweepConfig) -> None:
    if run.config().get("sweep") != plan.to_json():
        raise AmcError(f"'{run.path}' is another sweep ({run.config().get('sweep')}); resume it with its own budgets")


@dataclass
class _Sweeping:
    """A sweep in progress."""

    run: RunDir | None
    inputs: Inputs
    config: SearchConfig  # of the smallest budget, and of all episodes
    plan: SweepConfig
    watch: Observer
    origin: dict[str, Any]
    job: Job | None = None  # prepared when the first unfinished point needs it

    def run_all(self) -> Sweep:
        """Run the points that are not finished, the smallest budget first."""
        texts, records = self.plan.texts, tuple[EpisodeRecord, ...]()
        counts = episodes_of(self.config.episodes, len(texts))
        found: dict[int, SweepPoint] = {}
        for count, number in zip(counts, range(len(texts), 0, -1), strict=True):
            self.watch.job_part(f"point-{number}")
            self.watch.stage(f"point {len(found) + 1} of {len(texts)}: {texts[number - 1]}")
            found[number], new = self._point(number, self._settings(texts[number - 1], count), records)
            records = (*records, *new)
            if self.run is not None and len(found) == len(texts):
                self.run.discard(files.PREPARED)  # before the summary: a sweep that has all points is not resumed
            summary = self._summary(found)
            if self.run is not None:
                self.run.write_json(files.SUMMARY, summary)
        if self.run is not None:
            render_report(self.run)
        self.watch.job_part("")
        self.watch.job_result(summary)
        return Sweep(tuple(found[number] for number in sorted(found)), summary["knee"], summary)

    def _settings(self, budget: str, episodes: int) -> SearchConfig:
        """The settings of a point: of a time limit it has the same share as of the episodes."""
        limit = self.config.seconds
        if limit is not None:
            limit = max(LEAST, limit * episodes / self.config.episodes)
        return replace(self.config, budget=budget, episodes=episodes, time_limit=limit)

    def _point(
        self, number: int, config: SearchConfig, records: tuple[EpisodeRecord, ...]
    ) -> tuple[SweepPoint, Sequence[EpisodeRecord]]:
        """One point, and the policies that its agent has scored."""
        finished = self._finished(number)
        if finished is not None:
            return finished
        job = self._prepared(config)
        earlier = fitting((*job.earlier, *records), job.problem)
        with self._directory(number) as (run, resume):
            result = compress_in(
                run, self.inputs, replace(config, warm_start=None), self.watch, resume=resume,
                origin=self._origin_of_point(), prepared=replace(job, earlier=earlier),
            )  # fmt: skip
        entry = _entry(job, config, number, result.model, result.summary)
        return SweepPoint(config.budget or "", result.model, result.policy, entry), result.search.episodes

    def _finished(self, number: int) -> tuple[SweepPoint, Sequence[EpisodeRecord]] | None:
        """A point that an earlier session finished."""
        if self.run is None or not (point_path(self.run, number) / files.SUMMARY).exists():
            return None
        run = RunDir.open(point_path(self.run, number))
        run.verify(files.JOURNAL)
        model = load_run(run.path, copy_model(self.inputs.model), self.inputs.example_input, finetuned=False)
        config = settings_of(run)
        entry = self._known_entry(number)
        if entry is None:  # stopped before the summary of the sweep was written
            entry = _entry(self._prepared(config), config, number, model, run.read_json(files.SUMMARY))
        policy = Policy.from_json(run.read_json(files.POLICY))
        point = SweepPoint(config.budget or "", model, policy, entry)
        return point, load_journal(run.file(files.JOURNAL)).records

    def _known_entry(self, number: int) -> dict[str, Any] | None:
        assert self.run is not None
        points = self.run.read_json(files.SUMMARY)["points"] if self.run.has(files.SUMMARY) else []
        name = point_path(self.run, number).name
        return next((dict(point) for point in points if point["run"] == name), None)

    @contextmanager
    def _directory(self, number: int) -> Iterator[tuple[RunDir | None, bool]]:
        """The directory of a point, locked, and whether its search has begun there."""
        if self.run is None:
            yield None, False
            return
        path = point_path(self.run, number)
        if not (path / files.CONFIG).exists():
            with RunDir.claim(path) as run:
                yield run, False
        else:
            run = RunDir.open(path)
            with run.lock():
                yield run, True

    def _prepared(self, config: SearchConfig) -> Job:
        """The job of the budget of `config`; everything else is prepared once."""
        if self.job is None:
            job = prepared_in(self.run, self.inputs, self.config, self.watch, Recorded.at(self._journals()))
            self.job = replace(job, earlier=earlier_records(self.run, job))
        return self.job.at(config)

    def _journals(self) -> list[Path]:
        return [] if self.run is None else sorted(self.run.path.glob(f"point-*/{files.JOURNAL}"))

    def _origin_of_point(self) -> dict[str, Any]:
        """What names the network and the data, as a point's config.json has it."""
        origin = dict(self.origin)
        if "command" in origin:
            origin["command"] = "search"
        if origin.get("parent"):  # relative to the run's own directory
            origin["parent"] = f"{os.pardir}/{origin['parent']}"
        return origin

    def _summary(self, found: Mapping[int, SweepPoint]) -> dict[str, Any]:
        """The content of summary.json."""
        points = [dict(found[number].record) for number in sorted(found)]
        metric, config = self.plan.budgets[0].metric, self.config
        curve = [(point["slim"].get(metric, 0.0), _height(point), point["standard_error"]) for point in points]
        knee = knee_of(curve) if len(found) == self.plan.points else None
        return {
            "amc_version": amc_version(),
            "model": self.origin.get("model", type(self.inputs.model).__name__),
            "data": self.origin.get("data"),
            "method": config.method,
            "agent": config.agent,
            "seed": config.seed,
            "episodes": config.episodes,
            "score": points[0]["score"],
            "sweep": self.plan.to_json(),
            "dense": points[0]["dense"],
            "points": points,
            "knee": None if knee is None else points[knee]["budget"],
            "environment": environment(device_of(self.inputs.model)),
        }


def _entry(job: Job, config: SearchConfig, number: int, model: nn.Module, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep says of a point: its own summary in short, and its score on images that chose nothing."""
    confirm, pruned = job.confirm, job.pruned(model)
    unseen, error = None, None
    if isinstance(confirm, PairedEvaluator):
        drop = confirm.compare(pruned)
        unseen, error = confirm.dense_score - drop.drop, drop.standard_error
    elif confirm is not None:
        unseen = score_of(confirm, pruned, "resulting")
    dense = dict(summary["dense"]) | ({} if confirm is None else {"unseen": confirm.dense_score})
    slim = dict(summary["slim"]) | ({} if unseen is None else {"unseen": unseen})
    return {
        "budget": config.budget,
        "run": f"point-{number}",
        "episodes": summary["episodes"],
        "score": summary["score"],
        "dense": dense,
        "slim": slim,
        "baselines": summary["baselines"],
        "standard_error": error,
        "images": None if confirm is None else confirm.images,
    }


def _height(point: Mapping[str, Any]) -> float:
    """The score that the curve shows: on images that chose nothing, if there are any."""
    slim = point["slim"]
    return float(slim.get("unseen", slim.get("score_recovered", slim["score"])))
