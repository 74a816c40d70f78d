"""The search beside its baselines: a difference that noise explains is nobody's lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amc.report.comparison import score_comparisons
from amc.report.page import render_run
from amc.report.record import load_record
from tests.report.runs import episode, make_run, write_journal


def compared(path: Path, *, lead: float, error: float | None, **more: Any) -> Any:
    """The comparison of a search with a uniform policy that scores `lead` less, both with this standard error."""
    run = make_run(path, finetuned=False)
    run.file("journal-random.jsonl").unlink()
    for name, score, keep in (("journal.jsonl", 0.75, 3), ("journal-uniform.jsonl", 0.75 - lead, 5)):
        line = episode(0, score)
        line["keep"][0] = keep
        write_journal(run.file(name), [line if error is None else line | {"standard_error": error}])
    summary = {key: value for key, value in run.read_json("summary.json").items() if key != "baselines"}
    run.write_json("summary.json", {**summary, "files": {}})
    render_run(run)
    (found,) = score_comparisons(load_record(run), percent=True)
    return found, run.file("report.html").read_text()


@pytest.mark.parametrize(("lead", "sign"), [(0.005, "+"), (-0.005, "−")])
def test_two_images_of_400_are_no_lead(lead: float, sign: str, tmp_path: Path) -> None:
    found, page = compared(tmp_path / "run", lead=lead, error=0.01)
    assert (found.noise, found.ahead) == (True, None)
    assert found.difference == f"{sign}0.50 ± 1.41 points"  # the errors of both, as if independent
    assert 'class="points soft"' in page
    assert "within its standard error" in page
    assert "did not beat every baseline" not in page


@pytest.mark.parametrize(("lead", "ahead"), [(0.05, True), (-0.05, False)])
def test_a_difference_beyond_its_error_is_a_lead(lead: float, ahead: bool, tmp_path: Path) -> None:
    found, page = compared(tmp_path / "run", lead=lead, error=0.01)
    assert (found.noise, found.ahead) == (False, ahead)
    assert ("did not beat every baseline" in page) is not ahead
    assert "Grey:" not in page


def test_without_errors_nothing_is_claimed_of_them(tmp_path: Path) -> None:
    found, _ = compared(tmp_path / "run", lead=0.005, error=None)
    assert (found.difference, found.noise, found.ahead) == ("+0.50 points", False, True)
