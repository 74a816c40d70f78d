"""Iterative pruning: rounds of search, pruning and fine-tuning, each from the last one's weights.

The paper prunes ResNet-50 in four rounds, to densities 0.50, 0.35, 0.25 and 0.20 (arXiv 1802.03494, section 4.2). A
schedule is a run directory with an ordinary run a round; whatever is finished there is never done again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc import rundir
from amc.config import NO_BUDGET, SearchConfig
from amc.errors import AmcError, BudgetError, RunError
from amc.jobs.finetune import finetune
from amc.jobs.origin import config_of, data_of, network_of
from amc.jobs.search import resume_search, search, with_parent
from amc.methods import CHANNEL, create_method, problem_of
from amc.observer import Observer
from amc.provenance import amc_version, environment
from amc.recovery import DivergenceError, FineTuneConfig
from amc.report import render_schedule
from amc.rundir import RunDir
from amc.search import Budget, Metric, Problem, parse_budgets
from amc.stored import load_run, round_path
from amc.structure import inspect


def parse_schedule(text: str) -> tuple[float, ...]:
    """`0.5,0.35,0.25` -> fractions of the dense network's cost, falling; AmcError for anything else."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise AmcError(f"schedule {text!r} is malformed; write falling fractions, such as 0.5,0.35,0.25,0.2") from None
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise AmcError(f"schedule {text!r} has {fraction:g}; every round keeps a fraction between 0 and 1")
    for before, after in itertools.pairwise(fractions):
        if after >= before:
            raise AmcError(f"schedule {text!r} rises from {before:g} to {after:g}; every round must keep less")
    return fractions


def schedule(
    out: Path,
    origin: Mapping[str, Any],
    settings: Mapping[str, Any],
    fractions: Sequence[float],
    tuning: Mapping[str, Any],
    *,
    progress: Observer,
) -> Path:
    """A new schedule in `out`, run to its end; returns its path.

    The budget of `settings` names the metric, by default parameters for masks and MACs for channels; if it has a
    fraction, that must be the last round's. `tuning` are fields of `FineTuneConfig`, for every round.
    """
    config = SearchConfig(**{**settings, "budget": None})
    FineTuneConfig(**tuning)
    metric = _metric(settings.get("budget"), config, fractions)
    record = {
        "amc_version": amc_version(),
        **origin,
        **config.to_json(),
        "budget": str(Budget(metric, fraction=fractions[-1])),
        "command": "schedule",
        "schedule": list(fractions),
        "tuning": dict(tuning),
    }
    with RunDir.claim(out) as run:
        run.write_json(rundir.CONFIG, record)
        _check_reachable(with_parent(origin, out), out, config, Budget(metric, fraction=fractions[-1]))
        _run_rounds(run, run.config(), progress, restart=False)
    return out


def resume_schedule(run_path: Path, *, round_lr: float | None = None, progress: Observer) -> Path:
    """Go on with a schedule, between rounds or inside one.

    `round_lr` is from now on the learning rate of all rounds; a fine-tuning under way begins anew.
    """
    run = RunDir.open(run_path)
    with run.lock():
        config = config_of(run, "start it from the command line")
        if round_lr is not None:
            config["tuning"] = {**config.get("tuning", {}), "lr": round_lr}
            FineTuneConfig(**config["tuning"])
            run.write_json(rundir.CONFIG, config)
        _run_rounds(run, config, progress, restart=round_lr is not None)
    return run_path


def _run_rounds(run: RunDir, config: Mapping[str, Any], progress: Observer, *, restart: bool) -> None:
    """Whatever is not finished, in a directory that is claimed or locked."""
    budget = _budget_of(run, config)
    for number, fraction in enumerate(config["schedule"], start=1):
        progress.stage(f"round {number} of {len(config['schedule'])}: {budget.metric} at {fraction:.0%}")
        _run_round(run, config, number, budget.metric, progress, restart=restart)
        run.write_json(rundir.SUMMARY, _summary(run, config))
        render_schedule(run)


def _budget_of(run: RunDir, config: Mapping[str, Any]) -> Budget:
    """Of the last round. RunError, naming the file, for settings that no schedule is made with."""
    try:
        parse_schedule(",".join(map(str, config["schedule"])))
        FineTuneConfig(**config["tuning"])
        return parse_budgets(str(config["budget"]))[0]
    except (AmcError, KeyError, TypeError) as error:
        raise RunError(f"'{run.file(rundir.CONFIG)}': {error}; restore the file from a copy") from None


