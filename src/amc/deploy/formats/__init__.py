"""File formats that runtimes load: one small module per format, behind one interface."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from amc.deploy.formats.base import Format
from amc.deploy.formats.executorch import ExecuTorch
from amc.deploy.formats.litert import LiteRT, SparseLiteRT
from amc.deploy.formats.ncnn import Ncnn
from amc.deploy.formats.onnx import Onnx
from amc.deploy.formats.openvino import OpenVino
from amc.deploy.formats.program import Program
from amc.errors import AmcError

_FORMATS: dict[str, Callable[[], Format]] = {
    "onnx": Onnx,
    "torch": Program,
    "executorch": ExecuTorch,
    "openvino": OpenVino,
    "litert": LiteRT,
    "ncnn": Ncnn,
}
FORMATS = tuple(_FORMATS)


def get_format(name: str, *, sparse: bool = False) -> Format:
    """The format with this name; AmcError if the name is unknown. `sparse`: do not store zeros (litert only)."""
    if sparse and name != "litert":
        raise AmcError(f"format {name} has no sparse weights; leave sparse out, or choose litert")
    if sparse:
        return SparseLiteRT()
    if name not in _FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(FORMATS)}"
        raise AmcError(f"unknown format '{name}'; {hint}")
    return _FORMATS[name]()


def format_of(path: Path) -> str:
    """The name of the format whose only file has the suffix of `path`; AmcError if there is none."""
    names = {kind.suffixes[0]: kind.name for kind in map(get_format, FORMATS) if len(kind.suffixes) == 1}
    if path.suffix not in names:
        *most, last = names
        raise AmcError(
            f"the format of '{path}' is not clear; end the name in {', '.join(most)} or {last}, or give format"
        )
    return names[path.suffix]


__all__ = ["FORMATS", "Format", "format_of", "get_format"]
