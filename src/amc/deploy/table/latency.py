"""The latency table of a network: read from the resumed run or from the cache, or measured now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc.deploy.table.bench import NETWORK_SETTINGS, Bench
from amc.deploy.table.cost import LatencyCost
from amc.deploy.table.grid import FloatArray
from amc.deploy.table.measuring import Build, Told, complete, correction_of, find_step, measure_table
from amc.deploy.table.plan import POINTS, Plan, network_key, plan_table
from amc.deploy.table.record import LatencyTable, TableError, cache_path, read_table, write_table
from amc.errors import RunError
from amc.run.cache import cache_folder
from amc.structure import Structure

DOUBTFUL = 0.12  # relative error of a prediction above which the user is warned


@dataclass(frozen=True)
class Latency:
    """A network's latency as the search needs it."""

    bench: Bench
    table: LatencyTable
    cost: LatencyCost
    errors: FloatArray  # relative prediction error of each whole network except the dense one, leaving that network out

    @property
    def dense_ms(self) -> float:
        """Latency of the dense network, measured together with the table's other whole networks."""
        return self.table.networks[0].latency_ms

    @property
    def unsteady(self) -> int:
        """Number of whole networks whose best rounds disagreed, even in a longer measurement."""
        return sum(network.spread > NETWORK_SETTINGS.precision for network in self.table.networks)

    def summary(self) -> dict[str, Any]:
        """For summary.json: the table's size, the seconds it took, and the errors of its predictions in percent."""
        return {
            "blocks": len(self.table.times),
            "step": self.table.step,
            "networks": len(self.table.networks),
            "seconds": round(self.table.seconds, 1),
            "unsteady": self.unsteady,
            "mean_error": round(100 * float(abs(self.errors).mean()), 2),
            "worst_error": round(100 * float(abs(self.errors).max()), 2),
        }


def latency_table(
    model: nn.Module,
    structure: Structure,
    example_input: Any,
    choices: Sequence[Sequence[int]],
    build: Build,
    bench: Bench,
    *,
    stored: Path | None = None,
    folder: Path | None = None,
    points: int = POINTS,
    told: Told | None = None,
) -> Latency:
    """The table for policies that take each group's keep count from `choices`.

    build: keep counts -> the sliced network. It makes the whole networks that correct the table.
    stored: the table of the run that is being resumed. It must be used unchanged; RunError if that is impossible.
    folder: replaces the cache directory.
    points: largest number of widths measured on each side of a layer.
    told: who hears of the measurement.
    """
    told = told or Told()
    if stored is not None:
        return _of_run(stored, model, structure, choices, points, bench)
    plan = plan_table(model, structure, choices, points=points)
    network = network_key(model, plan, choices)
    path = cache_path(network, bench.place, folder)
    table = _cached(path, network, bench, told.warn) if path.exists() else None
    if table is not None:
        plan = plan_table(model, structure, choices, step=table.step, points=points)
        if complete(plan, table.times):
            return _checked(Latency(bench, table, *correction_of(plan, table)), told.warn)
        told.warn(f"latency table '{path}' is not complete; measuring it again")
    plan = plan_table(model, structure, choices, step=find_step(bench), points=points)
    table = measure_table(network, plan, build, example_input, choices, bench, told)
    try:
        write_table(path, table)
    except RunError as error:
        told.warn(f"the latency table is not kept for later: {error}")
    return _checked(Latency(bench, table, *correction_of(plan, table)), told.warn)


def _checked(latency: Latency, warn: Callable[[str], None]) -> Latency:
    """Return `latency`. Calls `warn` when the table's predictions are poor, for example on a busy machine."""
    worst, unsteady = float(abs(latency.errors).max()), latency.unsteady
    if worst > DOUBTFUL or unsteady:
        warn(
            f"the latency table is uncertain: it is off by up to {worst:.0%}, and {unsteady} of the "
            f"{len(latency.table.networks)} networks measured were not steady; the search's result is measured as a "
            f"whole network in any case. To measure the table again on a quiet machine, delete '{cache_folder()}'"
        )
    return latency


def _of_run(
    stored: Path, model: nn.Module, structure: Structure, choices: Sequence[Sequence[int]], points: int, bench: Bench
) -> Latency:
    try:
        table = read_table(stored)
        plan: Plan = plan_table(model, structure, choices, step=table.step, points=points)
        if table.network != network_key(model, plan, choices) or not complete(plan, table.times):
            raise TableError(f"'{stored}' is the table of another network")
    except TableError as error:
        raise RunError(f"{error}; the search cannot continue without its own table: start a new run") from None
    if (table.place.runtime, table.place.version) != (bench.place.runtime, bench.place.version):
        raise RunError(
            f"this search was started with {table.place.runtime} {table.place.version}, but the runtime is now "
            f"{bench.place.runtime} {bench.place.version}; install {table.place.runtime} {table.place.version} again, "
            "or start a new run"
        )
    if table.place.key != bench.place.key:
        raise RunError(
            f"this search was started on another machine ({table.place.machine.get('cpu')}); latency holds for one "
            "machine only: resume it there, or start a new run"
        )
    return Latency(bench, table, *correction_of(plan, table))


def _cached(path: Path, network: str, bench: Bench, warn: Callable[[str], None]) -> LatencyTable | None:
    """The table in the cache. If it must be measured again, calls `warn` with the reason and returns None."""
    try:
        table = read_table(path)
    except TableError as error:
        warn(f"latency table {error}; measuring it again")
        return None
    if table.place.version != bench.place.version:
        warn(
            f"the latency table was measured with {bench.place.runtime} {table.place.version}, but the version is now "
            f"{bench.place.version}; measuring it again"
        )
        return None
    wanted = (network, bench.place.runtime, bench.place.threads, bench.place.precision, bench.place.key)
    stored = (table.network, table.place.runtime, table.place.threads, table.place.precision, table.place.key)
    if stored != wanted:
        warn(f"latency table '{path}' belongs to another network or machine; measuring it again")
        return None
    return table
