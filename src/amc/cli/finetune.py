"""`amc finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

from amc.cli.common import JsonFlag, RecipeOption, RunArgument, err, finish, reported


@reported
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
    finish(job(run, chosen, progress=Progress(err)), as_json)
