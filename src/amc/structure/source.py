"""Finds the user's line: the innermost frame that belongs neither to torch, nor to Python, nor to AMC.

A file belongs to a library if it is inside the directory of the installed package. Names of other directories do not
count: a user's project may be called `torch` or `amc`.
"""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch.fx import Node

_OURS = str(Path(__file__).resolve().parent.parent)
_TORCH = tuple(os.path.realpath(folder) for folder in torch.__path__)
_PYTHON = os.path.realpath(sysconfig.get_paths()["stdlib"])
_PACKAGES = tuple(os.path.realpath(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib"))  # often inside it
_ZOO = f"{_OURS}{os.sep}zoo"  # networks, which count as the user's


@functools.lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Whether the code of this file is the user's: of no library above, and not generated at run time."""
    if file.startswith("<"):
        return False
    path = os.path.realpath(file)
    if _within(path, (_PYTHON,)) and not _within(path, _PACKAGES):
        return False
    if _within(path, (_ZOO,)):
        return not os.path.basename(path).startswith("_")  # noqa: PTH119
    return not _within(path, (_OURS, *_TORCH))


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(folder + os.sep) for folder in folders)


def line_of_error(error: BaseException) -> str:
    """`file.py:12` of the user's innermost frame that the error passed through; else ""."""
    line, step = "", error.__traceback__
    while step is not None:
        if is_users(step.tb_frame.f_code.co_filename):
            line = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return line


def line_of_frame(frame: FrameType | None) -> str:
    """`file.py:12` of the user's innermost frame around this one; else ""."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def line_of_node(node: Node) -> str:
    """`file.py:12` of the user's line that calls the operator; "" where torch.export kept none."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    users = [f"{file}:{line}" for file, line in frames if is_users(file)]
    return users[-1] if users else ""
