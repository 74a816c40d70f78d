"""Iterative pruning: rounds of search, pruning and fine-tuning, each from the last one's weights.

The paper prunes ResNet-50 in four rounds, to densities 0.50, 0.35, 0.25 and 0.20 (arXiv 1802.03494, section 4.2). A
schedule is a run directory with an ordinary run for each round; finished work is never repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.finetune_state import FineTuneState
from amc.cli.jobs.origin import data_of, network_of, source_of
from amc.cli.jobs.search import resume_search, run_search, with_parent
from amc.compression.inputs import Inputs
from amc.compression.job import costs_of
from amc.compression.load import check_builds, load_run, round_path, settings_of
from amc.compression.observer import Observer
from amc.compression.settings import NO_BUDGET, SearchConfig
from amc.errors import AmcError, BudgetError, RunError
from amc.pruning.methods import CHANNEL, create_method, problem_of
from amc.recovery import DivergenceError, FineTuneConfig
from amc.report.schedule import render_schedule
from amc.run import files
from amc.run.directory import RunDir
from amc.run.provenance import amc_version, environment
from amc.run.settings import SessionConfig, Source, parse_schedule
from amc.search import Budget, Metric, Problem, parse_budgets
from amc.structure import inspect


@dataclass(frozen=True, slots=True)
class Rounds:
    """What a schedule adds to the settings of a search."""

    fractions: tuple[float, ...]  # of the dense network's cost, falling, in (0, 1)
    tuning: FineTuneConfig  # after the search of every round
    budget: str | None = None  # a metric, or the last round's budget; None: parameters for masks, MACs for channels


def run_schedule(out: Path, source: Source, config: SearchConfig, rounds: Rounds, *, progress: Observer) -> Path:
    """Run a new schedule in `out`; returns its path. Every round has its own budget in place of that of `config`."""
    budget = Budget(_metric(rounds.budget, config, rounds.fractions), fraction=rounds.fractions[-1])
    plan = _Plan(source, replace(config, budget=str(budget)), rounds.fractions, rounds.tuning)
    with RunDir.claim(out) as run:
        run.write_json(files.CONFIG, plan.to_json())
        _check_reachable(with_parent(source, out), out, config, budget)
        _run_rounds(run, plan, progress, restart=False)
    return out


def resume_schedule(run_path: Path, *, round_lr: float | None = None, progress: Observer) -> Path:
    """Resume a schedule that was stopped between rounds or inside one.

    `round_lr` becomes the learning rate of all rounds to come; an unfinished fine-tuning starts again with it.
    """
    run = RunDir.open(run_path)
    with run.lock():
        plan = _Plan.of(run)
        if round_lr is not None:
            plan = replace(plan, tuning=replace(plan.tuning, lr=round_lr))
            run.write_json(files.CONFIG, {**run.config(), "tuning": asdict(plan.tuning)})
        _run_rounds(run, plan, progress, restart=round_lr is not None)
    return run_path


@dataclass(frozen=True, slots=True)
class _Plan:
    """A schedule as its config.json describes it."""

    source: Source
    config: SearchConfig  # its budget is the last round's
    fractions: tuple[float, ...]
    tuning: FineTuneConfig

    @property
    def metric(self) -> Metric:
        """The cost that the rounds lower."""
        return self.config.budgets[0].metric

    def to_json(self) -> dict[str, Any]:
        """For config.json."""
        return {
            "amc_version": amc_version(),
            **self.source.to_json(),
            **self.config.to_json(),
            "command": "schedule",
            "schedule": list(self.fractions),
            "tuning": asdict(self.tuning),
        }

    @classmethod
    def of(cls, run: RunDir) -> _Plan:
        """From a run's config.json. Raises RunError, with the file's name, for settings that no schedule has."""
        source, record = source_of(run, "start it from the command line"), run.config()
        config = settings_of(run)
        try:
            fractions = parse_schedule(",".join(map(str, record["schedule"])))
            tuning = FineTuneConfig(**record["tuning"])
            parse_budgets(str(record["budget"]))
        except (AmcError, KeyError, TypeError) as error:
            raise RunError(f"'{run.file(files.CONFIG)}': {error}; restore the file from a copy") from None
        return cls(source, config, fractions, tuning)


def _run_rounds(run: RunDir, plan: _Plan, progress: Observer, *, restart: bool) -> None:
    """Run the rounds that are not finished, in a directory that is claimed or locked."""
    for number, fraction in enumerate(plan.fractions, start=1):
        progress.job_part(f"round-{number}")
        progress.stage(f"round {number} of {len(plan.fractions)}: {plan.metric} at {fraction:.0%}")
        _run_round(run, plan, number, progress, restart=restart)
        summary = _summary(run, plan)
        run.write_json(files.SUMMARY, summary)
        render_schedule(run)
    progress.job_part("")
    progress.job_result(summary)


def _run_round(run: RunDir, plan: _Plan, number: int, progress: Observer, *, restart: bool) -> None:
    path = round_path(run, number)
    if not (path / files.CONFIG).exists():
        check_builds(run)
        source = replace(plan.source, command="search")
        if number > 1:
            source = replace(source, model=str(round_path(run, number - 1)))
        try:
            run_search(path, source, replace(plan.config, budget=str(_budget(run, plan, number))), progress=progress)
        except BudgetError:
            if number == 1:
                raise
            raise _out_of_reach(run, plan, number) from None
    elif not (path / files.SUMMARY).exists():
        resume_search(path, progress=progress)
    if not _finished(path):
        try:
            run_finetune(path, plan.tuning, session=SessionConfig(restart=restart), progress=progress)
        except DivergenceError as error:
            raise DivergenceError(
                f"round {number} of '{run.path}': {error}; "
                f"go on with another learning rate by `amc resume {run.path} --round-lr LR`"
            ) from None
        return
    FineTuneState.tidy(RunDir.open(path))


def _out_of_reach(run: RunDir, plan: _Plan, number: int) -> BudgetError:
    """The error that says which shares of the first network's cost this round could keep."""
    metric, before = plan.metric, round_path(run, number - 1)
    problem = _problem(load_run(before), RunDir.open(before).config()["input_shape"], plan.config)
    least, most = (problem.cost(metric, counts) for counts in (problem.least, problem.dense))
    first = RunDir.open(round_path(run, 1)).read_json(files.SUMMARY)["dense"][metric]
    return BudgetError(
        f"round {number} of '{run.path}' cannot keep {plan.fractions[number - 1]:g} of the {metric}: after "
        f"round {number - 1}, {math.ceil(1000 * least / first) / 1000:g} to {most / first:.3f} can be reached; "
        f"start another schedule, or go on with the network of that round: `amc search {before} "
        f'--budget "{metric}<={math.ceil(1000 * least / most) / 10:g}%" --out DIR` is the least'
    )


