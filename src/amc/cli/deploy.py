"""`amc export` and `amc latency`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from amc.cli.common import InputOption, JsonFlag, RunArgument, WeightsOption, err, out, print_json, reported
from amc.cli.options import takes_settings
from amc.run.settings import Panel, TimingConfig, options_of

FinetunedOption = Annotated[
    bool,
    typer.Option("--finetuned/--searched", help="The fine-tuned network, if any, or the network before fine-tuning."),
]


@reported
def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="onnx, torch, executorch, openvino, litert or ncnn.")] = "onnx",
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write; for openvino and ncnn a directory. Default: in RUN.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help=options_of(TimingConfig)["half"].help)] = False,
    dynamic: Annotated[
        bool | None,
        typer.Option("--dynamic/--fixed", help="Batches of any size (default: if the format has them at no cost)."),
    ] = None,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="litert: do not store zeros of a fine-grained network (docs/sparse.md).")
    ] = False,
    finetuned: FinetunedOption = True,
    as_json: JsonFlag = False,
) -> None:
    """Write the slim network of a run as a file for a runtime, checked against PyTorch."""
    from amc.cli.jobs.export import run_export as job

    record = job(run, format=format, out=out_path, half=fp16, dynamic=dynamic, sparse=sparse, finetuned=finetuned)
    if as_json:
        print_json(record)
    else:
        _show_export(record)


@reported
@takes_settings
def latency(
    target: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A run's directory, or a network's name.")],
    config: TimingConfig,
    weights: WeightsOption = None,
    input_shape: InputOption = None,
    finetuned: FinetunedOption = True,
    as_json: JsonFlag = False,
) -> None:
    """Time a network on a runtime, or the dense and the slim network of a run in alternation."""
    from amc.cli.jobs.latency import run_latency as job

    record = job(target, config=config, weights=weights, input_shape=input_shape, finetuned=finetuned)
    if as_json:
        print_json(record)
    else:
        _show_latency(record)


def _show_export(record: Mapping[str, Any]) -> None:
    from amc.report.tables import format_bytes

    sizes = " + ".join(f"{name} {format_bytes(count)}" for name, count in record["files"].items())
    weights = record["weight_bytes"]
    batch = f"of {record['input_shapes'][0][0]}"
    if record["dynamic_batch"]:
        batch = f"of up to {record['max_batch']}" if record["max_batch"] else "of any size"
    shapes = ", ".join("x".join(map(str, shape[1:])) for shape in record["input_shapes"])
    errors = ", ".join(f"{kind} {error:.0e}" for kind, error in record["errors"].items())
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("written", record["path"])
    if "part" in record:
        table.add_row("part", f"{record['part']} alone: the rest of the network is not in the file")
    table.add_row("format", f"{record['format']}, {'float16' if record['half'] else 'float32'} weights")
    table.add_row("inputs", f"{shapes} in batches {batch}")
    table.add_row("size", sizes)
    table.add_row(
        "weights", f"{format_bytes(weights['dense'])} dense, {format_bytes(weights['slim'])} slim, in PyTorch"
    )
    table.add_row("checked", f"{record['checked_with']}: largest error {errors} (limit {record['tolerance']:.0e})")
    out.print(table)
    if not record.get("sparse_kernels", {}).get("used", True):
        _note(f"on Arm this file is smaller but no faster: {record['sparse_kernels']['reason']}")
    if record["real_images_missing"]:
        _note(f"not checked on real images: {record['real_images_missing']}")


def _show_latency(record: Mapping[str, Any]) -> None:
    from amc.report.tables import format_bytes, format_count

    machine = record["machine"]
    shape = "x".join(map(str, record["input"]))
    threads = f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}"
    out.print(
        f"{record['runtime']} {record['runtime_version']}, {threads}, batch {record['batch']} of {shape}, "
        f"{record['precision']}", markup=False, soft_wrap=True,
    )  # fmt: skip
    if "part" in record:
        out.print(f"part {record['part']} alone: the rest of the network is not timed", markup=False)
    out.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "MACs", "params", "file", "latency", "spread"):
        table.add_column(title, justify="right" if title else "left", no_wrap=bool(title), overflow="fold")
    for name, row in record["networks"].items():
        table.add_row(
            name, format_count(row["macs"]), format_count(row["params"]), format_bytes(row["file_bytes"] or None),
            _milliseconds(row["latency_ms"]), f"{row['spread']:.1%}",
        )  # fmt: skip
    out.print(table)
    first = next(iter(record["networks"]))
    for name, row in record["networks"].items():
        if "ratio" in row:
            out.print(f"{name} takes {_beside(row, first, record['steady'])}", markup=False, soft_wrap=True)
    if not record["steady"]:
        claimed = record["settings"]["precision"]
        _note(
            f"too noisy for the claimed precision of {claimed:.0%}, even after {record['seconds']:.0f} seconds: "
            "close other programs, or allow more with --max-seconds or --precision"
        )
    if record["busy"]:
        _note(
            f"other processes were running (load {machine['load']:.1f} on {machine['cores']} cores): latencies may be "
            "too high; ratios are taken in alternation"
        )


def _beside(row: Mapping[str, Any], first: str, steady: bool) -> str:
    """A network's time compared with the first one's; "faster" only if noise does not explain the difference."""
    share = f"{row['ratio']:.1%} ± {row['uncertainty']:.1%} of the time of {first}"
    if row["verdict"] == "undecided":
        return f"{share}: the difference may be noise"
    if not steady:
        return f"{share}: {row['verdict']}, but the noise hides by how much"
    factor = 1 / row["ratio"] if row["ratio"] < 1 else row["ratio"]
    return f"{share}: {factor:.2f}x {row['verdict']}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def _note(text: str) -> None:
    err.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
