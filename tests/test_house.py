"""The layout of the code is what CONTRIBUTING.md says: rooms, and what each may import."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST = 420  # lines of a file
MOST_PARAMETERS = 11  # of a function, `self` included
ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "amc"
FILES = sorted(SRC.rglob("*.py"))


def table() -> dict[str, set[str]]:
    """Room -> the rooms it may import, from the table of CONTRIBUTING.md; the highest room first."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|[^|]*\|([^|]*)\|$", text, flags=re.MULTILINE)
    rooms = [room for room, _ in rows]
    return {
        room: set(rooms[place + 1 :]) if "all rooms below" in allowed else set(re.findall(r"`(\w+)`", allowed))
        for place, (room, allowed) in enumerate(rows)
    }


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules of amc that a file imports anywhere, or only those that it imports when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(tree.body) if at_import else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "amc":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "amc"}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_there_are_at_most_twelve_entries_and_each_is_in_the_table() -> None:
    entries = {path.stem for path in SRC.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(entries) <= 12
    assert entries - {"__init__"} == set(table())


def test_rooms_import_only_what_the_table_allows() -> None:
    allowed, forbidden = table(), []
    for path in FILES:
        room = room_of(module_of(path))
        for module in imports_of(path):
            other = room_of(module)
            if room and other and other != room and other not in allowed[room]:
                forbidden.append(f"{path.relative_to(SRC)} imports {module}")
    assert forbidden == []


def test_the_table_allows_only_rooms_below() -> None:
    rooms = list(table())
    assert len(rooms) == 11
    for place, (room, allowed) in enumerate(table().items()):
        assert allowed <= set(rooms[place + 1 :]), room


def test_no_two_modules_import_each_other() -> None:
    graph = {module_of(path): imports_of(path, at_import=True) & MODULES - {"amc"} for path in FILES}
    done: set[str] = set()
    while True:
        free = {module for module in graph.keys() - done if graph[module] - {module} <= done}
        if not free:
            break
        done |= free
    assert graph.keys() - done == set()


def test_the_search_sees_numbers_and_the_settings_need_nothing_heavy() -> None:
    """Torch is there for the two small networks of the DDPG agent alone."""
    knowing = {
        path.name
        for path in (SRC / "search").rglob("*.py")
        if re.search(r"^(import|from) torch", path.read_text(), re.M)
    }
    assert knowing == {"ddpg.py"}
    program = "import sys, amc.run.settings, amc.compression.settings; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("package", [module_of(path) for path in FILES if path.name == "__init__.py"])
def test_no_module_is_hidden_by_another_thing_of_its_name(package: str) -> None:
    loaded = importlib.import_module(package)
    for info in pkgutil.iter_modules(loaded.__path__):
        name = f"{package}.{info.name}"
        if info.name != "__main__":
            importlib.import_module(name)
            assert getattr(loaded, info.name) is sys.modules[name], f"{name} is hidden"


def test_no_file_is_long_and_nothing_has_many_parameters() -> None:
    long = {str(path.relative_to(SRC)) for path in FILES if len(path.read_text().splitlines()) > LONGEST}
    assert long == set()
    many = [
        f"{path.relative_to(SRC)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(node.args.args) + len(node.args.kwonlyargs) > MOST_PARAMETERS
    ]
    assert many == []


def test_only_the_command_line_prints() -> None:
    printing = [
        str(path.relative_to(SRC))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [path for path in printing if not path.startswith("cli/")] == []


@pytest.mark.parametrize(
    "document", ["CONTRIBUTING.md", "README.md", *(path.name for path in (ROOT / "docs").glob("*.md"))]
)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    folder = ROOT if (ROOT / document).exists() else ROOT / "docs"
    text = (folder / document).read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w./:-])((?:[\w.-]+/)+[\w-]+\.(?:py|md|toml))\b", text)
    places = (ROOT, SRC, SRC.parent, ROOT / "docs")
    assert [name for name in names if not any((place / name).exists() for place in places)] == []
