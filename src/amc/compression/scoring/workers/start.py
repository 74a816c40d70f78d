"""The workers that a search asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amc.compression.observer import Observer
from amc.compression.scoring.evaluator import Evaluator, PairedEvaluator
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.cluster import Cluster, connected
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes, fitting, memory_of
from amc.compression.scoring.workers.trial import Trial
from amc.compression.settings import SearchConfig
from amc.errors import AmcError
from amc.run.cores import physical_cores, usable_cores
from amc.run.provenance import CPU


@contextmanager
def scoring(
    scorer: PolicyScorer, config: SearchConfig, watch: Observer, device: torch.device = CPU
) -> Iterator[Pool | None]:
    """A pool of the workers that a search asks for, or of those that are fastest; None: score in this process.

    `device`: of the networks. Raises AmcError if something of the scorer cannot be sent to another process, or if there
    is no such cluster.
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
        with _default(scorer, config, watch, device) as default:
            yield default


@contextmanager
def _default(
    scorer: PolicyScorer, config: SearchConfig, watch: Observer, device: torch.device
) -> Iterator[Pool | None]:
    """Workers where nobody asked for them: only for batches, on the CPU, and for a score of ours.

    A function of the user's own may count its calls, or hold what belongs to this process alone.
    """
    workers = default_workers(config.batch)
    ours = isinstance(scorer.evaluate, Evaluator | PairedEvaluator)
    staff = None
    if workers > 1 and ours and device.type == "cpu":
        try:
            staff = Processes(scorer, workers, device=device)
        except AmcError as error:
            watch.warning(f"policies are scored one after the other: {error}")
    if staff is None:
        yield None
        return
    watch.stage(f"start of {_counted(workers)} by default, {memory_of(workers) / 1e9:.1f} GB at most")
    with Pool(scorer, staff, timeout=config.score_timeout) as pool:
        if physical_cores() < workers:
            pool.trial = Trial(workers, physical_cores(), pool.limit, watch.stage)
        yield pool


def default_workers(batch: int) -> int:
    """One for each policy of a batch, as far as there are cores, threads that PyTorch may use, and memory."""
    cores = usable_cores()
    if torch.get_num_threads() < physical_cores():  # somebody has limited them, as by OMP_NUM_THREADS
        cores = torch.get_num_threads()
    return max(1, min(batch, cores, fitting()))


def _counted(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def _check_idle(workers: int, config: SearchConfig, watch: Observer) -> None:
    if workers > config.batch:  # no warning of the result, which the number of workers does not change
        watch.warning(f"{workers} workers share batches of {config.batch}, so some are idle; raise batch")
