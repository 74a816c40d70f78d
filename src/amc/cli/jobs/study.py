"""`amc study`: every method under every constraint, each a run of its own, and one table of all of them.

A cell that is not possible (2:4 below half the weights, masks for a latency) keeps its reason; so does one whose
search or runtime fails, and the rest goes on. Finished work is never repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.cli.jobs.devices import AUTO
from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.finetune_state import FineTuneState
from amc.cli.jobs.latency import run_latency
from amc.cli.jobs.origin import data_of, placed_network, source_of
from amc.cli.jobs.search import resume_search, run_search, with_parent
from amc.compression.inputs import Inputs
from amc.compression.job import costs_of
from amc.compression.load import set_place, settings_of
from amc.compression.observer import Observer
from amc.compression.pipeline import check_agent
from amc.compression.scoring.engine.base import TorchEngine
from amc.compression.scoring.evaluator import BATCH
from amc.compression.settings import SESSION, SearchConfig
from amc.deploy.runtimes import get_runtime
from amc.errors import AmcError, RunError
from amc.pruning.methods import create_method, problem_of
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import amc_version
from amc.run.settings import FineTuneConfig, Given, Source, StudyConfig, TimingConfig
from amc.run.settings.study import Cell, listed
from amc.search import Metric, get_reward, parse_budgets
from amc.structure import Structure, inspect
from amc.structure.modes import device_of
from amc.structure.trace import Example
from amc.zoo import DataSplits

OWN = ("budget", "method", "reward", "max_drop", "minimise", "seed", "runtime")  # what a study decides for each cell
TIMED_IMAGES = 512  # of the search split, for the estimate
PASSES = 5
BACKWARD = 3.0  # a step of training takes this many forward passes


def check_plan(plan: StudyConfig) -> None:
    """Raise AmcError for a budget, a reward or a runtime that there is not, before anything is loaded."""
    for constraint in plan.constraints():
        settings = dict(constraint.settings)
        if settings.get("budget"):
            parse_budgets(settings["budget"])
        get_reward(settings.get("reward", "r_err"))
    for runtime in listed(plan.runtimes):
        get_runtime(runtime)


def search_settings(given: Given[SearchConfig]) -> SearchConfig:
    """The settings that all cells share. Raises AmcError for one that a study decides itself."""
    for name in OWN:
        if name in given.values:
            flag = name.replace("_", "-")
            raise AmcError(f"a study chooses {flag} itself, cell by cell; leave --{flag} out (see amc study --help)")
    return given.make()


def run_study(out: Path, source: Source, config: SearchConfig, plan: StudyConfig, *, progress: Observer) -> Path:
    """Carry out a study in `out`, a new directory or one of the same study; returns its path."""
    check_agent(config)
    check_plan(plan)
    source = replace(source, command="study")
    if (out / files.CONFIG).exists():
        return _again(out, source, config, plan, progress)
    with RunDir.claim(out) as run:
        source = with_parent(source, out)
        source = replace(source, device=str(device_of(placed_network(source, out))))
        run.write_json(files.CONFIG, _record(source, config, plan))
        _Study(run, source, config, plan, progress).carry_out()
    return out


def resume_study(run_path: Path, *, progress: Observer) -> Path:
    """Go on with a study; cells whose search or runtime failed are tried again."""
    run = RunDir.open(run_path)
    source, config = source_of(run, "start it from the command line"), settings_of(run)
    try:
        plan = StudyConfig(**run.config()["study"])
    except (AmcError, KeyError, TypeError) as error:
        raise RunError(f"'{run.file(files.CONFIG)}': study is malformed ({error}); restore the file") from None
    with run.lock():
        _Study(run, source, config, plan, progress).carry_out()
    return run_path


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell before its search."""

    cell: Cell
    reason: str  # why it is not possible; empty if it is
    seconds: float  # about


