"""What the reference shows beyond docstrings: parameters as lists, examples as code, and what stands beside a field.

A docstring explains its parameters line by line, as `name: text`, and ends with an example. Markdown would join the lines
and quote the example. A field of a dataclass is explained by the help of its option or by the comment behind it. griffe
reads neither.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

_PARAMETER = re.compile(r"^(\w+(?:, \w+)*)( \(in settings\))?: ")


class Explanations(Extension):
    """Writes docstrings as Markdown, and gives fields the text that stands beside them."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Write the docstring of a function or class as Markdown."""
        if obj.docstring is not None and not obj.is_attribute:
            obj.docstring.value = with_code(with_list(obj.docstring.value))

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Explain a field by the help of its option, or by the comment behind it."""
        call = getattr(node, "value", None)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "option":
            attr.value = ast.unparse(call.args[0])
            said = next(ast.literal_eval(word.value) for word in call.keywords if word.arg == "help")
        else:
            said = comment_of(attr)
        if said and attr.docstring is None:
            attr.docstring = Docstring(said[0].upper() + said[1:] + "." * (said[-1] not in ".?"), parent=attr)


def with_list(text: str) -> str:
    """The docstring with `name: text` as the items of a list."""
    lines: list[str] = []
    listed = False
    for line in text.splitlines():
        found = _PARAMETER.match(line)
        if found and not listed and lines and lines[-1]:
            lines.append("")
        elif listed and line and not found and not line.startswith(" "):
            lines.append("")
        listed = bool(found) or (listed and line.startswith(" "))
        lines.append(f"- **{found[1]}**{found[2] or ''}: {line[found.end() :]}" if found else line)
    return "\n".join(lines)


def with_code(text: str) -> str:
    """The docstring with its examples, which end at an empty line, as blocks of code."""
    return re.sub(r"^>>> .+(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)


def comment_of(attr: Attribute) -> str:
    """The comment at the end of the line on which a field begins; "" if there is none."""
    if attr.lineno is None or not isinstance(attr.filepath, Path):
        return ""
    line = attr.filepath.read_text(encoding="utf-8").splitlines()[attr.lineno - 1]
    return line.partition("  # ")[2].strip()
