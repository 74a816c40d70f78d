"""Cores: what the system allows, what a container may take, and which are threads of one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amc.run.cores import physical_cores, usable_cores


def written(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture(autouse=True)
def eight(monkeypatch: Any) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu.max": "100 0"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_container_may_have_less_than_the_machine(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        written(tmp_path, f"sys/fs/cgroup/{name}", text)
    assert usable_cores(tmp_path) == cores
    assert physical_cores(tmp_path) == cores  # the system does not say which threads share a core


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for number in range(8):
        name = f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        written(tmp_path, name, f"{number % 4},{number % 4 + 4}\n")
    assert (usable_cores(tmp_path), physical_cores(tmp_path)) == (8, 4)
    written(tmp_path, "sys/fs/cgroup/cpu.max", "300000 100000")
    assert (usable_cores(tmp_path), physical_cores(tmp_path)) == (3, 3)


def test_this_machine_has_some() -> None:
    assert 1 <= physical_cores() <= usable_cores()
