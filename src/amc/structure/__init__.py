"""The structure of a network: the channels that can be removed, their ties, their costs, and the locked channels."""

from amc.structure.analysis import inspect
from amc.structure.certificate import Certificate, certify, check_counts
from amc.structure.count import count_macs, count_params
from amc.structure.rules.own import operator_rule
from amc.structure.slicing import mask_model, slice_model
from amc.structure.structure import Group, Layer, Locked, Structure, lock_groups, restrict

__all__ = [
    "Certificate",
    "Group",
    "Layer",
    "Locked",
    "Structure",
    "certify",
    "check_counts",
    "count_macs",
    "count_params",
    "inspect",
    "lock_groups",
    "mask_model",
    "operator_rule",
    "restrict",
    "slice_model",
]
