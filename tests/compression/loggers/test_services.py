"""The adapters, each with its real package in an offline mode; skipped where the package is not installed."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import amc
from amc.search import EpisodeRecord, EpisodeTiming

NEW, REPLAYED = EpisodeTiming(0.0, 0.1, replayed=False), EpisodeTiming(0.0, 0.0, replayed=True)
SCORES = (0.5, 0.75, 0.625)
BLOCK, WHOLE, LAST = 32768, 1, 4  # of a log of LevelDB: bytes, and kinds of records


def episode(logger: amc.Observer, number: int, *, replayed: bool = False) -> None:
    record = EpisodeRecord(number, (4,), {"macs": 500.0}, SCORES[number], SCORES[number] - 1)
    logger.episode("planner", record, REPLAYED if replayed else NEW)


def two_sessions(name: str, directory: Path) -> None:
    """A search that is stopped after two episodes and resumed for a third; then it has its result."""
    first = amc.logger(name, directory=directory)
    first.job_settings("search", {"budget": "macs<=50%", "lock": []})
    first.dense(0.875)
    episode(first, 0)
    episode(first, 1)
    first.close()
    second = amc.logger(name, directory=directory)
    second.job_settings("search", {"budget": "macs<=50%", "lock": []})
    second.dense(0.875)
    for number in range(3):
        episode(second, number, replayed=number < 2)
    second.job_result({"slim": {"macs": 500, "score": 0.75}, "dense": {"macs": 1000}})
    second.close()


def test_tensorboard_has_each_point_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    two_sessions("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scores = events.Scalars("search/planner/score")
    assert [(event.step, event.value) for event in scores] == list(enumerate(SCORES))
    assert [event.value for event in events.Scalars("search/planner/best")] == [0.5, 0.75, 0.75]
    assert [event.value for event in events.Scalars("dense/score")] == [0.875]
    assert [event.value for event in events.Scalars("result/slim/macs")] == [500]
    assert "macs<=50%" in events.Tensors("settings/search/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow with a store of its own."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def history(client: Any, run: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]


def test_mlflow_has_each_point_once_in_one_run(tmp_path: Path, client: Any) -> None:
    two_sessions("mlflow", tmp_path / "run")
    (found,) = client.search_runs([client.get_experiment_by_name("amc").experiment_id])
    assert history(client, found.info.run_id, "search/planner/score") == list(enumerate(SCORES))
    assert history(client, found.info.run_id, "dense/score") == [(0, 0.875)]
    assert found.data.params == {"settings/search/budget": '"macs<=50%"', "settings/search/lock": "[]"}
    assert found.data.metrics["result/slim/macs"] == 500
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")


def test_mlflow_logs_to_the_active_run_of_the_caller(tmp_path: Path, client: Any) -> None:
    import mlflow

    with mlflow.start_run() as active:
        logger = amc.logger("mlflow", directory=tmp_path / "run")
        episode(logger, 0)
        logger.close()
        assert client.get_run(active.info.run_id).info.status == "RUNNING"
    assert history(client, active.info.run_id, "search/planner/score") == [(0, 0.5)]


def test_a_search_that_is_stopped_is_not_finished_in_mlflow(tmp_path: Path, client: Any) -> None:
    logger = amc.logger("mlflow", directory=tmp_path / "run")
    episode(logger, 0)
    logger.close()
    (found,) = client.search_runs([client.get_experiment_by_name("amc").experiment_id])
    assert found.info.status == "KILLED"


def test_wandb_keeps_each_point_once_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    two_sessions("wandb", tmp_path)
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(sessions) == 2
    assert len({path.name for path in sessions}) == 1  # one key: syncing puts both sessions into one run
    points = stored_in(sessions, last="result/step")
    scores = [(p["search/planner/step"], p["search/planner/score"]) for p in points if "search/planner/score" in p]
    assert sorted(scores) == list(enumerate(SCORES))
    assert [p["dense/score"] for p in points if "dense/score" in p] == [0.875]
    assert [p["result/slim/macs"] for p in points if "result/slim/macs" in p] == [500]


def stored_in(sessions: list[Path], *, last: str) -> list[dict[str, Any]]:
    """The history of all sessions; a service in the background writes the end of it a little later."""
    for _ in range(200):
        points = [point for path in sessions for point in stored(path)]
        if any(last in point for point in points):
            break
        time.sleep(0.1)
    return points


def stored(path: Path) -> list[dict[str, Any]]:
    """The history in the file of an offline run: after 7 bytes, records as in a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, part = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too short for a header: the rest of the block is empty
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            record, part = Record.FromString(part), b""
            items = record.history.item
            found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found
