"""Exports networks to files that runtimes load, and measures their latency there."""

from amc.deploy.export import Export, export_network
from amc.deploy.extras import MissingExtraError
from amc.deploy.formats import FORMATS
from amc.deploy.measure import Comparison, MeasureSettings, Timing, compare, measure
from amc.deploy.parity import ParityError
from amc.deploy.runtimes import RUNTIMES, installed_runtimes
from amc.deploy.timing import latency, latency_of_files, prepared

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Comparison",
    "Export",
    "MeasureSettings",
    "MissingExtraError",
    "ParityError",
    "Timing",
    "compare",
    "export_network",
    "installed_runtimes",
    "latency",
    "latency_of_files",
    "measure",
    "prepared",
]