def plan_study(out: Path, source: Source, config: SearchConfig, plan: StudyConfig) -> list[Planned]:
    """What a study in `out` would do, with a rough estimate of the time: nothing is written.

    A search takes one dense score for each policy, times the share of the MACs that its budget leaves; recovery, at
    most its time limit for each finalist; fine-tuning, three forward passes for each image and epoch.
    """
    check_plan(plan)
    planner = _Possible(with_parent(source, out), config, out)
    return [Planned(cell, planner.reason(cell), planner.seconds(cell, plan)) for cell in plan.cells()]


def _record(source: Source, config: SearchConfig, plan: StudyConfig) -> dict[str, Any]:
    """The study's config.json."""
    shared = {name: value for name, value in config.to_json().items() if name not in OWN}
    own = {"command": "study", "study": plan.to_json()}
    return {"amc_version": amc_version(), **source.to_json(), **shared, **own}


def _again(out: Path, source: Source, config: SearchConfig, plan: StudyConfig, progress: Observer) -> Path:
    """Go on with the study in `out`, if it is this one."""
    run = RunDir.open(out)
    before = run.config()
    config = config.for_run(before)
    if not before.get("study"):
        raise RunError(f"'{out}' holds a run and no study; choose another --out")
    wanted = _record(with_parent(source, out), config, plan)
    skipped = ("amc_version", "environment", "repeat", "study", "device", *SESSION)
    for name, value in {**wanted, **wanted["study"]}.items():
        old = before["study"].get(name, before.get(name))
        if name not in skipped and _plain(old) != _plain(value):
            raise RunError(f"'{out}' is a study with {name} {old!r}, and not {value!r}; choose another --out")
    workers = config.workers if config.workers != before.get("workers") else None
    device = None if source.device == AUTO else source.device
    ray = config.ray if config.ray != before.get("ray") else None
    set_place(run, workers=workers, device=device if device != before.get("device") else None, ray=ray)
    return resume_study(out, progress=progress)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass
class _Possible:
    """Which cells of a network can be, and about how long they take."""

    source: Source
    config: SearchConfig
    place: Path | None = None  # of the study
    _methods: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> nn.Module:
        return placed_network(self.source, self.place)

    @cached_property
    def data(self) -> DataSplits:
        return data_of(self.source)

    @cached_property
    def inputs(self) -> Inputs:
        example = torch.zeros(1, *self.data.input_shape, device=device_of(self.model))
        return Inputs(self.model, example).of_part(self.config.part)

    @cached_property
    def structure(self) -> Structure:
        return inspect(self.inputs.model, self.inputs.example_input, approximate=self.config.approximate)

    def reason(self, cell: Cell) -> str:
        """Why the cell cannot be, in one line; empty if nothing is known against it."""
        try:
            config = replace(self.config, **cell.settings)
            budgets = tuple(budget for budget in config.budgets if budget.metric is not Metric.LATENCY)
            method = self._method(config)
            problem_of(method, budgets, measured=costs_of(self.inputs.in_whole(method, config.count)))
        except AmcError as error:
            return str(error)
        return ""

    def seconds(self, cell: Cell, plan: StudyConfig) -> float:
        """Of the search and of fine-tuning, about. Without preparation and latencies."""
        if self.reason(cell):
            return 0.0
        share, metric, data = 1.0, cell.constraint.metric, self.data
        if cell.method == "channel" and metric in ("macs", "params", "latency"):
            share = replace(self.config, **cell.settings).budgets[0].fraction or 1.0
        policies = self.config.episodes * (1 + self.config.random_share * ("random" in self.config.baselines))
        search = policies * share * len(data.search) * self._image
        recovery = (self.config.recover != "none") * max(1, self.config.finalists) * self.config.recover_time
        return search + recovery + plan.epochs * BACKWARD * share * len(data.train) * self._image

    @cached_property
    def _image(self) -> float:
        """Seconds of the dense network on one image: the best of several passes, as the machine may be busy."""
        images = self.data.search
        part = images.subset(torch.arange(min(TIMED_IMAGES, len(images))))
        times = []
        with TorchEngine().running(self.model) as call:  # whatever it returns: the score may be the user's own
            for _ in range(PASSES):
                began = time.perf_counter()
                for inputs, _labels in part.batches(BATCH):
                    call(Example.of(inputs))
                times.append(time.perf_counter() - began)
        return min(times) / len(part)

    def _method(self, config: SearchConfig) -> Any:
        if config.method not in self._methods:
            self._methods[config.method] = create_method(
                config.method,
                self.inputs.model,
                self.structure,
                config.method_options,
                lock=config.lock,
                only=config.only,
            )
        return self._methods[config.method]


