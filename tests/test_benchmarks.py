"""Every figure of the documentation comes from a script that is in the index, and from the results that are kept."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import amc
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import AmcError
from amc.zoo.images import ImageSet, Normalisation

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
INDEX = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"python benchmarks/(\w+)\.py([^`\n#…]*)")
PAGES = ("benchmarks", "latency", "sparse", "networks", "kernels", "workers", "tasks")
NO_FIGURE = {"render", "train_digits", "vision_transformers"}  # scripts that measure nothing
QUOTED = {  # figures that the project's README quotes
    "search_quality", "reconstruction", "against_torch_pruning", "methods", "latency_search", "latency_runtimes",
    "guarantee", "rounds", "score_correlation", "search_toys",
}  # fmt: skip


def committed(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def rendered(page: str, text: str) -> str:
    """What render.py makes of this text of the page."""
    return str(importlib.import_module("render").PAGES[page](text))


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts, which import each other by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def script_names() -> list[str]:
    """Files that run, and do not only help others."""
    return sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def commands(text: str) -> list[tuple[str, str]]:
    """Scripts and their arguments in a text, without the line that stands for all of them."""
    return [(name, rest.strip()) for name, rest in COMMAND.findall(text) if name != "NAME"]


def parse(name: str, arguments: str) -> argparse.Namespace:
    """SystemExit, which fails the test, where the script does not understand its arguments."""
    args: argparse.Namespace = importlib.import_module(name).options().parse_args(shlex.split(arguments))
    return args


def test_the_index_lists_every_file() -> None:
    linked = re.findall(r"\[(\w+)\.py\]\((\w+)\.py\)", INDEX)
    assert all(text == target for text, target in linked)
    assert {target for _, target in linked} == {path.stem for path in BENCHMARKS.glob("*.py")}


def test_scripts_that_the_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\[(\w+)\.py\]\(benchmarks/(\w+)\.py\)", text)
    assert {target for _, target in linked} >= QUOTED
    assert all(text == target and target in script_names() for text, target in linked)


def test_the_index_has_a_command_for_every_script() -> None:
    assert {name for name, _ in commands(INDEX)} == set(script_names())


@pytest.mark.parametrize(("name", "arguments"), commands(INDEX))
def test_commands_of_the_index_are_understood(name: str, arguments: str) -> None:
    parse(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_are_understood(page: str) -> None:
    text = committed(page)
    shown = commands(text)
    for name, arguments in shown:
        parse(name, arguments)
    named = {name for name, _ in shown} | set(re.findall(r"benchmarks/(\w+)\.py", text))
    assert named
    assert named <= set(script_names())


@pytest.mark.parametrize("name", script_names())
def test_help_shows_the_docstring(name: str) -> None:
    module = importlib.import_module(name)
    shown = module.options().format_help()
    assert module.__doc__.strip() in shown
    assert f"python benchmarks/{name}.py" in shown


@pytest.mark.parametrize("name", sorted(set(script_names()) - NO_FIGURE))
def test_figures_have_measure_and_section_and_a_place_on_a_page(name: str) -> None:
    module = importlib.import_module(name)
    assert callable(module.measure)
    assert callable(module.section)
    assert callable(module.main)
    assert module.RESULT.endswith(".json")
    assert getattr(importlib.import_module("render"), name) is module


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_what_the_results_give(page: str) -> None:
    assert rendered(page, committed(page)) == committed(page)


def blanked(page: str) -> str:
    """The page without its measured parts, so that nothing can be copied from them."""
    text = committed(page)
    if page == "latency":
        head, mark, _ = text.partition("## Measured\n\n")
        return f"{head}{mark}old\n"
    text = re.sub(r"(<!-- (?:measured|the tables).*?-->\n\n).*?(\n<!-- end)", r"\1old\n\2", text, flags=re.DOTALL)
    return re.sub(r"(training_format\.py`\):\n\n).*?(\nThe context costs)", r"\1old\n\2", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["latency", "sparse", "kernels"])
def test_measured_parts_are_written_anew(page: str) -> None:
    before = blanked(page)
    assert "old\n" in before
    assert rendered(page, before) == committed(page)


@pytest.mark.parametrize("page", ["benchmarks", "networks"])
def test_whole_pages_need_no_page_to_start_from(page: str) -> None:
    assert rendered(page, "") == committed(page)


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(AmcError, match="measured: files"):
        rendered("sparse", "# Sparse files\n")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in the place of the committed results."""
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("results")
def test_pages_without_results_stay_as_they_are(page: str) -> None:
    assert rendered(page, committed(page)) == committed(page)


