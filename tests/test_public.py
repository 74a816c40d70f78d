"""What `import amc` offers: the names, the examples in their docstrings, and what each result looks like.

The examples see `net` (one convolution and one linear layer), `x` (an example for it), `train` (labelled batches) and
`result` (of `amc.compress(net, x, …, run_dir="runs/mine")`).
"""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.deploy.latencies import Latencies
from amc.pruning import GroupPolicy, LayerPolicy, Policy
from amc.recovery import EpochRecord, FineTuneResult
from amc.search import AGENTS, EpisodeRecord, SearchResult, agent_config
from amc.structure import Certificate, Group, Locked
from amc.structure.channels import Lock

VERBS = (
    "inspect", "compress", "sweep", "finetune", "export", "latency", "compare", "load_run", "from_hub", "apply_policy",
)  # fmt: skip
TOOLS = ("certify", "count_macs", "count_params", "operator_rule", "logger", "keep_zeros")
TYPES = (
    "Structure", "Group", "Layer", "Locked", "Certificate", "SearchConfig", "Observer", "Result", "Policy",
    "SearchResult", "Sweep", "SweepPoint", "FineTuneConfig", "FineTuneResult", "Export", "Latencies",
    "Compared",
)  # fmt: skip
NETWORKS = "docs/your-network.md"
ERRORS = ("AmcError", "BudgetError", "DataError", "EvaluationError", "ModelError", "ResourceError", "RunError")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the examples see; the working directory is one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        torch.manual_seed(0)
        net, x = network(), torch.zeros(1, 1, 6, 6)
        train = [(torch.randn(32, 1, 6, 6), torch.randint(3, (32,))) for _ in range(2)]
        options: dict[str, Any] = {"budget": "macs<=50%", "episodes": 3, "run_dir": "runs/mine"}
        result = amc.compress(net, x, calibration=train, evaluate=train, **options)
        yield {"amc": amc, "torch": torch, "nn": nn, "net": net, "x": x, "train": train, "result": result}


def test_the_surface_is_what_is_documented() -> None:
    assert list(amc.__all__) == [*VERBS, *TOOLS, *TYPES, *ERRORS, "__version__"]
    assert all(getattr(amc, name).__name__ == name for name in amc.__all__ if name != "__version__")
    assert set(amc.__all__) <= set(dir(amc))


def test_importing_amc_and_its_command_line_imports_no_torch() -> None:
    program = "import sys, amc, amc.cli; print('torch' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False False\n"


@pytest.mark.parametrize("name", [*VERBS, *TOOLS, *TYPES])
def test_the_example_of_a_docstring_runs(name: str, names: dict[str, Any]) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(amc, name), name, globs=names)
    assert [len(test.examples) > 0 for test in found] == [True], f"amc.{name} has no example"
    lines: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    torch.manual_seed(0)
    doctest.DocTestRunner(verbose=False, optionflags=options).run(found[0], out=lines.append, clear_globs=False)
    assert lines == [], "".join(lines)


def test_the_examples_of_the_page_on_agents_run(names: dict[str, Any]) -> None:
    pytest.importorskip("stable_baselines3")
    page = Path(__file__).parent.parent.joinpath("docs/agents.md").read_text()
    own, library = re.findall(r"```python\n(.*?)```", page, re.S)
    seen = {**names}
    exec(own, seen)
    assert seen["result"].summary["agent"] == "halves"
    exec(library, seen)
    assert amc.count_macs(seen["slim"], names["x"]) <= 0.5 * amc.count_macs(names["net"], names["x"])


def test_the_page_on_agents_names_every_agent_and_its_options() -> None:
    page = Path(__file__).parent.parent.joinpath("docs/agents.md").read_text()
    for name in AGENTS:
        assert f"`{name}`" in page, name
        hidden = {"uniform_first"}
        for option in {field.name for field in fields(agent_config(name, 100, {}))} - hidden:
            assert f"`{option}`" in page, (name, option)


@pytest.mark.parametrize("name", [*VERBS, *TOOLS])
def test_a_verb_has_at_most_ten_parameters(name: str) -> None:
    assert len(inspect.signature(getattr(amc, name)).parameters) <= 10


@pytest.mark.parametrize(("page", "name"), [*(("README.md", verb) for verb in VERBS), (NETWORKS, "operator_rule")])
def test_the_documentation_shows_a_verb(page: str, name: str) -> None:
    assert f"amc.{name}(" in Path(__file__).parent.parent.joinpath(page).read_text()


def test_a_result_looks_like_what_it_is(names: dict[str, Any]) -> None:
    result = names["result"]
    dense, slim = ({"macs": macs, "score": score} for macs, score in ((12_400_000, 0.924), (6_170_000, 0.8012)))
    summary = {"dense": dense, "slim": slim, "budget": "macs<=50%", "score": "top1"}
    assert repr(replace(result, summary=summary)) == (
        "Result(channel, macs<=50%: 12.40 M -> 6.170 M MACs, score 0.9240 -> 0.8012, 1 group)"
    )
    masked = Policy((LayerPolicy("a", 90, 45), LayerPolicy("b", 10, 5)), "fine-grained")
    errors = {"dense": dense | {"score": -0.25}, "slim": slim | {"score": -0.5}, "budget": "none", "score": "mse"}
    assert repr(replace(result, summary=errors, policy=masked)) == (
        "Result(fine-grained: 12.40 M -> 6.170 M MACs, score 0.2500 -> 0.5000, 2 layers)"
    )
    assert repr(replace(result, summary=summary | {"score": None})).count("score 0.9240 -> 0.8012") == 1