def _finished(path: Path) -> bool:
    """Whether the round has its summary with a fine-tuned score; the summary is written last."""
    summary = RunDir.open(path).read_json(files.SUMMARY) if (path / files.SUMMARY).exists() else {}
    return "score_finetuned" in summary.get("slim", {})


def _check_reachable(source: Source, out: Path, config: SearchConfig, last: Budget) -> None:
    """Raise BudgetError before the first round if the last one cannot reach its budget.

    Not for slicing: each of its rounds starts from a smaller network, whose least cost is not known yet.
    """
    if config.method == CHANNEL:
        return
    _problem(network_of(source, out), data_of(source).input_shape, config, last)


def _problem(model: nn.Module, input_shape: Sequence[int], config: SearchConfig, *budgets: Budget) -> Problem:
    """The problem that a search of this network would solve. Raises BudgetError if a budget cannot be reached."""
    inputs = Inputs(model, torch.zeros(1, *input_shape)).of_part(config.part)
    structure = inspect(inputs.model, inputs.example_input, approximate=config.approximate)
    locks = {"lock": config.lock, "only": config.only}
    method = create_method(config.method, inputs.model, structure, config.method_options, **locks)
    return problem_of(method, budgets, measured=costs_of(inputs.in_whole(method, config.count)))


def _metric(budget: str | None, config: SearchConfig, fractions: Sequence[float]) -> Metric:
    if budget is not None and str(budget).strip().lower().startswith(Metric.LATENCY):
        raise BudgetError(f"a schedule lowers MACs, parameters or size; got {budget!r}: search for a latency by itself")
    if config.max_drop is not None or config.reward != "r_err":
        raise AmcError("a schedule has a budget in every round; leave max-drop and reward out")
    if budget in (None, NO_BUDGET):
        return Metric.MACS if config.method == CHANNEL else Metric.PARAMS
    if "<=" not in str(budget):
        return Metric.parse(str(budget))
    parsed = parse_budgets(str(budget))
    if len(parsed) > 1 or parsed[0].fraction is None:
        raise BudgetError(f"a schedule lowers one budget, given as a share; got {budget!r}")
    if abs(parsed[0].fraction - fractions[-1]) > 1e-9:
        raise BudgetError(
            f"budget {budget!r} differs from the end of the schedule ({fractions[-1]:g}); write only its metric, "
            f"such as --budget {parsed[0].metric}"
        )
    return parsed[0].metric


def _budget(run: RunDir, plan: _Plan, number: int) -> Budget:
    """The round's limit. A later round starts from a smaller network: there it is an absolute cost."""
    budget = Budget(plan.metric, fraction=plan.fractions[number - 1])
    if number == 1:
        return budget
    dense = RunDir.open(round_path(run, 1)).read_json(files.SUMMARY)["dense"][plan.metric]
    return Budget(plan.metric, absolute=int(budget.limit(dense)))


def _summary(run: RunDir, plan: _Plan) -> dict[str, Any]:
    """The finished rounds, and the dense network that the first one started from."""
    rounds = []
    for number, fraction in enumerate(plan.fractions, start=1):
        if not _finished(round_path(run, number)):
            break
        summary = RunDir.open(round_path(run, number)).read_json(files.SUMMARY)
        rounds.append({"fraction": fraction, "run": round_path(run, number).name, **_outcome(summary)})
    if not rounds:
        raise RunError(f"'{run.path}' has no finished round yet; run `amc resume {run.path}` first")
    first = RunDir.open(round_path(run, 1)).read_json(files.SUMMARY)
    kept = ("model", "data", "method", "agent", "seed", "score")
    return {
        "amc_version": amc_version(),
        **{name: first.get(name) for name in kept},
        "budget": plan.config.budget,
        "schedule": list(plan.fractions),
        "dense": first["dense"],
        "rounds": rounds,
        "environment": environment(),
    }


def _outcome(summary: Mapping[str, Any]) -> dict[str, Any]:
    names = ("macs", "params", "size", "score", "score_finetuned", "test", "test_finetuned")
    return {name: summary["slim"][name] for name in names if name in summary["slim"]}