DIGITS = f"--model digits_cnn --weights {ROOT / 'src/amc/zoo/digits_cnn.safetensors'} --data digits"
QUICK = f"{DIGITS} --search-images 40 --threads 1"
SEARCH = f"{QUICK} --episodes 3 --epochs 1 --runs RUNS"
SMALL = {  # name: (arguments, lines of its tables)
    "scoring_speed": ("--model resnet20 --images 2 --rounds 1", 7),
    "search_toys": ("--episodes 4 --seeds 2 --agents swaps cma --images 0 500", 2 * 3),  # "random" joins by itself
    "reconstruction": (f"{QUICK} --fractions 0.5", 2),
    "compensation": (QUICK, 8),
    "masking_cost": (f"{QUICK} --rounds 2", 2),
    "episode_cost": (f"{QUICK} --rounds 2", 9),
    "engines": (f"{QUICK} --episodes 3", 4 + 4),
    "batches": ("--episodes 8 --seeds 1 --batches 1 4 --toys 'additive, residual, 9'", 2),
    "recovery": (f"{QUICK} --budgets macs<=50% --seeds 0", 1),
    "refusals": (f"{QUICK} --policies uniform --cases 1 --episodes 1", 3 * 5),
    "padded_shortcuts": (f"{QUICK} --policies 2 --seeds 1 --budgets macs<=50%", 3),  # none there: twice the same
    "approximate": ("--search-images 40 --policies 2 --seeds 1 --epochs 1 --budgets macs<=50%", 3),
    "score_correlation": (f"{QUICK} --policies 3 --epochs 1", 4),
    "tasks": (
        "--tasks keywords --budgets macs<=50% --policies 2 --seeds 1 --steps 2 --search-images 50 "
        "--calibration-images 50 --test-images 100",
        1,
    ),
    "search_agents": (f"{QUICK} --policies 4 --seeds 0 --shares 60", 3),
    "search_quality": (f"{SEARCH} --seeds 0 --tune uniform", 5 + 3),  # five policies; three fine-tuned
}
LONG = {
    "methods": (f"{SEARCH} --seeds 0 --budgets params<=50% --methods channel 2:4", 2 + 2),  # and two for 2:4 alone
    "rounds": (SEARCH, 4 + 2),
    "against_torch_pruning": (SEARCH, 4),
    "many_workers": (
        f"{QUICK} --policies 3 --batches 1 4 --episodes 8 --round-trips 3 --rounds 1 --checked 4",
        2 + 2 + 7 + 7 + 8 + 1,  # kinds of policies, batches, numbers of workers twice, conditions, a check
    ),
}


@pytest.mark.parametrize(
    ("name", "arguments", "lines"),
    [
        *(pytest.param(name, *case, id=name) for name, case in SMALL.items()),
        *(pytest.param(name, *case, id=name, marks=pytest.mark.slow) for name, case in LONG.items()),
    ],
)
def test_figures_save_what_they_measure_and_show(
    name: str, arguments: str, lines: int, results: Path, tmp_path: Path
) -> None:
    figure = importlib.import_module(name)
    args = parse(name, arguments.replace("RUNS", str(tmp_path / "runs")))
    record = figure.measure(args)
    saved = json.loads((results / figure.RESULT.format(**vars(args))).read_text(encoding="utf-8"))
    assert figure.section(saved) == figure.section(record)
    rows = re.findall(r"^\|.*\|$", figure.section(saved), flags=re.MULTILINE)
    heads = sum(set(row) <= set("| -:") and "---" in row for row in rows)
    assert len(rows) - 2 * heads == lines


