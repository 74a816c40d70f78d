"""The latency of a policy from a table that is measured once per network and runtime."""

from amc.deploy.table.bench import Bench, Place, open_bench
from amc.deploy.table.cost import LatencyCost
from amc.deploy.table.latency import Latency, latency_table
from amc.deploy.table.measuring import NoiseError, bench_networks
from amc.deploy.table.record import LatencyTable, TableError, read_table

__all__ = [
    "Bench",
    "Latency",
    "LatencyCost",
    "LatencyTable",
    "NoiseError",
    "Place",
    "TableError",
    "bench_networks",
    "latency_table",
    "open_bench",
    "read_table",
]
