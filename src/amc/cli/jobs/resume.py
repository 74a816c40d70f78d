"""`amc resume`."""

from __future__ import annotations

from pathlib import Path

from amc.cli.jobs.devices import device_named
from amc.cli.jobs.search import resume_search
from amc.cli.jobs.sweep import resume_sweep
from amc.compression.load import set_place
from amc.compression.observer import Observer
from amc.errors import AmcError
from amc.run.directory import RunDir


def run_resume(
    run_path: Path,
    *,
    round_lr: float | None = None,
    workers: int | None = None,
    device: str | None = None,
    ray: str | None = None,
    progress: Observer,
) -> Path:
    """Resume the search, sweep, study or schedule in `run_path`.

    `round_lr` is as in `resume_schedule`. From now on `workers` score the policies, on `device`, and on the cluster
    `ray` ("none": on no cluster); None: as before.
    """
    if device is not None:
        device = str(device_named(device))
    set_place(RunDir.open(run_path), workers=workers, device=device, ray=ray)
    if RunDir.open(run_path).config().get("schedule"):
        from amc.cli.jobs.schedule import resume_schedule  # here: a search alone trains nothing

        return resume_schedule(run_path, round_lr=round_lr, progress=progress)
    if RunDir.open(run_path).config().get("study"):
        from amc.cli.jobs.study import resume_study  # here: a search alone trains nothing

        return resume_study(run_path, progress=progress)
    if round_lr is not None:
        raise AmcError(f"'{run_path}' is not a schedule; round-lr {round_lr:g} is for rounds only; leave it out")
    if RunDir.open(run_path).config().get("sweep"):
        return resume_sweep(run_path, progress=progress)
    return resume_search(run_path, progress=progress)
