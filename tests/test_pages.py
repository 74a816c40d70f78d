"""What the pages show runs: every block of code is run here, or says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amc
from amc.zoo import load_data
from amc.zoo._torchvision import import_torchvision
from tests.commands import ROOT
from tests.documents import CODE, Block, blocks, commands_of, pages, run_commands, run_python, smaller

ELSEWHERE = {("docs/agents.md", "python"): "test_public.py"}  # what another test runs, which also checks its results
SEARCH = "amc search digits_cnn --data digits --out"
OTHER = (
    "amc.compress(model, example_input, calibration=train_loader, evaluate=search_loader, episodes=4, run_dir={!r})\n"
)
BEFORE: dict[str, dict[str, str]] = {  # runs that a page takes for granted: language -> code
    "README.md": {"python": OTHER.format("runs/other")},
    "docs/agents.md": {"bash": f"{SEARCH} runs/half"},
    "docs/schema.md": {"bash": f"{SEARCH} runs/mine"},
    "docs/compare.md": {
        "bash": f"{SEARCH} runs/half\n{SEARCH} runs/third\n{SEARCH} runs/fine --method fine-grained\n"
        "amc sweep digits_cnn --data digits --points 2 --out runs/curve",
        "python": OTHER.format("runs/a") + OTHER.format("runs/b"),
    },
}


class Classifier(nn.Module):
    """A small network in the place of the reader's: [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))
        return logits


def given() -> dict[str, Any]:
    """What pages take for granted: a trained network, an example, and labelled images of three splits."""
    torch.manual_seed(0)
    import_torchvision()  # also where its operators do not fit this build of torch
    digits = load_data("digits")
    model, example = Classifier(), torch.zeros(1, 1, 8, 8)
    loaders = {
        f"{name}_loader": DataLoader(TensorDataset(images[:128], labels[:128]), batch_size=64)
        for name, (images, labels) in {
            "train": next(digits.train.batches(128)),
            "search": next(digits.search.batches(128)),
            "test": next(digits.test.batches(128)),
        }.items()
    }
    amc.finetune(model, loaders["train_loader"], epochs=3)

    images, labels = next(iter(loaders["train_loader"]))

    def accuracy(network: nn.Module) -> float:
        with torch.inference_mode():
            right = [(network(x).argmax(1) == y).sum() for x, y in loaders["search_loader"]]
        return float(sum(right)) / 128

    return {
        "amc": amc, "torch": torch, "nn": nn, "__name__": "page",
        "model": model, "example_input": example, "accuracy": accuracy, **loaders,
        "network": model, "images": images, "labels": labels, "loss_function": nn.CrossEntropyLoss(),
    }  # fmt: skip


def runnable(page: str) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.language in CODE and block.reason is None and (page, block.language) not in ELSEWHERE
    ]


@pytest.mark.parametrize("page", [page for page in pages() if runnable(page)])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    seen = given()
    try:
        taken = [Block(page, 0, language, None, text, None) for language, text in BEFORE.get(page, {}).items()]
        for block in [*taken, *runnable(page)]:
            if block.language == "python":
                run_python(block, seen, tmp_path)
            else:
                run_commands(block, tmp_path)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def test_no_block_hides_behind_another_name_of_a_language() -> None:
    languages = {block.language for page in pages() for block in blocks(page)}
    assert languages <= {*CODE, "text", "json", "kotlin"}


def test_most_blocks_are_run() -> None:
    code = [block for page in pages() for block in blocks(page) if block.language in CODE]
    assert len([block for block in code if block.reason is None]) > len(code) / 2


def test_a_command_is_made_shorter_and_not_another() -> None:
    text = (
        'amc search resnet20 --weights W.safetensors --data cifar10:ROOT --budget "macs<=50%" --out runs/r20  # half\n'
    )
    assert list(commands_of(smaller(text))) == [
        ["amc", "search", "digits_cnn", "--data", "digits", "--budget", "macs<=50%", "--out", "runs/r20"]
    ]
    assert smaller("amc.compress(net, x, episodes=400)") == 'amc.compress(net, x, episodes=4, recover="none")'


def test_blocks_are_found_with_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = "<!-- not run: needs a phone -->\n```bash\nadb devices\n```\n"
    (tmp_path / "page.md").write_text(phone + '\n- a\n\n  ```python title="a.py"\n  x = 1\n  ```\n')
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    assert blocks("page.md") == [
        Block("page.md", 2, "bash", None, "adb devices\n", "needs a phone"),
        Block("page.md", 8, "python", "a.py", "x = 1\n", None),
    ]
