"""`amc …`: the command line, and the only module that prints.

Exit codes: 0 done, 2 the user's input is wrong (one line: what, which value, what to do), 1 a fault of ours,
130 interrupted.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from amc.errors import AmcError

app = typer.Typer(
    help="Prune a trained network to a budget with a reinforcement-learning agent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(highlight=False)  # results
err = Console(stderr=True, highlight=False)  # progress and errors

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory that `amc search --out` made.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A zoo or torchvision name, timm:NAME, or package.module:factory.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="State dict of the trained network: safetensors, or torch.save of tensors only."),
]
InputOption = Annotated[str | None, typer.Option("--input", help="Shape of one example without the batch: 3x224x224.")]
LockOption = Annotated[list[str] | None, typer.Option(help="Keep layers of this name or pattern whole (repeat).")]
OnlyOption = Annotated[list[str] | None, typer.Option(help="Prune only layers of this name or pattern (repeat).")]


def _reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake becomes one line and exit code 2."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AmcError as error:
            err.print(f"amc: {' '.join(str(error).split())}", style="red", soft_wrap=True, markup=False)
            raise typer.Exit(2) from None
        except OSError as error:  # a full disk, a path that cannot be written
            place = f" '{error.filename}'" if error.filename else ""
            err.print(f"amc: {error.strerror or error}{place}", style="red", soft_wrap=True, markup=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("amc: interrupted; nothing is lost, `amc resume RUN` goes on", soft_wrap=True)
            raise typer.Exit(130) from None

    return run


@_reported
def _take_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Let the recipe give the defaults of the command's other options, MODEL included."""
    from amc.recipes import load_recipe

    if path is not None:
        own = {"recipe", "run", "out_dir", "as_json"}  # of this call alone
        options = {parameter.name for parameter in context.command.params if parameter.name} - own
        context.default_map = load_recipe(path, str(context.info_name), options)
    return path


RecipeOption = Annotated[
    Path | None,
    typer.Option(help="TOML file that gives defaults for the other options.", is_eager=True, callback=_take_recipe),
]