RECORD = {
    "runtime": "onnxruntime", "runtime_version": "1.31.1", "threads": 1,
    "networks": {
        "dense": {"latency_ms": 3.214, "spread": 0.01, "steady": True, "file_bytes": 4096, "calls": 9},
        "slim": {
            "latency_ms": 1.8, "spread": 0.01, "steady": True, "file_bytes": 2048, "ratio": 0.56,
            "uncertainty": 0.02, "verdict": "faster",
        },
    },
}  # fmt: skip
BEST = EpisodeRecord(1, (4,), {"macs": 768.0}, 0.75, -0.25)
FAILED = EpisodeRecord(2, (5,), {"macs": 960.0}, None, None, "RuntimeError: no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Group("layer1.0", 16, 0, (1,), (2, 3)), "Group(layer1.0: 16 channels)"),
        (
            Locked("fc", 10, Lock("network output", "fc", "/home/me/net.py:12")),
            "Locked(fc: 10 channels, network output in 'fc' (net.py:12))",
        ),
        (Certificate(3, 2.5e-13, ()), "Certificate(3 keep sets, largest difference 2e-13, passed)"),
        (
            Certificate(3, 0.0, (("a", Lock("x")), ("b", Lock("x")))),
            "Certificate(3 keep sets, largest difference 0e+00, 2 failed: a, b)",
        ),
        (GroupPolicy("a", 8, (0, 2, 3)), "GroupPolicy(a: 3 of 8 channels)"),
        (Policy((GroupPolicy("a", 8, (0, 2, 3)),)), "Policy(channel: 3 of 8 kept, 1 group)"),
        (Policy((LayerPolicy("a", 990, 45), LayerPolicy("b", 9, 5)), "2:4"), "Policy(2:4: 50 of 999 kept, 2 layers)"),
        (BEST, "EpisodeRecord(1: score 0.7500, reward -0.2500)"),
        (FAILED, "EpisodeRecord(2: RuntimeError: no)"),
        (
            SearchResult((BEST, FAILED), (BEST,)),
            "SearchResult(2 episodes, 1 failed; best: EpisodeRecord(1: score 0.7500, reward -0.2500))",
        ),
        (
            FineTuneResult(nn.Linear(9, 9), (EpochRecord(1, 1.5, 0.1, 2.0), EpochRecord(2, 0.5, 0.1, 2.0, 0.875))),
            "FineTuneResult(2 epochs, loss 1.5000 -> 0.5000, score 0.8750)",
        ),
        (FineTuneResult(nn.Linear(9, 9), (EpochRecord(1, 1.5, 0.1, 2.0),)), "FineTuneResult(1 epoch, loss 1.5000)"),
        (
            amc.Export(
                "onnx", "/tmp/a/slim.onnx", {"slim.onnx": 12_345}, 12_345, False, True, None, ((1, 3, 8, 8),),
                "onnxruntime 1.31.1", {"random": 3.1e-7, "batch": 1e-7}, 1e-3, 0.5,
            ),
            "Export(onnx, slim.onnx: 12,345 bytes, error 3e-07 on onnxruntime 1.31.1)",
        ),
        (
            Latencies.of(RECORD),
            "onnxruntime 1.31.1, 1 thread: dense 3.21 ms, slim 1.8 ms (0.56 ± 0.02 of dense: faster)",
        ),
    ],
)  # fmt: skip
def test_a_repr_is_one_short_line(value: object, text: str) -> None:
    assert repr(value) == text


def test_a_long_repr_is_cut() -> None:
    assert repr(Group("layer." * 40, 16, 0, (), ())) == ("Group(" + "layer." * 40)[:119] + "…"


def test_the_structure_and_its_layers_are_short(names: dict[str, Any]) -> None:
    structure = amc.inspect(names["net"], names["x"])
    assert repr(structure) == "Structure(1 group of 8 channels, 1 locked; 1,536 MACs, 467 parameters)"
    assert [repr(layer) for layer in structure.layers] == [
        "Layer(0: conv 8x1x3x3, 1,152 MACs)", "Layer(3: linear 3x128, 384 MACs)",
    ]  # fmt: skip


def test_latencies_hold_what_was_measured() -> None:
    times = Latencies.of(RECORD)
    assert times.to_json() == RECORD
    assert times.latency_ms == 3.214
    dense, slim = times.networks.values()
    assert (dense.ratio, dense.verdict, dense.file_bytes) == (None, None, 4096)
    assert (slim.latency_ms, slim.ratio, slim.uncertainty, slim.verdict) == (1.8, 0.56, 0.02, "faster")


def test_a_latency_setting_of_no_such_name_is_refused(names: dict[str, Any]) -> None:
    with pytest.raises(amc.AmcError, match="unknown setting 'max_second'; did you mean 'max_seconds'"):
        amc.latency(names["net"], names["x"], max_second=1)


@pytest.mark.parametrize("path", ["slim", "slim.bin", "slim.xml"])
def test_a_format_that_the_name_does_not_tell_is_asked_for(path: str, names: dict[str, Any]) -> None:
    with pytest.raises(amc.AmcError) as error:
        amc.export(names["net"], names["x"], path)
    assert str(error.value) == (
        f"the format of '{path}' is not clear; end the name in .onnx, .pt2, .pte or .tflite, or give format"
    )
    assert not Path(path).exists()


@pytest.mark.parametrize(("path", "format"), [("slim.onnx", "onnx"), ("slim.pt2", "torch")])
def test_the_suffix_tells_the_format(path: str, format: str, names: dict[str, Any]) -> None:
    assert amc.export(names["net"], names["x"], path).format == format
