"""`amc export`: the slim network of a run as a file that a runtime loads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.cli.jobs.kept import keep
from amc.cli.jobs.origin import data_of, deployed, network_of, source_of
from amc.compression.load import load_run
from amc.deploy.export import export
from amc.deploy.formats import get_format
from amc.deploy.formats.sparse_kernels import sparse_kernels
from amc.errors import AmcError
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings import Source
from amc.structure.part import Part
from amc.structure.trace import Example

REAL_IMAGES = 8  # of the calibration split, on which a file is compared with the network


def run_export(
    run_path: Path,
    *,
    format: str = "onnx",
    out: Path | None = None,
    half: bool = False,
    dynamic: bool | None = None,
    sparse: bool = False,
    finetuned: bool = True,
) -> dict[str, Any]:
    """Write the network of a run to `out`, or into the run: with `finetuned` the fine-tuned one, if any.

    The run keeps the record in its export.json, for its report. It is that of `amc.Export`, and run, finetuned,
    weight_bytes (of all tensors of the dense and of the slim network in PyTorch) and real_images (the number of images
    of the check; 0 with the reason in `real_images_missing`). With `sparse`, `sparse_kernels` says whether XNNPACK runs
    the file with sparse kernels on Arm. Of a network of which a part was pruned alone, the file has that part: `part`.
    """
    chosen = get_format(format, sparse=sparse)
    run = RunDir.open(run_path)
    source = source_of(run, "write result.model with amc.export")
    whole = load_run(run_path, finetuned=finetuned)
    example = torch.zeros(1, *(source.input_shape or data_of(source).input_shape))
    slim, example_of_slim, part = deployed(run, whole, example)
    images, why_none = _real_images(source)
    real = images if images is None else _inputs_of(whole, images, example, part)
    record = export(
        slim,
        example_of_slim,
        out or run.file(default_name(chosen.name, chosen.suffixes, half=half, sparse=sparse)),
        format=format,
        half=half,
        dynamic=dynamic,
        sparse=sparse,
        real=real,
    ).to_json()
    if sparse:
        record["sparse_kernels"] = asdict(sparse_kernels(Path(record["path"]).read_bytes()))
    record |= {
        "run": str(run_path),
        "finetuned": finetuned and run.has(files.MODEL_FINETUNED),
        "weight_bytes": {"dense": weight_bytes(network_of(source, run_path)), "slim": weight_bytes(whole)},
        "real_images": 0 if images is None else len(images),
        "real_images_missing": why_none,
    }
    if part is not None:
        record["part"] = part
    keep(run, files.EXPORT, str(Path(record["path"]).resolve()), record, finetuned=finetuned)
    return record


def default_name(format: str, suffixes: tuple[str, ...], *, half: bool, sparse: bool = False) -> str:
    """`model.onnx`, `model-fp16.onnx`, `model-sparse.tflite`, `model-ncnn` (a directory)."""
    stem = "model" + "-sparse" * sparse + "-fp16" * half
    return f"{stem}{suffixes[0]}" if len(suffixes) == 1 else f"{stem}-{format}"


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(value.nbytes for value in model.state_dict().values())


def _inputs_of(whole: nn.Module, images: Tensor, example: Tensor, part: str | None) -> Any:
    """What the network is called with for these images, or its part."""
    if part is None:
        return images
    calls = next(Part.of(whole, example, part).inputs([Example.of(images)]))
    return calls[0] if calls else None


def _real_images(source: Source) -> tuple[Tensor | None, str | None]:
    """Some images of the run's data, or the reason why not: the data may be on another machine."""
    try:
        images, _ = next(iter(data_of(source).contiguous().calibration.batches(REAL_IMAGES)))
    except AmcError as error:
        return None, str(error)
    return images.contiguous(), None