@pytest.mark.usefixtures("results")
def test_toys_are_searched_once_and_again_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = importlib.import_module("search_toys")
    searched = []

    def search(case: object, episodes: int) -> object:
        searched.append(str(case))
        return figure.Outcome((0.5, 0.6, 0.7 + 0.1 * len(searched)), 0.9, 0.0)

    monkeypatch.setattr(figure, "searched", search)
    one = "--episodes 8 --seeds 2 --images 0 --toys 'agreeing, residual, 18' --agents swaps"
    first = figure.measure(parse("search_toys", one))
    assert searched == [
        f"agreeing, residual, 18 | 0 | {agent} | {seed}" for seed in (0, 1) for agent in ("random", "swaps")
    ]
    assert figure.measure(parse("search_toys", one)) == first
    assert len(searched) == 4
    figure.measure(parse("search_toys", f"{one} --again"))
    assert searched[4:] == [text for text in searched[:4] if "swaps" in text]
    figure.measure(parse("search_toys", one.replace("8", "4", 1)))  # another length: nothing of the record fits
    assert len(searched) == 10


def test_the_share_of_the_gap_is_measured_from_the_best_random_policy() -> None:
    figure = importlib.import_module("search_toys")
    toy = next(iter(figure.TOYS))
    found = {
        figure.Case(toy, 0, "random", 0): figure.Outcome((0.4, 0.5, 0.6), 0.8, 0.1),
        figure.Case(toy, 0, "cma", 0): figure.Outcome((0.55, 0.7, 0.8), 0.8, 0.1),
    }
    (row,) = figure.shares(found, toy, "cma")
    assert row == pytest.approx([-0.25, 0.5, 1.0])  # the gap is 0.2
    assert figure.cell([row, [0.25, 0.5, 1.0], [0.75, 0.7, 1.0]]) == "25 / 50 / 100"
    for item in (*found, *found.values()):
        assert type(item).parse(str(item)) == item
    assert figure.agent_of("ddpg:elite_fraction=0,hidden=16") == ("ddpg", {"elite_fraction": 0, "hidden": 16})


def test_the_whole_job_of_the_gpu_benchmark(results: Path, tmp_path: Path) -> None:
    figure = importlib.import_module("gpu")
    args = parse("gpu", f"{QUICK} --device cpu --runs {tmp_path} --episodes 3 --epochs 1".replace("--threads 1", ""))
    found = figure.whole(args)
    assert json.loads((results / "gpu-digits_cnn.json").read_text(encoding="utf-8")) == found
    assert "3 policies and the recovery of the best take" in figure.whole_job(found)


def test_vision_transformers_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = importlib.import_module("vision_transformers")
    assert [amc.count_params(figure.NETWORKS[name]()) for name in ("deit_tiny", "vit_small")] == [5362762, 21342346]
    torch.manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    split = ImageSet(images, torch.arange(64) % 2, normalisation=Normalisation((0.5,) * 3, (0.25,) * 3))
    images[split.labels == 1] //= 4
    monkeypatch.setattr(figure, "load_data", lambda _: SimpleNamespace(train=split))
    monkeypatch.setattr(figure, "BATCHES", 4)
    monkeypatch.setitem(figure.NETWORKS, "deit_tiny", lambda: figure.vision_transformer(24, 3))
    args = parse("vision_transformers", "deit_tiny --data x --weights y --epochs 12 --device cpu --rate 0.003")
    assert Evaluator(split)(figure.train(args)) > 0.9
