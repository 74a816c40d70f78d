"""`amc demo`, `inspect`, `search`, `resume` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc.cli.common import (
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
    out,
    print_json,
    reported,
    stoppable,
)

DEMO = Path("runs/demo")


@reported
def demo(
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where to keep the run (default: runs/demo, or runs/demo-2 and so on).")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Policies to score.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the agent and the fine-tuning.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """The whole job on built-in data, offline: search, fine-tune, report."""
    from amc.jobs import demo as job
    from amc.jobs import free_place
    from amc.progress import ProgressBar

    place = free_place(DEMO) if out_dir is None else out_dir
    if out_dir is None and place != DEMO:
        err.print(f"· '{DEMO}' holds a run and stays; this demo goes to '{place}'", markup=False, soft_wrap=True)
    with stoppable(place):
        job(place, episodes=episodes, seed=seed, progress=ProgressBar(err))
    finish(place, as_json)


@reported
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
        print_json(found)
    else:
        show_structure(out, found)


@reported
def search(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A zoo or torchvision name, timm:NAME, package.module:factory, or a run to go on from.",
        ),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Directory for the run; must not hold another.")],
    weights: WeightsOption = None,
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10:ROOT, imagefolder:ROOT, or package.module:factory.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help='"macs<=50%,size<=1MB", "latency<=4ms" …; default half the MACs; none with --reward.'),
    ] = None,
    reward: Annotated[
        str, typer.Option(help="r_err under a budget; without one r_flops, r_params or r_latency.")
    ] = "r_err",
    max_drop: Annotated[
        float | None, typer.Option(help="Points of accuracy that may be lost: find the smallest network within.")
    ] = None,
    minimise: Annotated[str, typer.Option(help="What --max-drop makes small: macs, params, size or latency.")] = "macs",
    confidence: Annotated[float, typer.Option(help="Of --max-drop, one-sided.")] = 0.8,
    schedule: Annotated[
        str | None, typer.Option(help="Prune and fine-tune in rounds, to these shares: 0.5,0.35,0.25,0.2.")
    ] = None,
    round_epochs: Annotated[int, typer.Option(help="Fine-tuning after each round of a --schedule.")] = 5,
    round_lr: Annotated[float | None, typer.Option(help="Its learning rate.")] = None,
    episodes: Annotated[int, typer.Option(help="Policies to score.")] = 400,
    agent: Annotated[str, typer.Option(help="ddpg, random, uniform, shallow or deep.")] = "ddpg",
    baseline: Annotated[
        list[str] | None, typer.Option(help="Score beside the agent: uniform, random, shallow, deep (repeat), or none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same search.")] = 0,
    evaluate: Annotated[
        str | None, typer.Option(help="package.module:function, module -> score, instead of top-1 accuracy.")
    ] = None,
    score: Annotated[
        str,
        typer.Option(
            help="Of the data: top1, top5, balanced-accuracy, macro-f1, auroc, miou or mse (lower is better)."
        ),
    ] = "top1",
    method: Annotated[
        str, typer.Option(help="channel, fine-grained, 2:4 (any N:M, or n:8), rows, columns or blocks:4x4.")
    ] = "channel",
    round_to: Annotated[
        int | None, typer.Option(help="Keep counts are multiples of this (default: 8 or less).")
    ] = None,
    max_sparsity: Annotated[
        float, typer.Option(help="Largest share of a group, or of a convolution's weights, that may go.")
    ] = 0.8,
    max_sparsity_linear: Annotated[float, typer.Option(help="The same for a linear layer's weights.")] = 0.98,
    ranking: Annotated[
        str | None, typer.Option(help="elimination (the default for channels) or magnitude (for masks).")
    ] = None,
    reconstruct: Annotated[bool, typer.Option(help="Refit what stays of a layer by least squares.")] = True,
    bn_images: Annotated[
        int | None,
        typer.Option(help="Images to re-estimate batch norms on (default: 512, with --max-drop 0: none)."),
    ] = None,
    calibration_images: Annotated[int, typer.Option(help="Training images for calibration.")] = 2048,
    search_images: Annotated[
        int | None, typer.Option(help="Images that give the score (default: the whole split).")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Of an imagefolder, in pixels (default: 224, or as in the run gone on from).")
    ] = None,
    bf16: Annotated[bool, typer.Option(help="Score in bfloat16.")] = False,
    keep_sets: Annotated[int, typer.Option("--certify", help="Random keep sets to check first.")] = 3,
    lock: LockOption = None,
    only: OnlyOption = None,
    runtime: Annotated[
        str | None, typer.Option(help="Whose latency counts: onnxruntime (the default), openvino, executorch …")
    ] = None,
    latency_threads: Annotated[int, typer.Option(help="Threads it runs on.")] = 1,
    device_url: Annotated[
        str | None, typer.Option(help="Measure latency there: http://HOST:PORT of `amc device serve`, or adb://…")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Holds the device's token (or AMC_DEVICE_TOKEN).")] = None,
    test: Annotated[bool, typer.Option(help="Evaluate dense and slim on the test split at the end.")] = True,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search for the best way to meet a budget."""
    from amc.jobs import parse_schedule
    from amc.jobs import schedule as rounds
    from amc.jobs import search as job
    from amc.progress import ProgressBar

    baselines = ("uniform",) if baseline is None else tuple(name for name in baseline if name != "none")
    settings = {
        "budget": budget, "episodes": episodes, "agent": agent, "seed": seed, "method": method,
        "score": score,
        "reward": reward, "max_drop": max_drop, "minimise": minimise, "confidence": confidence,
        "baselines": tuple(name for name in baselines if name != agent), "round_to": round_to,
        "max_sparsity": max_sparsity, "max_sparsity_linear": max_sparsity_linear, "ranking": ranking,
        "reconstruct": reconstruct, "bn_images": bn_images, "calibration_images": calibration_images,
        "bf16": bf16, "keep_sets": keep_sets, "lock": tuple(lock or ()), "only": tuple(only or ()),
        "runtime": runtime, "latency_threads": latency_threads, "device_url": device_url,
        "token_file": None if token_file is None else str(token_file.resolve()),
    }  # fmt: skip
    origin = {
        "command": "search", "model": model, "weights": None if weights is None else str(weights.resolve()),
        "data": data, "evaluate": evaluate, "search_images": search_images, "image_size": image_size, "test": test,
    }  # fmt: skip
    tuning = {"epochs": round_epochs, "seed": seed} | ({} if round_lr is None else {"lr": round_lr})
    with stoppable(out_dir):
        if schedule is None:
            job(out_dir, origin, settings, progress=ProgressBar(err))
        else:
            rounds(out_dir, origin, settings, parse_schedule(schedule), tuning, progress=ProgressBar(err))
    finish(out_dir, as_json)


@reported
def resume(
    run: RunArgument,
    round_lr: Annotated[
        float | None,
        typer.Option(help="Of a schedule: another learning rate; a fine-tuning under way begins anew with it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a search that was stopped; the result is that of an uninterrupted one."""
    from amc.jobs import resume as job
    from amc.progress import ProgressBar

    with stoppable(run):
        job(run, round_lr=round_lr, progress=ProgressBar(err))
    finish(run, as_json)


@reported
def report(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Write RUN/report.html again."""
    from amc.report import render_report

    path = render_report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        out.print(f"report: {path}", soft_wrap=True)
