"""ncnn's `.param` and `.bin`, written by its converter pnnx."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc.deploy.extras import require
from amc.deploy.failures import ConversionError, explained, unsupported
from amc.deploy.formats.base import Flat
from amc.deploy.quiet import silenced
from amc.deploy.tensors import Tensors
from amc.structure.trace import inference

_TYPES = {torch.float32: "f32", torch.int32: "i32", torch.int64: "i64"}
_SECONDS = 600  # time limit of pnnx, which usually takes one second; a hung converter must not hang the command


class Ncnn:
    """`.param` (the graph, as text) and `.bin` (the weights). Tensors in ncnn have no batch dimension."""

    name = "ncnn"
    suffixes: tuple[str, ...] = (".param", ".bin")
    runtime = "ncnn"
    max_batch: int | None = 0
    batch_one = True
    half = True

    def write(self, module: nn.Module, inputs: Tensors, paths: Sequence[Path], *, dynamic: bool, half: bool) -> None:
        """See `Format`."""
        pnnx = require("pnnx", "ncnn")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with explained(self.name, module, inputs), inference(module), silenced(), _Subsampling():
                traced = torch.jit.trace(Flat(module).eval(), inputs, check_trace=False)  # type: ignore[no-untyped-call]
                traced.save(str(folder / "model.pt"))
            output = _convert(pnnx.EXEC_PATH, folder, inputs, half)
            converted = [folder / "model.ncnn.param", folder / "model.ncnn.bin"]
            if not all(path.is_file() for path in converted):
                lines = [line for line in output.splitlines() if line.strip()] or ["it prints nothing"]
                raise ConversionError(f"{type(module).__name__} cannot be written as ncnn: pnnx fails: {lines[-1]}")
            for layer in _layers(converted[0]):
                if "." in layer or "::" in layer:  # ncnn's own layers have plain names
                    raise unsupported(self.name, module, inputs, _operator(layer))
            for source, target in zip(converted, paths, strict=True):
                target.write_bytes(source.read_bytes())


class _Subsampling(TorchFunctionMode):
    """Replaces the slicing of every s-th row and column, which ncnn lacks, by a 1x1 max-pooling of stride s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and (strides := _strides(*args)):
            return F.max_pool2d(args[0], 1, strides)
        return func(*args, **(kwargs or {}))


def _strides(tensor: Tensor, index: Any) -> tuple[int, int] | None:
    """`x[:, :, ::2, ::2]` -> (2, 2); None for any other index."""
    everything = slice(None)
    if not isinstance(index, tuple) or tensor.dim() != 4:
        return None
    if any(part is Ellipsis for part in index):
        at = [part is Ellipsis for part in index].index(True)
        index = (*index[:at], *[everything] * (5 - len(index)), *index[at + 1 :])
    if len(index) != 4 or not all(isinstance(part, slice) for part in index):
        return None
    whole = all(part.start in (None, 0) and part.stop is None for part in index)
    steps = [part.step or 1 for part in index]
    if not whole or steps[:2] != [1, 1] or steps[2:] == [1, 1]:
        return None
    return steps[2], steps[3]


def _convert(program: str, folder: Path, inputs: Tensors, half: bool) -> str:
    """Run pnnx on model.pt in `folder`, and return its output."""
    odd = [str(value.dtype) for value in inputs if value.dtype not in _TYPES]
    if odd:
        raise ConversionError(f"ncnn has no inputs of type {odd[0]}; give the network float32 images")
    shapes = ",".join(f"[{','.join(map(str, value.shape))}]{_TYPES[value.dtype]}" for value in inputs)
    command = [program, "model.pt", f"inputshape={shapes}", f"fp16={int(half)}"]
    try:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"pnnx does not finish within {_SECONDS} seconds on this network") from error
    return done.stdout.decode(errors="replace")


def _layers(param: Path) -> list[str]:
    """Types of a `.param` file's layers; the first two lines are a magic number and counts."""
    return [line.split()[0] for line in param.read_text().splitlines()[2:] if line.split()]


def _operator(layer: str) -> str:
    """`Tensor.slice`, `torch.roll`, `F.grid_sample`, `aten::foo` -> aten.slice …."""
    return f"aten.{layer.replace('::', '.').rpartition('.')[2]}"
