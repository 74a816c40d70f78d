"""What a run keeps of its preparation: resuming uses it, gives the same bytes, and trusts no file that does not fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression import prepare, prepared
from amc.compression.prepared import Prepared, key_of, read, write
from amc.errors import RunError
from amc.pruning import Calibration
from amc.pruning.calibration import Gram
from amc.pruning.methods import channel
from amc.run.directory import RunDir
from amc.structure import Certificate
from amc.structure.channels import Lock
from tests.commands import contents
from tests.fixtures.runs import make
from tests.tiny import EXAMPLE, compress, tiny

FILE = "prepared.safetensors"
KEPT = Prepared(
    "a" * 64,
    Certificate(3, 1.5e-7, (("layer", Lock("it fails", "layer", "net.py:3")),), (("stem", 0.25),)),
    "b" * 64,
    Calibration({"w": Gram(torch.rand(2, 3, 3, dtype=torch.float64), 40)}, {"v": "too large"}),
    {"layer": np.array([2, 0, 1])},
)


def search(run: Path, **changes: Any) -> amc.Result:
    return compress(tiny(), run_dir=run, **{"keep_sets": 2, "agent": "random", **changes})


def stopped(run: Path, **changes: Any) -> Path:
    """A search that was stopped after three of its six episodes."""
    with pytest.raises(KeyboardInterrupt):
        search(run, **changes, observer=make.Watch(episode=3, agent="random"))
    return run


def result(run: Path) -> dict[str, str]:
    """The files of a run that do not depend on the clock."""
    return {name: value for name, value in contents(run).items() if name not in CLOCKED}


CLOCKED = ("timings.jsonl", "summary.json", "report.html")


def assert_same(kept: Prepared, other: Prepared) -> None:
    assert (kept.structure_key, kept.calibration_key) == (other.structure_key, other.calibration_key)
    assert kept.certificate == other.certificate
    assert kept.calibration.skipped == other.calibration.skipped
    assert kept.calibration.grams.keys() == other.calibration.grams.keys()
    for name, gram in kept.calibration.grams.items():
        assert torch.equal(gram.matrix, other.calibration.grams[name].matrix)
        assert gram.samples == other.calibration.grams[name].samples
    assert {name: order.tolist() for name, order in kept.orders.items()} == {
        name: order.tolist() for name, order in other.orders.items()
    }


class TestFile:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        write(tmp_path / FILE, KEPT)
        assert_same(read(tmp_path / FILE), KEPT)
        without = dataclasses.replace(KEPT, certificate=None, orders={})
        write(tmp_path / FILE, without)
        assert_same(read(tmp_path / FILE), without)

    def test_no_file_fits_nothing(self, tmp_path: Path) -> None:
        assert_same(read(tmp_path / FILE), Prepared())

    def test_the_file_holds_all_fields(self) -> None:
        """Whoever adds a field to one of these must write it, too."""
        assert [field.name for field in dataclasses.fields(Calibration)] == ["grams", "skipped"]
        assert [field.name for field in dataclasses.fields(Gram)] == ["matrix", "samples"]
        assert [field.name for field in dataclasses.fields(Certificate)] == [
            "keep_sets",
            "worst_error",
            "failed",
            "approximate",
        ]
        assert [field.name for field in dataclasses.fields(Lock)] == ["reason", "module", "source"]

    @pytest.mark.parametrize("place", [0, 3, 8, 60, 300, 700, -1, -30, -100])
    @pytest.mark.parametrize("how", ["flip", "cut"])
    def test_damage_anywhere_is_found(self, tmp_path: Path, place: int, how: str) -> None:
        write(tmp_path / FILE, KEPT)
        data = (tmp_path / FILE).read_bytes()
        changed = data[:place] + bytes([data[place] ^ 4]) + data[place:][1:] if how == "flip" else data[:place]
        (tmp_path / FILE).write_bytes(changed)
        with pytest.raises(RunError, match=FILE) as raised:
            read(tmp_path / FILE)
        assert len(str(raised.value).splitlines()) == 1

    def test_a_pipe_is_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / FILE)
        with pytest.raises(RunError, match="not a regular file"):
            read(tmp_path / FILE)

    def test_a_calibration_that_is_too_large_is_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prepared, "LARGEST", KEPT.nbytes - 1)
        assert KEPT.nbytes == 2 * 3 * 3 * 8
        write(tmp_path / FILE, KEPT)
        assert not (tmp_path / FILE).exists()

    def test_a_disk_that_fails_is_no_error(self, tmp_path: Path) -> None:
        write(tmp_path / "missing" / FILE, KEPT)
        assert list(tmp_path.iterdir()) == []


class TestKey:
    def test_depends_on_names_types_and_contents(self) -> None:
        structure = amc.inspect(tiny(), EXAMPLE)
        group = dataclasses.replace(structure.groups[0], name="other")
        keys = [
            key_of(a=1), key_of(a=1.0), key_of(a="1"), key_of(b=1), key_of(a=[1]), key_of(a=[[1]]), key_of(a={"x": 1}),
            key_of(a=True), key_of(a=None), key_of(a=np.array([1])), key_of(a=np.array([[1]])),
            key_of(a=np.array([1.0])), key_of(a=1, b=2), key_of(a=structure),
            key_of(a=dataclasses.replace(structure, groups=(group, *structure.groups[1:]))),
        ]  # fmt: skip
        assert len(set(keys)) == len(keys)
        assert key_of(a=amc.inspect(tiny(3), EXAMPLE)) == key_of(a=structure)  # weights are no part of it

    def test_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(TypeError, match="Linear has no digest"):
            key_of(a=nn.Linear(1, 1))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the expensive parts of the preparation fail."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(prepare, "calibrate", never)
    monkeypatch.setattr(channel, "certify", never)
    monkeypatch.setattr("amc.pruning.pruner.elimination", never)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the expensive parts, as often as they are computed."""
    calls: list[str] = []

    def watch(where: Any, name: str) -> None:
        real = getattr(where, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(where, name, counting)

    watch(prepare, "calibrate")
    watch(channel, "certify")
    return calls


@pytest.mark.parametrize("method", ["channel", "fine-grained"])
def test_resuming_computes_nothing_again_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    budget = "macs<=50%" if method == "channel" else "params<=50%"
    search(tmp_path / "whole", method=method, budget=budget)
    stopped(tmp_path / "run", method=method, budget=budget)
    assert (tmp_path / "run" / FILE).exists()
    with monkeypatch.context() as patch:
        forbid(patch)
        resumed = search(tmp_path / "run", method=method, budget=budget, resume=True)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert FILE not in contents(tmp_path / "run")  # the search has ended
    whole = RunDir.open(tmp_path / "whole").read_json("summary.json")
    for name in ("certificate", "locked", "groups", "slim", "warnings"):
        assert resumed.summary[name] == whole[name]


class Literal(nn.Module):
    """A network whose first group cannot be pruned: its forward insists on a size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        assert x.shape[1] == 6
        logits: Tensor = self.head(self.b(x).relu().mean((2, 3)))
        return logits


def test_a_group_that_failed_the_certificate_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"keep_sets": 2, "agent": "random", "run_dir": tmp_path / "run", "budget": "macs<=80%"}
    with pytest.raises(KeyboardInterrupt):
        compress(Literal(), **settings, observer=make.Watch(episode=3, agent="random"))
    forbid(monkeypatch)
    resumed = compress(Literal(), **settings, resume=True)
    assert resumed.summary["certificate"]["locked"] == ["a"]
    assert [group.name for group in resumed.structure.groups] == ["b"]


def changed_file(run: Path) -> None:
    path = run / FILE
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def removed_file(run: Path) -> None:
    (run / FILE).unlink()


def other_keys(run: Path) -> None:
    kept = read(run / FILE)
    write(run / FILE, dataclasses.replace(kept, structure_key="0" * 64, calibration_key="0" * 64))


@pytest.mark.parametrize(("change", "said"), [(changed_file, True), (removed_file, False), (other_keys, False)])
def test_a_file_that_does_not_fit_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], said: bool
) -> None:
    search(tmp_path / "whole")
    change(stopped(tmp_path / "run"))
    calls, watch = counted(monkeypatch), make.Watch()
    search(tmp_path / "run", resume=True, observer=watch)
    assert calls == ["certify", "calibrate"]
    assert [FILE in warning for warning in watch.warnings] == [True] * said
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_in_another_place_everything_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = stopped(tmp_path / "run"), counted(monkeypatch)
    place = {**prepare.execution(), "instructions": "another"}
    monkeypatch.setattr(prepare, "execution", lambda *_: place)
    search(run, resume=True)
    assert calls == ["certify", "calibrate"]


def test_without_a_run_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(prepare, "write", never)
    assert compress(tiny(), keep_sets=1, episodes=1).summary["certificate"]["passed"]


def test_a_folder_in_the_place_of_the_file_costs_only_time(tmp_path: Path) -> None:
    """Nor does the search fail at its end, where the file is removed."""
    run = stopped(tmp_path / "run")
    (run / FILE).unlink()
    (run / FILE).mkdir()
    search(run, resume=True)
    assert (run / FILE).is_dir()
    search(tmp_path / "whole")
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
