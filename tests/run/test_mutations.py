"""A few hundred of the changes of `tests.mutations`, always the same ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amc.run.records import sealed
from tests.mutations import KINDS, Mutations, Verdict

EACH = 25  # of every kind, hence 400 in all


@pytest.fixture(scope="module")
def mutations(tmp_path_factory: pytest.TempPathFactory) -> Mutations:
    return Mutations(tmp_path_factory.mktemp("mutations"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_change_of_a_file_crashes_hangs_or_becomes_the_result(mutations: Mutations, kind: str) -> None:
    first = KINDS.index(kind)
    verdicts = [mutations.try_one(first + len(KINDS) * index) for index in range(EACH)]
    assert [verdict for verdict in verdicts if verdict.fault] == []
    assert {verdict.kind for verdict in verdicts} == {kind}
    assert any(verdict.how == "refused" for verdict in verdicts)


def test_what_counts_as_a_fault() -> None:
    faults = {how for how in ("refused", "same", "changed on purpose", "crashed", "hung", "different", "leaked")
              if Verdict("channel", "config.json", "cut", how).fault}  # fmt: skip
    assert faults == {"crashed", "hung", "different", "leaked"}


def test_a_result_that_is_another_is_noticed(tmp_path: Path) -> None:
    """The check itself: a summary whose score and digest are both forged."""
    found = Mutations(tmp_path, ["channel"])
    path = found.runs / "channel" / "summary.json"
    assert found.outcome("channel", path.parent, on_purpose=False) == ("same", "")
    record = json.loads(path.read_text())
    record["slim"]["score"] = 0.9999
    path.write_text(json.dumps(sealed(record)))
    assert found.outcome("channel", path.parent, on_purpose=False) == ("different", "summary, inner")
