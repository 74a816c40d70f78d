"""`amc demo`, `inspect`, `search`, `sweep` and `resume`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from amc.cli.common import (
    ApproximateOption,
    InputOption,
    JsonFlag,
    LockOption,
    ModelArgument,
    OnlyOption,
    RecipeOption,
    RunArgument,
    WeightsOption,
    err,
    finish,
    loading,
    out,
    print_json,
    reported,
    stoppable,
)
from amc.cli.listening import LogOption, listening
from amc.cli.options import takes_settings
from amc.cli.study import finish_study, is_study
from amc.compression.settings import SearchConfig
from amc.compression.sweep_settings import SweepConfig
from amc.errors import AmcError
from amc.run.settings import Given, Panel, ScheduleConfig, Source, spelled

DEMO = Path("runs/demo")


@reported
def demo(
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where to keep the run (default: runs/demo, or runs/demo-2 and so on).",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Policies to score.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the agent and the fine-tuning.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """The whole job on built-in data, offline: search, fine-tune, report."""
    with loading():
        from amc.cli.jobs.search import free_place
        from amc.cli.jobs.search import run_demo as job

    place = free_place(DEMO) if out_dir is None else out_dir
    if out_dir is None and place != DEMO:
        err.print(f"· '{DEMO}' holds a run and stays; this demo goes to '{place}'", markup=False, soft_wrap=True)
    with stoppable(place), listening(place) as progress:
        job(place, episodes=episodes, seed=seed, progress=progress)
    finish(place, as_json)


@reported
def inspect(
    model: ModelArgument,
    weights: WeightsOption = None,
    input_shape: InputOption = None,
    certify: Annotated[int, typer.Option(help="Random keep sets to check.", min=0)] = 1,
    lock: LockOption = None,
    only: OnlyOption = None,
    part: Annotated[str | None, typer.Option(help="A submodule, such as backbone, in place of the network.")] = None,
    approximate: ApproximateOption = False,
    why: Annotated[
        str | None, typer.Option(help="A layer: show how its channels came to be tied or locked, step by step.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run it: auto, cpu, cuda or cuda:1.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Show what can be pruned, how far each budget can go, and what is locked and why."""
    with loading():
        from amc.cli.jobs.inspect import run_inspect as job
        from amc.cli.jobs.inspect import run_why
        from amc.cli.terminal import show_structure, show_why

    if why is not None:
        if lock or only or approximate:
            raise AmcError(
                "--why shows what the network itself ties and locks; leave out --lock, --only and --approximate"
            )
        record = run_why(model, why, weights=weights, input_shape=input_shape, part=part, device=device)
        print_json(record) if as_json else show_why(out, record)
        return
    record = job(
        model,
        weights=weights,
        input_shape=input_shape,
        keep_sets=certify,
        lock=tuple(lock or ()),
        only=tuple(only or ()),
        part=part,
        approximate=approximate,
        device=device,
    )
    if as_json:
        print_json(record)
    else:
        show_structure(out, record)


@reported
@takes_settings
def search(
    source: Source,
    config: Given[SearchConfig],
    rounds: ScheduleConfig,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Directory for the run; must not hold another.", rich_help_panel=Panel.OUTPUT)
    ],
    recipe: RecipeOption = None,
    log: LogOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search for the best way to meet a budget."""
    with loading():
        from amc.cli.jobs.search import run_search

    source = replace(source, repeat=spelled("search", source, config, rounds))
    with stoppable(out_dir), listening(out_dir, log) as progress:
        if rounds.schedule is None:
            run_search(out_dir, source, config.make(), progress=progress)
        else:
            from amc.cli.jobs.schedule import Rounds, run_schedule

            searched = config.make(budget=None)  # in a schedule the budget may be a metric alone
            planned = Rounds(rounds.fractions, rounds.tuning(searched.seed), config.values.get("budget"))
            run_schedule(out_dir, source, searched, planned, progress=progress)
    finish(out_dir, as_json)


@reported
@takes_settings
def sweep(
    source: Source,
    config: Given[SearchConfig],
    plan: SweepConfig,
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="Directory for the sweep; must not hold another.", rich_help_panel=Panel.OUTPUT),
    ],
    recipe: RecipeOption = None,
    log: LogOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search several budgets at once: a curve of accuracy against cost, and a network for each point."""
    with loading():
        from amc.cli.jobs.sweep import run_sweep
        from amc.compression.sweep import refuse_budget

    refuse_budget(config.values)
    source = replace(source, repeat=spelled("sweep", source, config, plan))
    with stoppable(out_dir), listening(out_dir, log) as progress:
        run_sweep(out_dir, source, config.make(), plan, progress=progress)
    finish(out_dir, as_json)


@reported
def resume(
    run: RunArgument,
    round_lr: Annotated[
        float | None,
        typer.Option(help="New learning rate of a schedule; an unfinished fine-tuning starts again with it."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that score policies (default: as before).")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to go on: auto, cpu, cuda or cuda:1 (default: as before).")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster to go on with: auto, HOST:PORT or none (default: as before).")
    ] = None,
    log: LogOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Resume a search that was stopped; the result is the same as without the stop."""
    with loading():
        from amc.cli.jobs.resume import run_resume as job

    with stoppable(run), listening(run, log) as progress:
        job(run, round_lr=round_lr, workers=workers, device=device, ray=ray, progress=progress)
    if is_study(run):
        finish_study(run, as_json)
    else:
        finish(run, as_json)
