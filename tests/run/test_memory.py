"""The memory that is free, as the system says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.run.memory import free_memory

MEMINFO = "MemTotal:       24672044 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
MAX, CURRENT = "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"
OLD_MAX, OLD_USED = "sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 20_480_000_000),
        ({"proc/meminfo": "MemAvailable:\nMemTotal"}, None),
        ({"proc/meminfo": MEMINFO, MAX: "max\n", CURRENT: "5\n"}, 20_480_000_000),
        ({"proc/meminfo": MEMINFO, MAX: "3000\n", CURRENT: "1000\n"}, 2000),
        ({"proc/meminfo": MEMINFO, MAX: "3000\n", CURRENT: "4000\n"}, 0),
        ({"proc/meminfo": MEMINFO, MAX: "3000\n"}, 20_480_000_000),
        ({OLD_MAX: "9223372036854771712\n", OLD_USED: "1\n", "proc/meminfo": MEMINFO}, 20_480_000_000),
        ({OLD_MAX: "700\n", OLD_USED: "1\n", "proc/meminfo": MEMINFO}, 699),
    ],
)
def test_the_least_of_what_is_said_counts(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == free


def test_this_machine() -> None:
    assert free_memory() is None or free_memory() > 0
