"""Exports networks to files that runtimes load, and measures their latency there."""

from amc.deploy.exporting import Export, export
from amc.deploy.extras import MissingExtraError
from amc.deploy.formats import FORMATS
from amc.deploy.latencies import Latencies, NetworkLatency, latency
from amc.deploy.measure import Comparison, MeasureSettings, Timing, compare, measure
from amc.deploy.parity import ParityError
from amc.deploy.runtimes import RUNTIMES, installed_runtimes
from amc.deploy.timing import latency_of_files, latency_record, prepared

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Comparison",
    "Export",
    "Latencies",
    "MeasureSettings",
    "MissingExtraError",
    "NetworkLatency",
    "ParityError",
    "Timing",
    "compare",
    "export",
    "installed_runtimes",
    "latency",
    "latency_of_files",
    "latency_record",
    "measure",
    "prepared",
]
