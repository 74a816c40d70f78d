"""What a logger tells its service, and when: each episode once, also after a kill; nothing after a failure."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import amc
from amc.compression import loggers
from amc.compression.loggers import check_loggers, logged_in
from amc.compression.loggers.base import Logger
from amc.errors import AmcError
from amc.recovery import EpochRecord
from amc.run.directory import RunDir
from amc.run.settings.scores import get_score
from amc.search import EpisodeRecord, EpisodeTiming
from tests.tiny import EXAMPLE, compress, images, labelled, tiny


class Remembering:
    """A service that remembers its points by series and step, over all sessions."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, dict[str, float]]] = []
        self.kept: dict[str, Mapping[str, Any]] = {}
        self.opened: list[str | None] = []
        self.closed: list[bool] = []
        self.broken = ""

    def open(self, directory: Path, key: str | None) -> Remembering:
        self.opened.append(key)
        self.key = key or "run-1"
        return self

    def settings(self, name: str, values: Mapping[str, Any]) -> None:
        self.kept[name] = values

    def metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        if series == self.broken:
            raise ConnectionError("no\nroute")
        self.points.append((series, step, dict(values)))

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)

    def steps(self, series: str) -> list[int]:
        return [step for name, step, _ in self.points if name == series]


@pytest.fixture
def service() -> Remembering:
    return Remembering()


def logger_to(service: Remembering, directory: Path, warnings: list[str] | None = None) -> Logger:
    said = [] if warnings is None else warnings
    return Logger("mlflow", service.open, directory, said.append)


NEW, REPLAYED = EpisodeTiming(0.0, 0.1, replayed=False), EpisodeTiming(0.0, 0.0, replayed=True)


def record(number: int, score: float | None, reward: float | None = None) -> EpisodeRecord:
    reward = score if reward is None else reward
    return EpisodeRecord(number, (4,), {"macs": 500.0}, score, reward, None if score is not None else "no score")


def test_a_search_is_logged_with_its_settings_its_scores_and_its_result(tmp_path: Path, service: Remembering) -> None:
    result = compress(tiny(), episodes=4, run_dir=tmp_path / "run", observer=logger_to(service, tmp_path / "run"))
    assert service.kept["settings/search"]["episodes"] == 4
    assert service.points[0] == ("dense", 0, {"score": result.summary["dense"]["score"]})
    assert service.steps("search/uniform") == [0]
    searched = [values for name, _, values in service.points if name == "search/planner"]
    best = 0.0
    for episode, values in zip(result.search.episodes, searched, strict=True):
        assert episode.score is not None
        best = max(best, episode.score)
        assert values == {"score": episode.score, "reward": episode.reward, "best": best, **episode.cost}
    name, step, figures = service.points[-1]
    assert (name, step) == ("result", 0)
    assert figures["slim/macs"] == result.summary["slim"]["macs"]
    assert figures["dense/score"] == result.summary["dense"]["score"]
    assert service.closed == [True]


@pytest.mark.parametrize("lost", [False, True])
def test_a_killed_search_logs_every_episode_once(tmp_path: Path, service: Remembering, lost: bool) -> None:
    """`lost`: the kill came after the journal's line and before the log's."""

    class Killed(amc.Observer):
        def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
            if agent == "planner" and record.episode == 2:
                raise KeyboardInterrupt

    run = tmp_path / "run"
    logger, kill = logger_to(service, run), Killed()
    both = loggers.Together(kill, logger) if lost else loggers.Together(logger, kill)
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), episodes=5, run_dir=run, observer=both)
    assert service.steps("search/planner") == [0, 1] + [2] * (not lost)
    compress(tiny(), episodes=5, run_dir=run, observer=logger_to(service, run), resume=True)
    assert service.steps("search/planner") == [0, 1, 2, 3, 4]
    assert (service.steps("search/uniform"), service.steps("dense")) == ([0], [0])
    assert service.opened == [None, "run-1"]
    assert service.closed == [False, True]
    assert logged_in(run) == ("mlflow",)


def test_a_search_that_began_without_a_log_is_logged_from_its_first_episode(
    tmp_path: Path, service: Remembering
) -> None:
    class Killed(amc.Observer):
        def episode(self, agent: str, record: EpisodeRecord, timing: EpisodeTiming) -> None:
            if agent == "planner" and record.episode == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), episodes=3, run_dir=tmp_path / "run", observer=Killed())
    compress(tiny(), episodes=3, run_dir=tmp_path / "run", observer=logger_to(service, tmp_path / "run"), resume=True)
    assert service.steps("search/planner") == [0, 1, 2]


def test_a_service_that_fails_in_the_middle_is_said_once_and_the_search_goes_on(
    tmp_path: Path, service: Remembering
) -> None:
    service.broken, warnings = "search/planner", list[str]()
    result = compress(tiny(), episodes=4, observer=logger_to(service, tmp_path, warnings))
    assert len(result.search.episodes) == 4
    assert warnings == ["logger mlflow is left out from here on, it failed: ConnectionError: no"]
    assert service.steps("search/uniform") == [0]
    assert service.closed == []


def test_a_service_that_does_not_open_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refused(directory: Path, key: str | None) -> Remembering:
        raise RuntimeError("no account")

    warnings: list[str] = []
    logger = Logger("wandb", refused, tmp_path, warnings.append)
    for number in range(3):
        logger.episode("planner", record(number, 0.5), NEW)
    logger.close()
    assert warnings == ["logger wandb is left out from here on, it failed: RuntimeError: no account"]


