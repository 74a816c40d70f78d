"""MLflow: a run of the caller's active experiment, on the server or file of MLFLOW_TRACKING_URI."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPERIMENT = "amc"  # unless MLFLOW_EXPERIMENT_NAME names another


class Mlflow:
    """The `Service` of one MLflow run: that of an earlier session, the caller's active one, or a new one."""

    def __init__(self, directory: Path, key: str | None) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        active = mlflow.active_run()
        self._own = key is not None or active is None  # the caller ends the caller's run
        self.key = key or (active.info.run_id if active else self._created(directory.resolve().name))
        if key is not None:
            self._client.update_run(key, status="RUNNING")

    def _created(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        return str(self._client.create_run(number, run_name=name).info.run_id)

    def settings(self, name: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(f"{name}/{key}", json.dumps(value, default=str)) for key, value in values.items()]
        self._client.log_batch(self.key, params=params)

    def metrics(self, series: str, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(f"{series}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self.key, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        if self._own:
            self._client.set_terminated(self.key, "FINISHED" if finished else "KILLED")
