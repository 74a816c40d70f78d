"""`amc finetune`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from amc.cli.common import JsonFlag, RecipeOption, RunArgument, err, finish, out, reported, stoppable


@reported
def finetune(
    run: RunArgument,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split (default: 5).")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate after the warm-up (default: 0.05; adamw: 0.001).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes (default: 128).")] = None,
    optimiser: Annotated[
        str | None, typer.Option("--optimiser", "--optimizer", help="sgd or adamw (default: sgd).")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of weights alone (default: 1e-4; adamw: 0.01).")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps, in [0, 1) (default: 0.05).")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="In [0, 1).")] = None,
    distill: Annotated[float | None, typer.Option(help="Weight of the dense network's answers, in [0, 1].")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of --distill (default: 4).")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the weights' moving average, such as 0.999; it is the result.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest gradient norm; 0: any (default: 5).")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16, or on CUDA float16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of shuffling and augmentation.")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Train this many of the search's best policies briefly, take the best on.")
    ] = None,
    candidate_epochs: Annotated[int | None, typer.Option(help="Passes for each candidate (default: 1).")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps; 0: only after each epoch.", min=0)] = 250,
    restart: Annotated[bool, typer.Option("--restart", help="Forget a fine-tuning that was interrupted.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1 (default: cuda where there is one).")] = None,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the slim network of a run, or go on with that; the last epoch is reported.

    On many GPUs: accelerate launch -m amc.cli finetune RUN
    """
    from amc.jobs import finetune as job
    from amc.progress import ProgressBar

    given = {
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "optimiser": optimiser, "weight_decay": weight_decay,
        "warmup": warmup, "label_smoothing": label_smoothing, "distill": distill, "temperature": temperature,
        "ema": ema, "clip_norm": clip_norm, "precision": precision, "seed": seed,
    }  # fmt: skip
    with stoppable(run):
        job(
            run,
            {name: value for name, value in given.items() if value is not None},
            candidates=candidates,
            candidate_epochs=candidate_epochs,
            checkpoint_every=checkpoint_every,
            restart=restart,
            device=device,
            progress=ProgressBar(err),
        )
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes one speaks
        finish(run, as_json)
        if not as_json:
            _show_candidates(run)


def _show_candidates(run: Path) -> None:
    """Which policies were tried, if several were."""
    from amc.report import format_score, named_scores
    from amc.rundir import SUMMARY, RunDir

    summary: Mapping[str, Any] = named_scores(RunDir.open(run).read_json(SUMMARY))
    tried = summary.get("candidates") or ()
    if not tried:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("candidate", "score", "tuned", ""):
        table.add_column(title, justify="left" if title in ("candidate", "") else "right")
    for entry in tried:
        cells = [format_score(entry["score"]), format_score(entry["score_tuned"])]
        table.add_row(f"episode {entry['episode']}", *cells, "taken on" if entry.get("chosen") else "")
    out.print()
    out.print(table)
