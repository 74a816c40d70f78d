"""The number of workers where nobody asks for one: what is fastest here, and never another result."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from amc.compression.observer import Observer
from amc.compression.scoring.workers import trial
from amc.compression.scoring.workers.processes import memory_of
from amc.compression.scoring.workers.start import default_workers
from amc.compression.scoring.workers.trial import ROUNDS, Trial
from tests.threads import one_thread  # noqa: F401 -- a fixture: workers have one thread, and sums depend on it
from tests.tiny import compress, images, tiny

FILES = ("journal.jsonl", "model.safetensors", "policy.json")


class Stages(Observer):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def machine(monkeypatch: Any, usable: int, physical: int, threads: int | None = None) -> None:
    """Pretend that this is another machine."""
    place = "amc.compression.scoring.workers.start"
    monkeypatch.setattr(f"{place}.usable_cores", lambda: usable)
    monkeypatch.setattr(f"{place}.physical_cores", lambda: physical)
    monkeypatch.setattr(f"{place}.torch.get_num_threads", lambda: threads or physical)


@pytest.mark.parametrize(
    ("usable", "physical", "threads", "batch", "workers"),
    [
        (8, 8, 8, 4, 4), (8, 8, 8, 16, 8), (8, 4, 4, 16, 8), (8, 8, 3, 16, 3), (8, 4, 1, 16, 1), (1, 1, 1, 16, 1),
        (64, 32, 32, 1, 1),
    ],
)  # fmt: skip
def test_as_many_as_cores_and_policies_and_no_more_than_the_threads_allowed(
    monkeypatch: Any, usable: int, physical: int, threads: int, batch: int, workers: int
) -> None:
    machine(monkeypatch, usable, physical, threads)
    assert default_workers(batch) == workers


def test_no_more_than_fit_into_memory(monkeypatch: Any) -> None:
    machine(monkeypatch, 8, 8)
    monkeypatch.setattr("amc.compression.scoring.workers.processes.free_memory", lambda: int(3e9))
    assert default_workers(16) == 2
    monkeypatch.setattr("amc.compression.scoring.workers.processes.free_memory", lambda: 0)
    assert default_workers(16) == 1


def test_batches_have_workers_by_default_and_the_same_bytes(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "ROUNDS", 1)
    heard = {}
    for name, usable in (("alone", 1), ("trial", 2)):
        machine(monkeypatch, usable, physical=1)
        heard[name] = Stages()
        compress(
            tiny(), run_dir=tmp_path / name, agent="random", method="fine-grained", batch=2, episodes=12,
            baselines=("none",), observer=heard[name],
        )  # fmt: skip
    for file in FILES:
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "trial" / file).read_bytes(), file
    told = [[text for text in each.stages if "worker" in text] for each in heard.values()]
    assert told[0] == []
    assert told[1][0] == f"start of 2 workers by default, {memory_of(2) / 1e9:.1f} GB at most"
    assert [text for text in told[1][1:] if text.endswith("policies a second")] == told[1][1:]
    assert len(told[1]) == 2


def test_a_function_of_the_users_own_is_called_in_this_process(monkeypatch: Any) -> None:
    machine(monkeypatch, 2, 2)
    calls = []

    def evaluate(network: torch.nn.Module) -> float:
        calls.append(network)
        return float(network(images(4, 1)).mean())

    compress(tiny(), batch=2, evaluate=evaluate)
    assert len(calls) > 2


class Held:
    """Of this process alone: copied as itself, and refused by pickle."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self

    def __reduce__(self) -> str:
        raise TypeError("it is held")


def test_what_cannot_be_sent_is_scored_in_this_process_and_the_reason_told(monkeypatch: Any) -> None:
    machine(monkeypatch, 2, 2)
    model, heard = tiny(), Stages()
    model.held = Held()  # type: ignore[assignment]
    compress(model, batch=2, observer=heard)
    assert [text for text in heard.warnings if "one after the other: the search" in text and "it is held" in text]


@pytest.mark.parametrize(("slow", "fastest"), [(8, 4), (4, 8)])
def test_a_trial_takes_turns_and_ends_with_the_faster_number(monkeypatch: Any, slow: int, fastest: int) -> None:
    clock = iter(range(10**6))
    now = [0.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    limits, told = [], []
    tried = Trial(8, 4, limits.append, told.append)
    for _ in range(2 * ROUNDS + 4):
        scores: list[Future[Any]] = [Future() for _ in range(8)]
        tried.begins(scores)
        for score in scores:
            now[0] += 2.0 if limits[-1] == slow else 1.0
            score.set_result(next(clock))
    assert limits == [8, *[4, 8] * ROUNDS, fastest]
    assert told == [f"{fastest} workers from here: 4 score {1 if slow == 8 else 0.5:g} and 8 score "
                    f"{0.5 if slow == 8 else 1:g} policies a second"]  # fmt: skip


def test_a_trial_leaves_out_short_batches_and_those_given_up(monkeypatch: Any) -> None:
    limits: list[int] = []
    tried = Trial(4, 2, limits.append, lambda _: None)
    tried.begins([Future() for _ in range(3)])
    assert not limits
    tried.begins([Future() for _ in range(4)])  # given up
    tried.begins([Future() for _ in range(4)])
    assert limits == [4, 4]
