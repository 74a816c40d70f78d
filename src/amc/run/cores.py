"""How many processor cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Logical cores that this process may run on, or the share of a container's processor time; at least 1."""
    return max(1, min([len(_allowed()), *_shares(root)]))


def physical_cores(root: Path = ROOT) -> int:
    """As `usable_cores`, with the threads of one core counted once; Linux alone tells them."""
    allowed = _allowed()
    cores = {_text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in allowed}
    return min(usable_cores(root), len(cores)) if "" not in cores else usable_cores(root)


def _allowed() -> set[int]:
    """The numbers of the logical cores that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _shares(root: Path) -> Iterator[int]:
    """Cores' worth of time that a container may take, rounded up; one entry for each limit that there is."""
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    older = root / "sys/fs/cgroup/cpu"
    yield from _share(quota, period)
    yield from _share(_text(older / "cpu.cfs_quota_us"), _text(older / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> Iterator[int]:
    if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1: there is no limit
        yield -(-int(quota) // int(period))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
