"""The code on pages: the fenced blocks of Markdown files, and how a test runs them.

A page is run in a directory of its own, from its first block to its last. Blocks of Python share one namespace. A block
with `title="NAME"` is a file, which is written and not run. Commands run in their order. So that this takes seconds,
`smaller` replaces the numbers of episodes and epochs, and the placeholders for a network and data. What cannot be run
here has the line `<!-- not run: REASON -->` before it.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import ROOT, amc

CODE = ("python", "bash", "")  # languages; a block of no language holds commands
_FENCE = re.compile(r'^ *```(\w*)(?: title="([^"]+)")?$')
_REASON = re.compile(r"^ *<!-- not run: (\S.*) -->$")
_FASTER = (
    (r"resnet20 --weights W(?:\.safetensors)? --data cifar10:\w+", "digits_cnn --data digits"),
    (r"MODEL --weights W --data D\b", "digits_cnn --data digits"),
    (r"\bresnet20\b", "digits_cnn"),
    (r"--max-drop 0\.5", "--max-drop 5"),  # so that few images suffice
    (r"--(episodes|points) \d+", r"--\1 4"),
    (r"--(epochs|round-epochs) \d+", r"--\1 1"),
    (r"\bepisodes=\d+", 'episodes=4, recover="none"'),
    (r'"episodes": \d+', '"episodes": 4, "recover": "none"'),
    (r'runtime="onnxruntime"\)', 'runtime="onnxruntime", rounds=3, max_seconds=0)'),
    (r"\bpoints=\d+", 'points=3, episodes=6, recover="none"'),
    (r"\bepochs=\d+", "epochs=1"),
    (r"range\(EPOCHS\)", "range(1)"),
)
_ADDED: Mapping[str, Mapping[str, str]] = {  # options of a command, if it has not got them
    "search": {"--episodes": "4", "--recover": "none", "--search-images": "100"},
    "sweep": {"--episodes": "4", "--recover": "none", "--search-images": "100"},
    "study": {
        "--episodes": "4", "--recover": "none", "--search-images": "100", "--methods": "channel", "--metrics": "macs",
        "--budgets": "50%", "--rewards": "none", "--max-drops": "none", "--runtimes": "none",
    },
    "finetune": {"--epochs": "1"},
    "latency": {"--rounds": "3", "--max-seconds": "0"},
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    page: str  # its path below the root of the repository
    line: int  # of the fence, from 1
    language: str
    title: str | None
    text: str
    reason: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page for users."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order. Fails where a fence is not closed or cannot be read."""
    found, lines = list[Block](), (ROOT / page).read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        if lines[number].lstrip().startswith("```"):
            fence = _FENCE.match(lines[number])
            assert fence, f"{page}:{number + 1}: {lines[number]}"
            end = next(place for place in range(number + 1, len(lines)) if lines[place].strip() == "```")
            reason = _REASON.match(lines[number - 1]) if number else None
            text = textwrap.dedent("\n".join(lines[number + 1 : end]) + "\n")
            found.append(Block(page, number + 1, fence[1], fence[2], text, reason[1] if reason else None))
            number = end
        number += 1
    return found


def smaller(text: str) -> str:
    """The same code with little to do."""
    for pattern, replacement in _FASTER:
        text = re.sub(pattern, replacement, text)
    return text


def run_python(block: Block, seen: dict[str, Any], folder: Path) -> None:
    """Run a block in the namespace of its page, or write the file that it is."""
    if block.title:
        (folder / block.title).write_text(smaller(block.text), encoding="utf-8")
    else:
        exec(compile(smaller(block.text), str(block), "exec"), seen)


def run_commands(block: Block, folder: Path) -> None:
    """Run the commands of a block, `amc …` and `python FILE …`, one after the other; each must end well."""
    for name, *arguments in commands_of(smaller(block.text)):
        if name == "python":
            runpy.run_path(str(folder / arguments[0]), run_name="__main__")
            continue
        assert name == "amc", f"{block}: no test runs {name}; say why not"
        done = amc(*with_added(arguments), cwd=folder)
        assert done.code == 0, f"{block}: amc {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def with_added(arguments: list[str]) -> list[str]:
    """The arguments of `amc`, with options that make its command short."""
    options = _ADDED.get(arguments[0], {})
    return [*arguments, *(word for name, value in options.items() if name not in arguments for word in (name, value))]


def cells(notebook: Path) -> list[str]:
    """The text of the code cells of a notebook, in order."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
