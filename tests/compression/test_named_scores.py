"""Runs by another score than top-1 accuracy: searched, resumed, fine-tuned, and shown as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

import amc as package
from amc.cli.terminal import show_summary
from amc.errors import RunError
from amc.report import render_report
from amc.report.tables import format_difference, format_score, named_scores, summary_table
from amc.run.settings.scores import SCORES, NamedScore, get_score
from amc.zoo import create_model, load_data, load_weights, model_info
from tests.commands import AS_PRUNED, amc
from tests.tiny import Tiny, compress, images, labelled, tiny

SEARCH = ("search", "digits_cnn", "--episodes", 3, "--search-images", 200, "--out", "run", "--json", *AS_PRUNED)


def regression(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Four numbers to predict for every image."""
    x = images(count, seed)
    return [(x, torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, 0, 0, 0], x[:, 0, 1, 1]], 1))]


def mean_square(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        errors = [(model.eval()(x).double() - y.double()).square() for x, y in data]
    return float(torch.cat(errors).mean())


def test_a_search_by_macro_f1() -> None:
    model = tiny()
    data = labelled(tiny(1), 96, 5)  # another network's answers: this one is often wrong
    result = compress(model, evaluate=data, test=data, score="f1")
    answers, labels = [], []
    with torch.no_grad():
        for x, y in data:
            answers += result.model(x).argmax(1).tolist()
            labels += y.tolist()
    seen = sorted(set(labels) | set(answers))
    expected = f1_score(labels, answers, labels=seen, average="macro")
    assert result.summary["slim"]["score"] == result.summary["slim"]["test"] == pytest.approx(expected)
    assert result.summary["score"] == "macro-f1"
    assert [row.quantity for row in summary_table(result.summary)][-2:] == [
        "Macro F1, search split", "Macro F1, test split",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["top1", "balanced-accuracy", "macro-f1", "auroc"])
def test_every_score_of_classes_can_be_searched_by(name: str) -> None:
    model = tiny()
    data = labelled(model, 96, 5)
    with torch.no_grad():
        probabilities = torch.cat([tiny().eval()(x).double().softmax(1) for x, _ in data])
    answers = roc_auc_score(torch.cat([y for _, y in data]), probabilities, multi_class="ovr")
    dense = compress(model, score=name, evaluate=data).summary["dense"]["score"]
    assert dense == pytest.approx(answers if name == "auroc" else 1)


def test_a_search_by_mean_squared_error_prefers_the_smaller_error(tmp_path: Path) -> None:
    model, data = tiny(), regression(64, 3)
    dense = mean_square(tiny(), data)
    result = compress(model, evaluate=data, test=regression(32, 4), score="mse", run_dir=tmp_path / "run", episodes=8)
    summary = result.summary
    assert summary["dense"]["score"] == pytest.approx(-dense)
    assert summary["slim"]["score"] == pytest.approx(-mean_square(result.model, data), rel=1e-5)
    assert summary["slim"]["test"] == pytest.approx(-mean_square(result.model, regression(32, 4)), rel=1e-5)
    errors = [-record.score for record in result.search.episodes if record.score is not None]
    assert -summary["slim"]["score"] == min(errors)

    rows = {row.quantity: row for row in summary_table(summary)}
    row = rows["Mean squared error, search split"]
    assert row.dense == f"{dense:.4g}"
    assert row.slim == f"{-summary['slim']['score']:.4g}"
    assert row.change == f"{-summary['slim']['score'] - dense:+.4g}".replace("-", "−")
    assert "%" not in row.dense + row.slim + row.change

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show_summary(console, tmp_path / "run", summary)
    text = console.export_text()
    assert f"{dense:.4g}" in text
    assert f"-{dense:.4g}" not in text
    page = render_report(tmp_path / "run").read_text()
    assert f"{dense:.4g} dense" in page
    assert f"-{dense:.4g}" not in page.replace("−", "-").replace("the best −mean squared error", "")
    assert "mean squared error" in page

    with pytest.raises(RunError, match="was started with score 'mse', not 'top1'"):
        compress(tiny(), evaluate=data, run_dir=tmp_path / "run", episodes=8, resume=True)
    again = compress(tiny(), evaluate=data, score="MSE", run_dir=tmp_path / "run", episodes=8, resume=True)
    assert again.policy == result.policy


def test_how_scores_are_written() -> None:
    error = SCORES["mse"].named(-0.01234)
    assert isinstance(error, NamedScore)
    assert error == -0.01234
    assert error < SCORES["mse"].named(-0.01)  # the smaller error is the better score
    assert [format_score(error), format_score(error, percent=False)] == ["0.01234", "0.01234"]
    assert format_score(SCORES["mse"].named(0.0)) == format_score(SCORES["mse"].named(-0.0)) == "0"
    assert format_difference(error, SCORES["mse"].named(-0.02234)) == "+0.01"
    assert format_score(SCORES["auroc"].named(0.975)) == "97.50%"
    assert type(get_score("top1").named(0.5)) is float


def test_summaries_of_all_kinds_are_named_and_old_ones_left_alone() -> None:
    summary: dict[str, Any] = {
        "score": "mse", "dense": {"score": -1.0, "macs": 5}, "slim": {"test_finetuned": -2},
        "baselines": {"uniform": {"median": -3.0, "episodes": 4}, "odd": None}, "rounds": [{"score": -4.0}, None],
        "candidates": [{"score_tuned": -5.0, "episode": 1}],
    }  # fmt: skip
    named = named_scores(summary)
    found = [
        named["dense"]["score"], named["slim"]["test_finetuned"], named["baselines"]["uniform"]["median"],
        named["rounds"][0]["score"], named["candidates"][0]["score_tuned"],
    ]  # fmt: skip
    assert [score.own for score in found] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [type(named["dense"]["macs"]), type(named["baselines"]["uniform"]["episodes"])] == [int, int]
    for name in (None, "top1", 3, ["mse"], "a score of a later version"):
        assert not isinstance(named_scores({**summary, "score": name})["dense"]["score"], NamedScore)


def test_from_the_command_line_a_score_is_kept_resumed_and_fine_tuned_by(tmp_path: Path) -> None:
    done = amc(*SEARCH, "--score", "F1", cwd=tmp_path)
    assert done.code == 0, done.stderr
    data = load_data("digits", search_images=200)
    model = create_model("digits_cnn")
    load_weights(model, model_info("digits_cnn").weights)  # type: ignore[union-attr, arg-type]
    model.eval()
    images_, labels = next(iter(data.search.batches(200)))
    with torch.no_grad():
        expected = f1_score(labels, model(images_).argmax(1), average="macro")
    assert done.json["dense"]["score"] == pytest.approx(expected)
    assert "(macro F1)" in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["score"] == "macro-f1"
    (tmp_path / "run" / "summary.json").unlink()
    resumed = amc("resume", "run", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert resumed.json["slim"] == done.json["slim"]
    assert resumed.json["score"] == "macro-f1"
    tuned = amc("finetune", "run", "--epochs", 1, "--json", cwd=tmp_path)
    assert tuned.code == 0, tuned.stderr
    network = package.load_run(tmp_path / "run")
    with torch.no_grad():
        expected = f1_score(labels, network(images_).argmax(1), average="macro")
    assert tuned.json["slim"]["score_finetuned"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--score", "top6"), "score 'top6' is unknown; did you mean top"),
        (("--score", "mse", "--max-drop", 1), "max-drop counts the images that a network gets right, and mean squared"),
        (("--score", "mse", "--reward", "r_flops"), "reward r_flops is about a share of right answers, and score mse"),
        (("--score", "miou"), "mean IoU has logits [N, C, H, W] and labels [N, H, W], got [64, 10] and [64]"),
        (("--score", "mse"), "mean squared error compares outputs and labels of one shape, got [64, 10] and [64]"),
    ],
)
def test_a_score_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[Any, ...], message: str
) -> None:
    assert message in amc(*SEARCH, *arguments, cwd=tmp_path).complaint
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_dense_network_at_chance_is_warned_of() -> None:
    class Constant(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1e-3 + torch.tensor([1.0, 0, 0, 0])

    model = Constant()
    labels = torch.arange(100) % 4
    result = compress(model, evaluate=[(images(100, 0), labels)])
    chance = [line for line in result.summary["warnings"] if "chance" in line]
    assert chance == [
        "the dense network scores 0.25, which may be chance (0.25): check its weights, the order of the classes and "
        "the normalisation of the images"
    ]
    fine = compress(tiny()).summary["warnings"]
    assert not any("chance" in line for line in fine)


FAILING = """
import itertools, os, sys
calls = itertools.count()
def wide(model): return model.conv1.out_channels / 10
def fails(how):
    def evaluate(model):
        if next(calls) == 4 and not os.path.exists("mended"):
            how()
        return wide(model)
    return evaluate
def memory(): raise MemoryError
def disk(): raise OSError(28, "No space left on device", "/data/cache")
memory, disk, leave = map(fails, (memory, disk, lambda: sys.exit("no licence")))
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "memory",
            "the machine is out of memory (MemoryError) in episode 3; the earlier episodes are kept: free some, then ",
        ),
        ("disk", "the machine is out of disk space (OSError: [Errno 28] No space left on device: '/data/cache') in "),
        ("leave", "the user's code called exit('no licence'), which ends the command; "),
    ],
)
def test_a_search_that_its_machine_stops_is_resumed(tmp_path: Path, name: str, message: str) -> None:
    """Dense is the first call and the uniform policy is left out: the fifth call is that of episode 3."""
    (tmp_path / "own.py").write_text(FAILING)
    search = (
        "search", "digits_cnn", "--episodes", 6, "--no-test", "--baseline", "none", "--recover", "none",
        "--finalists", 0, "--json", "--evaluate",
    )  # fmt: skip
    whole = amc(*search, "own:wide", "--out", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    stopped = amc(*search, f"own:{name}", "--out", "run", cwd=tmp_path)
    assert message in stopped.complaint
    assert len((tmp_path / "run" / "journal.jsonl").read_text().splitlines()) == 1 + 3
    (tmp_path / "mended").touch()
    resumed = amc("resume", "run", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert resumed.json["slim"] == whole.json["slim"]
    assert resumed.json["failed_episodes"] == 0
