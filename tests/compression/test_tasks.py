"""The whole job on tasks that are no classification of images, each with its own inputs, outputs, labels and score."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import amc
from amc.compression.scoring.evaluator import Evaluator
from amc.run.settings.scores import SCORES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("segmentation", "super-resolution", "regression", "several labels", "keywords", "text", "detection")


def tasks() -> Any:
    """The benchmark's own tasks: scripts, which import each other by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("small_tasks")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_task_is_tried() -> None:
    assert set(NAMES) == set(tasks().TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_from_the_data_to_a_smaller_network_and_back_from_its_files(name: str, tmp_path: Path) -> None:
    task = tasks().TASKS[name]
    dense, example, held_out = tasks().trained(task, 20), task.example(), task.batches(60, 1)
    result = amc.compress(
        dense, example, calibration=[inputs for inputs, _ in task.batches(100, 2)], evaluate=held_out,
        test=task.batches(40, 3), score=task.score, budget="macs<=50%", part=task.part, episodes=3, recover_time=1.0,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    summary, slim = result.summary, result.summary["slim"]
    assert summary["certificate"]["passed"]
    assert summary["score"] == task.score
    inner = result.model if task.part is None else result.model.get_submodule(task.part)
    seen = example if task.part is None else torch.stack(example)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        inner(**seen) if isinstance(seen, dict) else inner(seen)
    if name not in ("keywords", "text"):  # torch counts neither a GRU nor, on a CPU, attention
        assert counter.get_total_flops() // 2 == slim["macs"]
    assert slim["macs"] <= 0.5 * summary["dense"]["macs"]

    kind = SCORES[task.score]
    judged = Evaluator(task.batches(40, 3), score=task.score, example_input=example)
    assert slim.get("test_recovered", slim["test"]) == pytest.approx(judged(result.model), abs=1e-6)
    assert summary["dense"]["test"] == pytest.approx(judged(dense), abs=1e-6)
    page = (tmp_path / "run/report.html").read_text()
    if task.score != "top1":  # which a page calls the score
        assert kind.label.lower() in page.lower()

    loaded = amc.load_run(tmp_path / "run", dense, example)
    assert judged(loaded) == pytest.approx(judged(result.model), abs=1e-6)
