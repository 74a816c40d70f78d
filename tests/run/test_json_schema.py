"""The JSON Schema files of docs/schema/ hold for real runs, and agree with the rules by which AMC reads them."""

from __future__ import annotations

import copy
import functools
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from amc.run.records import DamagedError
from amc.run.schema import LINES, OBJECTS, check_of_lines
from docs.site.schemas import written
from tests.fixtures.runs import make

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "schema"
ARCHIVES = sorted((ROOT / "tests" / "fixtures" / "runs").glob("*.tar.xz"))
SEALS = {"sha256", "sum"}  # digests, which no rule of a field describes


@functools.cache
def validator(file: str) -> jsonschema.Draft202012Validator:
    """The validator for a record of this file of a run."""
    name = "journal" if file.startswith("journal") else file.partition(".")[0]
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def records_of(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of every JSON file below `run`, with the name of its file."""
    for path in sorted(run.rglob("*.json*")):
        if path.name in OBJECTS:
            yield path.name, json.loads(path.read_text(encoding="utf-8"))
        elif path.name in LINES or path.name.startswith("journal"):
            for line in path.read_text(encoding="utf-8").splitlines():
                yield path.name, json.loads(line)


def test_the_files_are_those_of_this_version() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert kept == written(), "run: python docs/site/schemas.py"


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of this version: a search with fine-tuned candidates, and a sweep."""
    folder = tmp_path_factory.mktemp("new")
    with make.bench():
        make.search(folder / "search", method="fine-grained")
        make.finetune(folder / "search", candidates=2)
        make.sweep(folder / "sweep")
    return folder


@pytest.fixture(scope="module", params=["new", *ARCHIVES], ids=lambda value: getattr(value, "name", value))
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "new":
        return request.getfixturevalue("new")  # type: ignore[no-any-return]
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(request.param) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_every_record_of_a_real_run_holds(runs: Path) -> None:
    seen = set()
    for file, record in records_of(runs):
        errors = [error.message for error in validator(file).iter_errors(record)]
        assert errors == [], (file, record)
        seen.add("journal.jsonl" if file.startswith("journal") else file)
    assert seen >= {"config.json", "summary.json", "policy.json", "journal.jsonl", "timings.jsonl", "finetune.jsonl"}


def test_every_field_of_a_new_run_is_described(new: Path) -> None:
    unknown = set()
    for file, record in records_of(new):
        schema = validator(file).schema
        described = schema if "properties" in schema else schema["then" if "episode" in record else "else"]
        unknown |= {f"{file}: {name}" for name in record.keys() - described["properties"].keys() - SEALS}
    assert unknown == set()


# No 2.0: to JSON Schema it is a whole number, as 2 is.
OTHER = (None, True, "text", -1, 0, 1, 2.5, [], [1], [-1], ["a"], [None], {}, {"a": 1}, {"a": "b"}, {"a": []})


def changed(record: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The record with one field, at any depth, removed or replaced by something else."""
    record = copy.deepcopy(record)
    place: Any = record
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.4:
            break
        place = place[key]
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = draw.choice(OTHER)
    return record


def test_schema_and_reader_refuse_the_same(runs: Path) -> None:
    draw, verdicts = random.Random(0), {True: 0, False: 0}
    for file, record in records_of(runs):
        schema, check = validator(file), OBJECTS.get(file) or check_of_lines(file)
        for _ in range(4):
            broken = changed(record, draw)
            try:
                check(broken, "")
                accepted = True
            except DamagedError:
                accepted = False
            assert schema.is_valid(broken) == accepted, (file, broken)
            verdicts[accepted] += 1
    assert min(verdicts.values()) > 100


def test_a_program_sees_what_is_wrong() -> None:
    errors = validator("journal.jsonl").iter_errors({"episode": 3, "keep": [4, 0], "cost": {"macs": "many"}})
    assert {(error.json_path, error.validator) for error in errors} == {
        ("$.keep[1]", "minimum"), ("$.cost.macs", "type"),
    }  # fmt: skip