def _run_round(
    run: RunDir, config: Mapping[str, Any], number: int, metric: Metric, progress: Observer, *, restart: bool
) -> None:
    path = round_path(run, number)
    if not (path / rundir.CONFIG).exists():
        origin = {name: config[name] for name in _ORIGIN if name in config} | {"command": "search"}
        if number > 1:
            origin["model"] = str(round_path(run, number - 1))
        settings = SearchConfig.from_json(config).to_json()
        settings["budget"] = str(_budget(run, config, number, metric))
        try:
            search(path, origin, settings, progress=progress)
        except BudgetError:
            if number == 1:
                raise
            raise _out_of_reach(run, config, number, metric) from None
    elif not (path / rundir.SUMMARY).exists():
        resume_search(path, progress=progress)
    if not _finished(path):
        try:
            finetune(path, config["tuning"], restart=restart, progress=progress)
        except DivergenceError as error:
            raise DivergenceError(
                f"round {number} of '{run.path}': {error}; "
                f"go on with another learning rate by `amc resume {run.path} --round-lr LR`"
            ) from None


def _out_of_reach(run: RunDir, config: Mapping[str, Any], number: int, metric: Metric) -> BudgetError:
    """What this round could reach instead, of the network that the schedule began with."""
    settings, before = SearchConfig.from_json(config), round_path(run, number - 1)
    problem = _problem(load_run(before), RunDir.open(before).config()["input_shape"], settings)
    least, most = (problem.cost(metric, counts) for counts in (problem.least, problem.dense))
    first = RunDir.open(round_path(run, 1)).read_json(rundir.SUMMARY)["dense"][metric]
    return BudgetError(
        f"round {number} of '{run.path}' cannot keep {config['schedule'][number - 1]:g} of the {metric}: from where "
        f"round {number - 1} ended, {math.ceil(1000 * least / first) / 1000:g} to {most / first:.3f} can be reached; "
        f"start another schedule, or go on with the network of that round: `amc search {before} "
        f'--budget "{metric}<={math.ceil(1000 * least / most) / 10:g}%" --out DIR` is the least'
    )


def _finished(path: Path) -> bool:
    """Whether a round is searched and fine-tuned, down to its summary, which is written last."""
    summary = RunDir.open(path).read_json(rundir.SUMMARY) if (path / rundir.SUMMARY).exists() else {}
    return "score_finetuned" in summary.get("slim", {})


def _check_reachable(origin: Mapping[str, Any], out: Path, config: SearchConfig, last: Budget) -> None:
    """Refuse at once what the last round could not reach, and not after all rounds before it.

    Slicing starts every round from a smaller network, so only there the least is not known yet.
    """
    if config.method == CHANNEL:
        return
    _problem(network_of(origin, out), data_of(origin).input_shape, config, last)


def _problem(model: nn.Module, input_shape: Sequence[int], config: SearchConfig, *budgets: Budget) -> Problem:
    """What a search of this network would decide; BudgetError for a budget that it cannot reach."""
    structure = inspect(model, torch.zeros(1, *input_shape))
    method = create_method(config.method, model, structure, config.method_options, lock=config.lock, only=config.only)
    return problem_of(method, budgets)


_ORIGIN = ("model", "weights", "data", "evaluate", "search_images", "image_size", "test")


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
            f"budget {budget!r} is not where the schedule ends ({fractions[-1]:g}); write only its metric, "
            f"such as --budget {parsed[0].metric}"
        )
    return parsed[0].metric


def _budget(run: RunDir, config: Mapping[str, Any], number: int, metric: Metric) -> Budget:
    """The round's limit. A later round starts from a smaller network: there it is an absolute cost."""
    fraction = config["schedule"][number - 1]
    if number == 1:
        return Budget(metric, fraction=fraction)
    dense = RunDir.open(round_path(run, 1)).read_json(rundir.SUMMARY)["dense"][metric]
    return Budget(metric, absolute=int(Budget(metric, fraction=fraction).limit(dense)))


def _summary(run: RunDir, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rounds so far, and the whole way: from the first round's dense network to the last one's slim."""
    rounds = []
    for number, fraction in enumerate(config["schedule"], start=1):
        if not _finished(round_path(run, number)):
            break
        summary = RunDir.open(round_path(run, number)).read_json(rundir.SUMMARY)
        rounds.append({"fraction": fraction, "run": round_path(run, number).name, **_outcome(summary)})
    if not rounds:
        raise RunError(f"'{run.path}' has no finished round yet; run `amc resume {run.path}` first")
    first = RunDir.open(round_path(run, 1)).read_json(rundir.SUMMARY)
    kept = ("model", "data", "method", "agent", "seed", "score")
    return {
        "amc_version": amc_version(),
        **{name: first.get(name) for name in kept},
        "budget": config["budget"],
        "schedule": config["schedule"],
        "dense": first["dense"],
        "rounds": rounds,
        "environment": environment(),
    }


def _outcome(summary: Mapping[str, Any]) -> dict[str, Any]:
    names = ("macs", "params", "size", "score", "score_finetuned", "test", "test_finetuned")
    return {name: summary["slim"][name] for name in names if name in summary["slim"]}
