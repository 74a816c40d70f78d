"""What a worker costs for each policy, beside the score: of a process of this machine, and of a Ray actor.

    python benchmarks/overhead.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 2000

One worker of each kind scores the same random policies at half the MACs, one after the other, in turns. A worker says
how long it has scored, and the rest of the time until the answer is here is the overhead. The cluster is made on this
machine, with two nodes; `--ray HOST:PORT` measures one that runs. The results go to
benchmarks/results/overhead-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any

import torch

from amc.compression.scoring.workers.cluster import Cluster, connected
from amc.compression.scoring.workers.pool import Pool
from amc.compression.scoring.workers.processes import Processes
from amc.run.provenance import environment
from common import Record, machine, network_parser, percent, save, table
from score_correlation import random_policies
from workers import forgetful, job_at_half

RESULT = "overhead-{model}.json"
Keep = tuple[int, ...]


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--policies", type=int, default=24)
    parser.add_argument("--ray", help="HOST:PORT of a cluster; without it, one is made here")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    job, images = job_at_half(args)
    policies = list(random_policies(job.problem, args.policies, 0))
    ways: Record = {}
    with ExitStack() as stack:
        began = time.perf_counter()
        pools = {"a process": stack.enter_context(Pool(forgetful(job.scorer), Processes(forgetful(job.scorer), 1)))}
        pools["a process"].ready()
        start = {"a process": time.perf_counter() - began}
        stack.enter_context(connected(args.ray or stack.enter_context(made())))
        began = time.perf_counter()
        pools["a Ray actor"] = stack.enter_context(Pool(forgetful(job.scorer), Cluster(forgetful(job.scorer), 1)))
        pools["a Ray actor"].ready()
        start["a Ray actor"] = time.perf_counter() - began
        ways = {name: {"start": start[name], "score": [], "overhead": []} for name in pools}
        for policy in policies:
            for name, pool in pools.items():
                score, overhead = timed(pool, policy)
                ways[name]["score"].append(score)
                ways[name]["overhead"].append(overhead)
    record: Record = {
        "model": args.model, "images": images, "ways": ways, "ray": version("ray"),
        "environment": environment(),
    }  # fmt: skip
    save(RESULT.format(model=args.model), record)
    return record


@contextmanager
def made() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine."""
    from ray.cluster_utils import Cluster as Nodes

    nodes: Any = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def timed(pool: Pool, policy: Keep) -> Sequence[float]:
    """Seconds of a policy's score in the worker, and the rest until the answer is here."""
    began = time.perf_counter()
    timing = pool.scored(policy).timing
    score = timing.build + timing.batch_norm + timing.evaluate
    return score, time.perf_counter() - began - score


def section(record: Record) -> str:
    rows = []
    for name, found in record["ways"].items():
        score, overhead = statistics.median(found["score"]), statistics.median(found["overhead"])
        rows.append([
            name, f"{1000 * score:.0f} ms", f"{1000 * overhead:.1f} ms", percent(overhead / score),
            f"{found['start']:.1f} s",
        ])  # fmt: skip
    return (
        f"## Overhead: {record['model']}\n\n"
        f"`python benchmarks/overhead.py --model {record['model']} --weights W --data cifar10:DATA --search-images "
        f"{record['images']}`: {len(record['ways']['a process']['score'])} random policies at half the MACs, by one "
        "worker of each kind in turns; medians. The overhead is the time beside the score until the answer is here; "
        f"the start includes sending the network and the images. Ray {record['ray']}, both nodes on this machine.\n\n"
        + table(["worker", "a score", "overhead", "of the score", "start"], rows)
        + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