@dataclass
class _Study:
    """A study in a directory that is claimed or locked."""

    run: RunDir
    source: Source
    config: SearchConfig
    plan: StudyConfig
    progress: Observer

    def carry_out(self) -> None:
        """Every cell that is possible, one after the other; the table is written anew after each."""
        cells = self.plan.cells()
        measured = self._measured()
        possible = _Possible(self.source, self.config, self.run.path)
        reasons = {cell.name: reason for cell in cells if (reason := possible.reason(cell))}
        runtimes: dict[str, Any] = {name: dict(found) for name, found in measured.get("runtimes", {}).items()}
        impossible = set(reasons)
        self._write(reasons, runtimes)
        for number, cell in enumerate(cells, start=1):
            if cell.name in impossible:
                continue
            self.progress.job_part(cell.name)
            self.progress.stage(f"cell {number} of {len(cells)}: {cell.name}")
            try:
                self._train(cell)
            except AmcError as error:
                reasons[cell.name] = str(error)
                self.progress.warning(f"{cell.name}: {error}")
            else:
                runtimes[cell.name] = self._timed(cell, runtimes.get(cell.name, {}))
            self._write(reasons, runtimes)
        self.progress.job_part("")

    def _train(self, cell: Cell) -> None:
        """The search of a cell, and its fine-tuning."""
        place = self.run.file(cell.name)
        if (place / files.CONFIG).exists():
            resume_search(place, progress=self.progress)
        else:
            config = replace(self.config, **cell.settings)
            if cell.constraint.metric == Metric.LATENCY and listed(self.plan.runtimes):
                config = replace(config, runtime=listed(self.plan.runtimes)[0])
            run_search(place, self._source(), config, progress=self.progress)
        slim = RunDir.open(place).read_json(files.SUMMARY).get("slim", {})
        if self.plan.epochs and slim.get("score_finetuned") is None:
            run_finetune(place, FineTuneConfig(epochs=self.plan.epochs, seed=cell.seed), progress=self.progress)
        else:
            FineTuneState.tidy(RunDir.open(place))

    def _source(self) -> Source:
        """The source of a cell, whose directory is one level deeper."""
        parent = self.source.parent
        return replace(self.source, command="search", parent=None if parent is None else f"../{parent}")

    def _timed(self, cell: Cell, before: Mapping[str, Any]) -> dict[str, Any]:
        """The networks of a cell on every runtime; what failed is tried again."""
        found = dict(before)
        for runtime in listed(self.plan.runtimes):
            if "networks" in found.get(runtime, {}):
                continue
            self.progress.stage(f"latency on {runtime}")
            try:
                found[runtime] = run_latency(str(self.run.file(cell.name)), config=TimingConfig(runtime=runtime))
            except AmcError as error:
                found[runtime] = {"error": str(error)}
                self.progress.warning(f"{cell.name} on {runtime}: {error}")
        return found

    def _measured(self) -> dict[str, Any]:
        return self.run.read_json(files.MEASURED) if self.run.has(files.MEASURED) else {}

    def _write(self, reasons: Mapping[str, str], runtimes: Mapping[str, Any]) -> None:
        self.run.write_json(files.MEASURED, {"reasons": dict(reasons), "runtimes": dict(runtimes)})
        render_report(self.run)
