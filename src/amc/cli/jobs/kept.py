"""What `amc latency` and `amc export` found out about the network of a run, kept in the run for its report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from amc.errors import RunError
from amc.report import render_report
from amc.run import files
from amc.run.directory import RunDir


def keep(run: RunDir, name: str, key: str, record: Mapping[str, Any], *, finetuned: bool) -> bool:
    """Add a record to the run's `latency.json` or `export.json` (`name`), in place of an earlier one with this key.

    The record gets the digest of the weights that it is about: the report leaves it out once they have changed. Returns
    whether it was kept: a run that cannot be written, or that another process writes, stays as it is.
    """
    weights = files.MODEL_FINETUNED if finetuned and run.has(files.MODEL_FINETUNED) else files.MODEL
    with suppress(RunError, OSError), run.lock():
        kept = run.read_json(name).get("records", {}) if run.has(name) else {}
        kept.pop(key, None)  # the latest comes last
        kept[key] = {**record, "weights": run.digests([weights]).get(weights)}
        run.write_json(name, {"records": kept})
        render_report(run)
        return True
    return False