def test_an_interrupt_inside_a_service_is_not_swallowed(tmp_path: Path, service: Remembering) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    logger = logger_to(service, tmp_path)
    service.metrics = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        logger.episode("planner", record(0, 0.5), NEW)


def test_the_best_follows_the_reward_and_a_failed_episode_has_costs_only(tmp_path: Path, service: Remembering) -> None:
    logger = logger_to(service, tmp_path)
    for number, (score, reward) in enumerate([(None, None), (0.9, 0.1), (0.5, 0.3), (0.8, 0.2)]):
        logger.episode("planner", record(number, score, reward), NEW)
    assert [values.get("best") for _, _, values in service.points] == [None, 0.9, 0.5, 0.5]
    assert service.points[0] == ("search/planner", 0, {"macs": 500.0})


def test_an_error_is_logged_as_the_metric_has_it(tmp_path: Path, service: Remembering) -> None:
    logger, kind = logger_to(service, tmp_path), get_score("mse")
    logger.episode("planner", record(0, kind.named(-0.25), -0.25), NEW)
    logger.epoch(EpochRecord(1, 2.0, 0.1, 3.0), kind.named(-0.2))
    assert service.points[0][2] == {"score": 0.25, "reward": -0.25, "best": 0.25, "macs": 500.0}
    assert service.points[1] == ("finetune", 1, {"loss": 2.0, "lr": 0.1, "score": 0.2})


def test_names_have_no_letters_that_a_service_refuses_and_values_are_finite(
    tmp_path: Path, service: Remembering
) -> None:
    logger = logger_to(service, tmp_path)
    logger.job_part("point-3")
    logger.episode("<lambda>", EpisodeRecord(0, (4,), {"a:b": 1.0, "c": float("inf")}, 0.5, 0.5), NEW)
    assert service.points == [("point-3/search/_lambda_", 0, {"score": 0.5, "reward": 0.5, "best": 0.5, "a_b": 1.0})]


def test_the_points_of_a_sweep_have_series_of_their_own(tmp_path: Path, service: Remembering) -> None:
    model, run = tiny(), tmp_path / "run"
    amc.sweep(
        model, EXAMPLE, calibration=[images(32, 1)], evaluate=labelled(model, 96, 5), start="80%", end="40%", points=2,
        episodes=4, round_to=1, keep_sets=0, recover="none", run_dir=run, observer=logger_to(service, run),
    )  # fmt: skip
    counts = {f"point-{n}": len(RunDir.open(run / f"point-{n}").read_jsonl("journal.jsonl")) - 1 for n in (1, 2)}
    assert {f"point-{n}": len(service.steps(f"point-{n}/search/planner")) for n in (1, 2)} == counts
    assert (service.steps("point-1/result"), service.steps("point-2/result")) == ([0], [0])
    assert service.closed == [True]


def test_nothing_is_written_before_the_first_episode(tmp_path: Path, service: Remembering) -> None:
    """The directory of a search that fails before it is empty again, and can be used."""

    def evaluate(_: Any) -> float:
        raise RuntimeError("broken")

    run = tmp_path / "run"
    with pytest.raises(amc.EvaluationError):
        compress(tiny(), evaluate=evaluate, run_dir=run, observer=logger_to(service, run))
    assert not run.exists()
    assert service.opened == []


def test_a_fine_tuning_is_logged_in_python(tmp_path: Path, service: Remembering) -> None:
    model = tiny()
    tuned = amc.finetune(model, labelled(model, 64, 2), epochs=2, lr=0.01, observer=logger_to(service, tmp_path))
    assert [(step, values["loss"]) for name, step, values in service.points if name == "finetune"] == [
        (epoch.epoch, epoch.loss) for epoch in tuned.epochs
    ]
    assert service.kept["settings/finetune"]["epochs"] == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("MLflow", "did you mean 'mlflow'?"),
        ("comet", "choose from tensorboard, mlflow, wandb"),
    ],
)
def test_an_unknown_logger_is_refused_with_the_nearest_name(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(AmcError, match=f"^{re.escape(f'unknown logger {name!r}; {hint}')}$"):
        amc.logger(name, directory=tmp_path)


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wandb").mkdir()  # as the service makes it: no package
    monkeypatch.setattr(sys, "path", [""])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    expected = "logger wandb needs the package wandb, which is not installed; run: pip install 'amc-compress[wandb]'"
    with pytest.raises(AmcError, match=f"^{re.escape(expected)}$"):
        check_loggers(["wandb"])


def test_no_service_is_imported_before_there_is_something_to_log() -> None:
    program = (
        "import sys; from amc.compression import loggers\n"
        "loggers._installed = lambda name: True\n"
        "loggers.logger('tensorboard', 'mlflow', 'wandb', directory='x').dense(0.5)\n"
        "print({'tensorboard', 'torch.utils.tensorboard', 'mlflow', 'wandb'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_a_failure_in_python_goes_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loggers, "_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import that fails
    with caplog.at_level(logging.WARNING, logger="amc"):
        amc.logger("mlflow", directory=tmp_path).episode("planner", record(0, 0.5), NEW)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("logger mlflow is left out from here on, it failed: ModuleNotFoundError")
