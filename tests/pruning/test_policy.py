"""Policies: what they refuse, and that they survive the disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.errors import RunError
from amc.pruning import GroupPolicy, Policy


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    names = draw(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=5))
    groups = []
    for name in names:
        size = draw(st.integers(1, 300))
        keep = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
        groups.append(GroupPolicy(name, size, tuple(sorted(keep))))
    return Policy(tuple(groups))


@given(policies())
def test_json_brings_back_the_same_policy(policy: Policy) -> None:
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_save_and_load(tmp_path: Path) -> None:
    policy = Policy((GroupPolicy("layer1.0.conv1", 4, (0, 3)), GroupPolicy("größe", 2, (1,))))
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == policy
    assert Policy.load(str(tmp_path / "policy.json")).keep == {"layer1.0.conv1": (0, 3), "größe": (1,)}
    assert json.loads((tmp_path / "policy.json").read_text()) == {
        "method": "channel",
        "groups": [
            {"name": "layer1.0.conv1", "size": 4, "keep": [0, 3]},
            {"name": "größe", "size": 2, "keep": [1]},
        ],
    }


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), st.randoms())
def test_of_sorts_the_kept_channels(keep: list[int], random: Any) -> None:
    random.shuffle(keep)
    policy = Policy.of({"a": np.array(keep)}, {"a": 41})
    assert policy.groups == (GroupPolicy("a", 41, tuple(sorted(keep))),)
    assert policy.keep_counts == (len(keep),)
    assert all(type(index) is int for index in policy.groups[0].keep)  # JSON knows no NumPy


@pytest.mark.parametrize("keep", [(), (1, 1), (2, 1), (-1, 0), (0, 5), (5,)])
def test_a_group_refuses_channels_that_are_not_an_ascending_subset(keep: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match=r"policy of group 'conv' must keep ascending channels between 0 and 4"):
        GroupPolicy("conv", 5, keep)


def test_a_group_named_twice_is_refused() -> None:
    with pytest.raises(RunError, match="names group 'a' twice"):
        Policy((GroupPolicy("a", 2, (0,)), GroupPolicy("a", 2, (1,))))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"method": "channel"}',
        '{"groups": [], "metho": 1}',
        '{"method": "channel", "groups": [1]}',
        '{"method": "channel", "groups": [{"name": "a", "size": 4}]}',
        '{"method": "channel", "groups": [{"name": "a", "size": "four", "keep": [0]}]}',
        '{"method": "channel", "groups": [{"name": "a", "size": 4, "keep": ["x"]}]}',
        '{"method": "channel", "groups": [{"name": "a", "size": 4, "keep": 2}]}',
        '{"method": "channel", "groups": [{"name": "a", "size": 4, "keep": [4]}]}',
        "\udcff",
    ],
)
def test_files_that_hold_no_policy_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunError) as refusal:
        Policy.load(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read policy .*nothing\.json"):
        Policy.load(tmp_path / "nothing.json")


def test_a_full_disk_leaves_the_former_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.json"
    Policy((GroupPolicy("a", 2, (0,)),)).save(path)
    before = path.read_bytes()

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match=r"no space left to write .*policy\.json"):
        Policy((GroupPolicy("b", 9, tuple(range(9))),)).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
