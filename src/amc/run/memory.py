"""How much memory a job may still take."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
_LIMITS = (  # of a container: the limit, and what is used of it
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that are free on this machine, or below the limit of its container; None where the system does not say.

    Linux says it. Files that the system keeps in memory and can drop count as free on the machine, but as used in a
    container, so a container may have somewhat more.
    """
    found = [_of_machine(root), *(_below(root / limit, root / used) for limit, used in _LIMITS)]
    return min((value for value in found if value is not None), default=None)


def _of_machine(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1]:
            return 1024 * int(value.split()[0])
    return None


def _below(limit: Path, used: Path) -> int | None:
    most, now = _text(limit).strip(), _text(used).strip()
    return max(0, int(most) - int(now)) if most.isdigit() and now.isdigit() else None  # "max": there is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
