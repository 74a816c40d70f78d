"""The workers that a search asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amc.compression.observer import Observer
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.cluster import Cluster, connected
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes, memory_of
from amc.compression.settings import SearchConfig
from amc.run.provenance import CPU


@contextmanager
def scoring(
    scorer: PolicyScorer, config: SearchConfig, watch: Observer, device: torch.device = CPU
) -> Iterator[Pool | None]:
    """A pool of the workers that a search asks for; None if it asks for none. `device`: of the networks.

    Raises AmcError if something of the scorer cannot be sent to another process, or if there is no such cluster.
    """
    if config.ray is not None:
        with connected(config.ray) as place:
            workers = config.workers or min(config.batch, place.room(device))
            watch.stage(f"start of {_counted(workers)} on Ray, {place}")
            _check_idle(workers, config, watch)
            with Pool(scorer, Cluster(scorer, workers, device=device), timeout=config.score_timeout) as pool:
                yield pool
    elif config.workers is not None:
        workers = config.workers
        watch.stage(f"start of {_counted(workers)}, {memory_of(workers) / 1e9:.1f} GB at most")
        _check_idle(workers, config, watch)
        with Pool(scorer, Processes(scorer, workers, device=device), timeout=config.score_timeout) as pool:
            yield pool
    else:
        yield None


def _counted(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def _check_idle(workers: int, config: SearchConfig, watch: Observer) -> None:
    if workers > config.batch:  # no warning of the result, which the number of workers does not change
        watch.warning(f"{workers} workers share batches of {config.batch}, so some are idle; raise batch")
