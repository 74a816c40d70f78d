"""`--log`, with a small module in the place of a service's package: it writes down what it hears."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli import listening as command
from amc.cli.listening import listening
from amc.compression import loggers
from amc.errors import AmcError
from tests.commands import Finished, amc

FAKE = """
import json

class Settings(dict):
    def __init__(self, **values): pass

class Run:
    def __init__(self, key): self.key, self.config = key, self
    def write(self, **line):
        with open({path!r}, "a") as file: file.write(json.dumps(dict(line, key=self.key)) + "\\n")
    def update(self, values, allow_val_change): self.write(config=sorted(values))
    def define_metric(self, name, step_metric): self.write(defined=name)
    def log(self, values):
        self.write(values=values)
        {fault}
    def finish(self, exit_code): self.write(finished=exit_code == 0)

def init(*, id, **settings): return Run(id)
"""
SEARCH = ("search", "digits_cnn", "--recover", "none", "--certify", "0", "--finalists", "0", "--no-test")


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    """The file that the module writes, in a working directory that holds the module."""
    (tmp_path / "wandb.py").write_text(FAKE.format(path=str(tmp_path / "heard"), fault=""))
    return tmp_path / "heard"


def lines(heard: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else []


def steps(heard: Path, series: str) -> list[int]:
    values = [line.get("values", {}) for line in lines(heard)]
    return [value[f"{series}/step"] for value in values if f"{series}/step" in value]


def search(directory: Path, *more: object, **how: Any) -> Finished:
    return amc(*SEARCH, "--out", "run", *more, cwd=directory, **how)


def test_a_killed_search_goes_on_with_its_logger_and_logs_each_episode_once(tmp_path: Path, heard: Path) -> None:
    killed = search(tmp_path, "--episodes", 40, "--log", "wandb", kill_when=lambda: len(steps(heard, SERIES)) > 2)
    assert killed.code == -9
    assert 2 < len(steps(heard, SERIES)) < 40
    done = amc("resume", "run", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert steps(heard, SERIES) in (list(range(40)), sorted([*range(40), len_of_first(heard)]))
    assert len({line["key"] for line in lines(heard)}) == 1
    assert lines(heard)[-1]["finished"] is True


SERIES = "search/planner"


def len_of_first(heard: Path) -> int:
    """The episode that was told, and not yet remembered, when the kill came; it has the same step again."""
    told = steps(heard, SERIES)
    return next((step for step in told if told.count(step) > 1), -1)


def test_a_fine_tuning_goes_on_with_the_logger_unless_it_is_told_not_to(tmp_path: Path, heard: Path) -> None:
    assert search(tmp_path, "--episodes", 2, "--log", "wandb").code == 0
    assert amc("finetune", "run", "--epochs", 1, cwd=tmp_path).code == 0
    assert steps(heard, "finetune") == [1]
    assert amc("finetune", "run", "--epochs", 1, "--log", "none", cwd=tmp_path).code == 0
    assert steps(heard, "finetune") == [1]
    assert [line["config"] for line in lines(heard) if "config" in line] == [["settings/search"], ["settings/finetune"]]


def test_the_rounds_of_a_schedule_are_one_run_of_the_service(tmp_path: Path, heard: Path) -> None:
    rounds = ("--schedule", "0.8,0.6", "--round-epochs", 1, "--episodes", 2)
    done = search(tmp_path, *rounds, "--log", "wandb")
    assert done.code == 0, done.stderr
    for part in ("round-1", "round-2"):
        assert steps(heard, f"{part}/search/planner") == [0, 1]
        assert steps(heard, f"{part}/finetune") == [1]
    assert [line["finished"] for line in lines(heard) if "finished" in line] == [True]


def test_a_logger_that_fails_is_said_once_and_the_search_has_its_result(tmp_path: Path, heard: Path) -> None:
    fault = "if values.get('search/planner/step') == 1: raise OSError('unreachable')"
    (tmp_path / "wandb.py").write_text(FAKE.format(path=str(heard), fault=fault))
    done = search(tmp_path, "--episodes", 4, "--log", "wandb")
    assert done.code == 0
    failures = [line for line in done.stderr.splitlines() if "logger wandb" in line]
    assert failures == ["  warning: logger wandb is left out from here on, it failed: OSError: unreachable"]
    assert steps(heard, SERIES) == [0, 1]


def test_a_wrong_name_is_refused_before_any_work(tmp_path: Path) -> None:
    done = search(tmp_path, "--log", "wandbb")
    assert done.complaint == "unknown logger 'wandbb'; did you mean 'wandb'?"
    assert not (tmp_path / "run").exists()


def test_a_resumed_job_whose_logger_is_not_installed_here_may_go_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logged-mlflow.jsonl").touch()
    monkeypatch.setattr(loggers, "_installed", lambda name: False)
    expected = r"run: pip install 'amc-compress\[mlflow\]'; or go on without it: --log none$"
    with pytest.raises(AmcError, match=expected), listening(tmp_path):
        pass
    with listening(tmp_path, ["none"]) as progress:
        assert progress.stops("planner", None) is None  # type: ignore[arg-type]


def test_a_job_that_fails_early_leaves_the_terminal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(command, "err", Console(file=screen, force_terminal=True, width=80))

    def job() -> None:
        with listening(tmp_path) as progress:
            progress.stage("network and data")
            assert "\x1b[?25l" in screen.getvalue()  # the cursor is hidden
            raise AmcError("no such weights")

    with pytest.raises(AmcError, match="no such weights"):
        job()
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")  # and shown again
