"""Runs of every kind, damaged in every way a disk, a copy or an editor can: `python -m tests.mutations 2000 [SEED]`.

One file of one run is changed, and the run is then read, reported, loaded, resumed or fine-tuned further. Every attempt
must end in one line that the user can act on, or in exactly the result of the run that nothing happened to.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amc.cli.jobs.finetune import run_finetune
from amc.cli.jobs.resume import run_resume
from amc.cli.jobs.stopped import left_in
from amc.compression.load import load_run
from amc.errors import AmcError
from amc.report import render_report
from amc.run.directory import RunDir
from amc.run.settings import SessionConfig
from tests.fixtures.runs import make, small

KINDS = (
    "channel", "fine-grained", "2:4", "max-drop", "latency", "python", "tuned", "candidates", "schedule",
    "cut-channel", "cut-2-4", "cut-latency", "cut-python", "cut-tuned", "cut-candidates", "cut-schedule",
)  # fmt: skip
LIMIT = 120  # seconds for one attempt, a hundred times what it takes
NOT_A_RESULT = ("timings.jsonl", ".lock", "report.html")  # times, and what is written again


@dataclass(frozen=True)
class Verdict:
    """How one attempt ended."""

    kind: str
    file: str
    change: str
    how: str  # "refused", "same", "changed on purpose", or a fault: "crashed", "hung", "different"
    detail: str = ""

    @property
    def fault(self) -> bool:
        return self.how in ("crashed", "hung", "different", "leaked")


class Hung(BaseException):
    """An attempt took too long."""


# Changes: each gets the file and a source of random numbers.


def flip_bits(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 8))):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data) + 1)])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def twice(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def insert(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    at = draw.randrange(len(data) + 1)
    path.write_bytes(data[:at] + draw.choice((b"\xff\xfe", b"\0" * 9, b"{", b"}", b'"', b"\n", b"9" * 40)) + data[at:])


def mark(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def huge(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(300 << 20)


def pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def endless(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def elsewhere(path: Path, draw: random.Random) -> None:
    """A link to the same content outside the run, which must never be written."""
    outside = path.parent.parent / f"outside-{path.name}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def to_nothing(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


BYTES = (flip_bits, flip_bits, cut, empty, delete, twice, insert, mark, huge, pipe, folder, endless, loop)
BYTES = (*BYTES, elsewhere, to_nothing)

_RAW = {  # written as they are: no JSON library makes them
    "5,000 digits": "9" * 5000, "Infinity": "Infinity", "NaN": "NaN", "1e999": "1e999", "deep": "[" * 5000 + "]" * 5000,
    "deeper": "[" * 200_000 + "]" * 200_000, "deep object": '{"a":' * 3000 + "1" + "}" * 3000,
    "surrogate": '"\\ud800"', "19 digits": "9223372036854775808",
}  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, "x", "", -1, 0, 1, 3, 10**15, 2**62, 1e308, -1e308, 5e-324, 0.5, [], {}, [1], ["a"], {"a": 1},
    "../..", ".", "é\u202e",
)  # fmt: skip
_HOLE = "a value that is written as it is"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something can be put."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def edit_value(record: Any, draw: random.Random, leave: tuple[str, ...] = ()) -> str:
    """JSON text of the record with one place changed, but none of those to `leave`."""
    places = [place for place in _places(record) if place[0] not in leave]
    if not places:
        return "{}"
    *way, last = draw.choice(places)
    holder = record
    for key in way:
        holder = holder[key]
    action = draw.choice(("raw", "value", "value", "near", "remove", "twice", "rename"))
    if action == "remove":
        holder.pop(last)
    elif action == "near" and type(holder[last]) in (int, float):
        holder[last] = holder[last] + 1 if isinstance(holder[last], int) else holder[last] * 1.01 + 1e-3
    elif action == "rename" and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif action == "twice" and isinstance(holder, dict):
        return json.dumps(record)[:-1] + f', "{next(iter(record))}": 0}}'
    elif action == "raw":
        holder[last] = _HOLE
        return json.dumps(record).replace(json.dumps(_HOLE), draw.choice(list(_RAW.values())))
    else:
        holder[last] = draw.choice(_VALUES)
    return json.dumps(record)


def edit_json(path: Path, draw: random.Random) -> None:
    path.write_text(edit_value(json.loads(path.read_bytes()), draw))


def edit_on_purpose(path: Path, draw: random.Random) -> None:
    """As who edits a file knowingly: its digest is removed."""
    record = json.loads(path.read_bytes())
    record.pop("sha256", None)
    path.write_text(edit_value(record, draw, leave=("episodes",)))  # 10^15 episodes would be obeyed


def parent_itself(path: Path, draw: random.Random) -> None:
    record = json.loads(path.read_bytes())
    record.pop("sha256", None)
    path.write_text(json.dumps(record | {"parent": draw.choice((".", "../" + path.parent.name, "./."))}))


def edit_line(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines()
    index = draw.randrange(len(lines))
    lines[index] = edit_value(json.loads(lines[index]), draw).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")


def better_score(path: Path, draw: random.Random) -> None:
    """What a cheat would do: a score and reward that win."""
    lines = path.read_bytes().splitlines()
    index = draw.randrange(1, len(lines)) if len(lines) > 1 else 0
    record = json.loads(lines[index])
    for name in ("score", "reward"):
        if isinstance(record.get(name), float):
            record[name] = 0.9999 if name == "score" else -0.0001
    lines[index] = json.dumps(record).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")


def rearrange(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    index = draw.randrange(len(lines))
    action = draw.choice(("drop", "double", "swap", "tail"))
    if action == "drop":
        del lines[index]
    elif action == "double":
        lines.insert(index, lines[index])
    elif action == "swap":
        other = draw.randrange(len(lines))
        lines[index], lines[other] = lines[other], lines[index]
    else:
        del lines[index:]
    path.write_bytes(b"".join(lines))


ON_PURPOSE = (edit_on_purpose, parent_itself)
CHANGES: Mapping[str, tuple[Callable[[Path, random.Random], None], ...]] = {
    ".json": (edit_json,) * 8 + (edit_on_purpose,) * 6 + (parent_itself,),
    ".jsonl": (edit_line,) * 8 + (rearrange,) * 4 + (better_score,) * 3,
}


def attempt(kind: str, run: Path) -> dict[str, Any]:
    """Everything a user does next with such a run, and what comes out of it."""
    watch = make.Watch()
    inner = run
    if kind.endswith("python"):
        if kind.startswith("cut"):
            make.from_python(run, resume=True)
        render_report(run)
        slim = load_run(run, small.network(), torch.zeros(1, *small.SHAPE))
    else:
        if kind in ("cut-tuned", "cut-candidates"):
            run_finetune(run, session=SessionConfig(checkpoint_every=2), progress=watch)
        else:
            run_resume(run, progress=watch)
        render_report(run)
        slim = load_run(run)
    left_in(run)
    if (run / "round-2").is_dir():
        inner = run / "round-2"
    return {
        "summary": _figures(RunDir.open(run).read_json("summary.json")),
        "inner": _figures(RunDir.open(inner).read_json("summary.json")),
        "weights": _digest(slim),
        "policy": RunDir.open(inner).read_json("policy.json"),
    }


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says but for times and the place where it was written."""
    left_out = ("seconds", "environment", "files", "latency", "warnings")
    return {name: value for name, value in summary.items() if name not in left_out}


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Mutations:
    """Whole runs of every kind in a folder, and what each comes to when nothing happens to it."""

    def __init__(self, folder: Path, kinds: Sequence[str] = KINDS) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.expected: dict[str, dict[str, Any]] = {}
        for kind in kinds:
            make.KINDS[kind.replace(":", "-")](self.runs / kind.replace(":", "-"))

    def try_one(self, number: int, seed: int = 0) -> Verdict:
        """Change number `number`; the same number and seed give the same change."""
        draw = random.Random(f"{seed}/{number}")
        kind = KINDS[number % len(KINDS)]
        whole = self.runs / kind.replace(":", "-")
        names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
        name = draw.choice(names)
        change = draw.choice((*CHANGES.get(Path(name).suffix, ()), *BYTES))
        with tempfile.TemporaryDirectory(dir=self.folder) as place, make.bench():
            run = Path(place) / "run"
            shutil.copytree(whole, run)
            with suppress(ValueError):  # an empty file, a line that is no JSON: nothing to edit
                change(run / name, draw)
            how, detail = self.outcome(kind, run, change in ON_PURPOSE or _lost_its_digest(run / name))
            outside = list(Path(place).glob("outside-*"))
            if any(path.read_bytes() != (whole / name).read_bytes() for path in outside):
                how = "leaked"
        return Verdict(kind, name, change.__name__, how, detail)

    def outcome(self, kind: str, run: Path, on_purpose: bool) -> tuple[str, str]:
        if kind not in self.expected:
            self.expected[kind] = self._whole(kind)
        try:
            with limited(LIMIT):
                found = attempt(kind, run)
        except AmcError as error:
            lines = str(error).strip().splitlines()
            return ("refused", lines[0]) if len(lines) == 1 else ("crashed", f"{len(lines)} lines: {error}")
        except Hung:
            return "hung", ""
        except BaseException:
            return "crashed", traceback.format_exc()
        if found == self.expected[kind]:
            return "same", ""
        differing = [name for name, value in found.items() if value != self.expected[kind][name]]
        return ("changed on purpose" if on_purpose else "different"), ", ".join(differing)

    def _whole(self, kind: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            run = Path(place) / "run"
            shutil.copytree(self.runs / kind.replace(":", "-"), run)
            return attempt(kind, run)


def _lost_its_digest(path: Path) -> bool:
    """Whether an edit gave the digest's key another name: then it is as removed on purpose."""
    return path.suffix == ".json" and path.is_file() and b'"sha256x"' in path.read_bytes()


def main(count: int, seed: int, first: int = 0) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["AMC_CACHE"] = f"{place}/cache"
        mutations = Mutations(Path(place))
        totals: Counter[str] = Counter()
        for number in range(first, count):
            verdict = mutations.try_one(number, seed)
            totals[verdict.how] += 1
            if number % 100 == 99:
                sys.stdout.write(f"{number + 1}: {dict(totals)}\n")
                sys.stdout.flush()
            if verdict.fault:
                sys.stdout.write(f"{number} {verdict}\n")
                sys.stdout.flush()
        sys.stdout.write(f"{count - first} changes, seed {seed}: {dict(totals)}\n")
    return sum(totals[how] for how in ("crashed", "hung", "different", "leaked"))


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), *map(int, sys.argv[2:]))))