@app.command()
@_reported
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where to keep the run.")] = Path("runs/demo"),
    episodes: Annotated[int, typer.Option(help="Policies to score.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the agent and the fine-tuning.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """The whole job on built-in data, offline: search, fine-tune, report."""
    from amc.jobs import demo as job
    from amc.terminal import Progress

    _finish(job(out_dir, episodes=episodes, seed=seed, progress=Progress(err)), as_json)


@app.command()
@_reported
def inspect(
    model: ModelArgument,
    weights: WeightsOption = None,
    input_shape: InputOption = None,
    certify: Annotated[int, typer.Option(help="Random keep sets to check.", min=0)] = 1,
    lock: LockOption = None,
    only: OnlyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """What can be pruned, what each budget can reach, and what is locked and why."""
    from amc.jobs import inspect as job
    from amc.terminal import show_structure

    found = job(
        model,
        weights=weights,
        input_shape=input_shape,
        keep_sets=certify,
        lock=tuple(lock or ()),
        only=tuple(only or ()),
    )
    if as_json:
        _print_json(found)
    else:
        show_structure(out, found)


@app.command()
@_reported
def search(
    model: ModelArgument,
    out_dir: Annotated[Path, typer.Option("--out", help="Directory for the run; must not hold another.")],
    weights: WeightsOption = None,
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10:ROOT, imagefolder:ROOT, or package.module:factory.")
    ] = None,
    budget: Annotated[str, typer.Option(help='Such as "macs<=50%" or "macs<=50%,params<=60%".')] = "macs<=50%",
    episodes: Annotated[int, typer.Option(help="Policies to score.")] = 400,
    agent: Annotated[str, typer.Option(help="ddpg, random, uniform, shallow or deep.")] = "ddpg",
    baseline: Annotated[
        list[str] | None, typer.Option(help="Score beside the agent: uniform, random, shallow, deep (repeat), or none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same search.")] = 0,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function, module -> score, instead of top-1 accuracy.")
    ] = None,
    method: Annotated[str, typer.Option(help="What is pruned.")] = "channel",
    round_to: Annotated[
        int | None, typer.Option(help="Keep counts are multiples of this (default: 8 or less).")
    ] = None,
    max_sparsity: Annotated[float, typer.Option(help="Largest share of a group that may go.")] = 0.8,
    ranking: Annotated[str, typer.Option(help="elimination or magnitude.")] = "elimination",
    reconstruct: Annotated[bool, typer.Option(help="Refit pruned layers by least squares.")] = True,
    bn_images: Annotated[int, typer.Option(help="Images to re-estimate batch norms on; 0: do not.")] = 512,
    calibration_images: Annotated[int, typer.Option(help="Training images for calibration.")] = 2048,
    search_images: Annotated[
        int | None, typer.Option(help="Images that give the score (default: the whole split).")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Of an imagefolder, in pixels.")] = 224,
    bf16: Annotated[bool, typer.Option(help="Score in bfloat16.")] = False,
    keep_sets: Annotated[int, typer.Option("--certify", help="Random keep sets to check first.")] = 3,
    lock: LockOption = None,
    only: OnlyOption = None,
    test: Annotated[bool, typer.Option(help="Evaluate dense and slim on the test split at the end.")] = True,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search for the best way to meet a budget."""
    from amc.jobs import search as job
    from amc.terminal import Progress

    baselines = ("uniform",) if baseline is None else tuple(name for name in baseline if name != "none")
    settings = {
        "budget": budget, "episodes": episodes, "agent": agent, "seed": seed, "method": method,
        "baselines": tuple(name for name in baselines if name != agent), "round_to": round_to,
        "max_sparsity": max_sparsity, "ranking": ranking, "reconstruct": reconstruct, "bn_images": bn_images,
        "calibration_images": calibration_images, "bf16": bf16, "keep_sets": keep_sets,
        "lock": tuple(lock or ()), "only": tuple(only or ()),
    }  # fmt: skip
    origin = {
        "command": "search", "model": model, "weights": None if weights is None else str(weights.resolve()),
        "data": data, "evaluate": evaluate, "search_images": search_images, "image_size": image_size, "test": test,
    }  # fmt: skip
    _finish(job(out_dir, origin, settings, progress=Progress(err)), as_json)


@app.command()
@_reported
def resume(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Go on with a search that was stopped; the result is that of an uninterrupted one."""
    from amc.jobs import resume as job
    from amc.terminal import Progress

    _finish(job(run, progress=Progress(err)), as_json)


@app.command()
@_reported
def finetune(
    run: RunArgument,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 5,
    lr: Annotated[float | None, typer.Option(help="Learning rate after the warm-up.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In [0, 1).")] = None,
    distill: Annotated[float | None, typer.Option(help="Weight of the dense network's answers, in [0, 1].")] = None,
    bf16: Annotated[bool, typer.Option(help="Train in bfloat16.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of shuffling and augmentation.")] = None,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the slim network of a run; the last epoch is reported."""
    from amc.jobs import finetune as job
    from amc.terminal import Progress

    given = {
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "label_smoothing": label_smoothing,
        "distill": distill, "autocast": bf16, "seed": seed,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    _finish(job(run, chosen, progress=Progress(err)), as_json)


@app.command()
@_reported
def report(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Write RUN/report.html again."""
    from amc.report import render_report

    path = render_report(run)
    if as_json:
        _print_json({"report": str(path)})
    else:
        out.print(f"report: {path}", soft_wrap=True)


def _finish(run: Path, as_json: bool) -> None:
    """What every job ends with: its summary, as a table or as JSON."""
    from amc.rundir import SUMMARY, RunDir
    from amc.terminal import show_summary

    summary = RunDir.open(run).read_json(SUMMARY)
    if as_json:
        _print_json(summary | {"run": str(run)})
    else:
        show_summary(out, run, summary)


def _print_json(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Entry point of the `amc` command."""
    sys.path.insert(0, "")  # package.module:factory may lie in the current directory
    warnings.filterwarnings("ignore", module=r"torch\.")  # meant for whoever writes code that calls torch
    app()


if __name__ == "__main__":
    main()
