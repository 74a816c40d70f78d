"""The latency table of a network, on a bench whose latency is known."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amc.deploy.device.protocol import DeviceInfo, Request
from amc.deploy.measure import MeasureSettings
from amc.deploy.table import Latency, NoiseError, latency_table, read_table
from amc.deploy.table.bench import NETWORK_SETTINGS, DeviceBench, LocalBench
from amc.deploy.table.blocks import Block, BlockRun, Run, blocks_of
from amc.deploy.table.cost import fit
from amc.deploy.table.measuring import Told, block_times, find_step
from amc.deploy.table.plan import CACHED_WEIGHTS, network_key, plan_table
from amc.errors import AmcError, BudgetError, RunError
from amc.pruning.methods.base import MethodOptions
from amc.pruning.methods.channel import ChannelMethod
from amc.search import Bounds, Budget, Metric, Problem
from amc.structure import Structure, inspect
from tests.deploy.benches import MACHINE, PLACE, OracleBench, smooth, stairs, uneven
from tests.structure.sequences import Experts, Gpt, Recogniser

EXAMPLE = torch.zeros(1, 3, 12, 12)


class Net(nn.Module):
    """A convolution, a separable one, a shortcut and a classifier behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.point, self.inner = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 24, 3, padding=1)
        self.back, self.head = nn.Conv2d(24, 32, 3, padding=1), nn.Linear(32 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depth(self.stem(x).relu()).relu()).relu()
        x = (x + self.back(self.inner(x).relu())).relu()
        x = nn.functional.max_pool2d(x, 2)
        return self.head(x.flatten(1))


@cache
def made() -> tuple[nn.Module, Structure, ChannelMethod]:
    model = Net().eval()
    structure = inspect(model, EXAMPLE)
    return model, structure, ChannelMethod(model, structure, MethodOptions(round_to=1))


def network(law: object = smooth, points: int = 99, folder: Path | None = None, **changes: object) -> Latency:
    model, structure, method = made()
    bench = changes.pop("bench", None) or OracleBench(law)  # type: ignore[arg-type]
    told = Told(**{name: changes.pop(name) for name in ("check", "warn", "on_step") if name in changes})  # type: ignore[arg-type]
    choices = [decision.choices for decision in method.decisions]
    return latency_table(
        model, structure, EXAMPLE, choices, method.builder(None).build, bench,  # type: ignore[arg-type]
        points=points, folder=folder, told=told, **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def decisions() -> tuple[Sequence[int], ...]:
    return tuple(decision.choices for decision in made()[2].decisions)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_blocks_are_the_layers_with_the_widths_of_a_policy() -> None:
    model, structure, _ = made()
    layers = {spec.layer: spec for spec in blocks_of(model, structure)}
    names = [group.name for group in structure.groups]
    assert names == ["stem", "point", "inner"]
    keep = [5, 7, 11]
    widths = {name: (int(spec.inputs.at(keep)), int(spec.outputs.at(keep))) for name, spec in layers.items()}
    assert widths == {
        "stem": (3, 5), "depth": (5, 5), "point": (5, 7), "inner": (7, 11), "back": (11, 7), "head": (7 * 9, 10),
    }  # fmt: skip
    assert layers["depth"].block.per_group == (1, 1)
    assert layers["depth"].block.name == "conv 12x12 k3x3 s2x2 p1x1 d1x1 per-group 1:1"
    assert [layers[name].positions for name in ("stem", "depth", "head")] == [144, 36, 1]
    assert layers["head"].inputs.unit == 9
    assert layers["inner"].block == layers["back"].block


@pytest.mark.parametrize("copies", [1, 3])
def test_a_block_runs_at_its_widths(copies: int) -> None:
    model, structure, _ = made()
    for spec in blocks_of(model, structure):
        inputs, outputs = int(spec.inputs.at([5, 7, 11])), int(spec.outputs.at([5, 7, 11]))
        run = BlockRun(spec.block, inputs, outputs, copies)
        before = torch.random.get_rng_state()
        result = run.module()(*run.example())
        assert torch.equal(torch.random.get_rng_state(), before)
        assert result.shape[1] == outputs
        assert result[0, 0].numel() == spec.positions


def test_block_times_exclude_the_cost_of_the_call_itself() -> None:
    block = Block("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    times = block_times([(block, 16, 24), (block, 8, 8)], OracleBench(smooth))
    assert times == pytest.approx([smooth(16, 24, 576), smooth(8, 8, 576)])


@pytest.mark.parametrize(("law", "expected"), [(smooth, 1), (stairs, 8)])
def test_the_step_of_the_staircase_is_found(law: object, expected: int) -> None:
    assert find_step(OracleBench(law)) == expected  # type: ignore[arg-type]


def test_every_policy_is_predicted_exactly_where_every_width_was_measured(folder: Path) -> None:
    latency = network(stairs, folder=folder)
    assert latency.table.step == 8
    build = made()[2].builder(None).build
    generator = np.random.default_rng(1)
    for _ in range(20):
        keep = [int(generator.choice(options)) for options in decisions()]
        assert latency.cost(np.array(keep)) == pytest.approx(latency.bench.whole(build(keep), EXAMPLE), rel=2e-3)  # type: ignore[attr-defined]
    assert abs(latency.errors).max() < 2e-3
    assert float(latency.cost(np.array([options[-1] for options in decisions()]))) == latency.dense_ms


def test_few_widths_are_enough_for_a_smooth_law(folder: Path) -> None:
    latency = network(smooth, points=2, folder=folder)
    assert abs(latency.errors).max() < 0.01
    assert len(latency.table.times) < 30


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from([smooth, stairs, uneven]))
def test_latency_never_falls_with_a_keep_count_and_does_not_depend_on_the_batch(
    data: st.DataObject, law: object
) -> None:
    latency = tables()[law]  # type: ignore[index]
    keep = [data.draw(st.sampled_from(options)) for options in decisions()]
    more = [
        data.draw(st.sampled_from([k for k in options if k >= low]))
        for options, low in zip(decisions(), keep, strict=True)
    ]
    one, other = latency.cost(np.array(keep)), latency.cost(np.array(more))
    assert other >= one
    rows = np.array([more, keep] * 17 + [keep])
    assert (latency.cost(rows)[1::2] == one).all()


@cache
def tables() -> dict[object, Latency]:
    with tempfile.TemporaryDirectory() as place:
        return {law: network(law, points=4, folder=Path(place, law.__name__)) for law in (smooth, stairs, uneven)}


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 1), st.randoms(use_true_random=False))
def test_every_episode_under_a_latency_budget_holds_it_by_the_table(fraction: float, chance: object) -> None:
    method = made()[2]
    latency = tables()[uneven]
    least = float(latency.cost(np.array([options[0] for options in decisions()]))) / latency.dense_ms
    share = max(fraction, least)
    problem = Problem(method.decisions, {Metric.LATENCY: latency.cost}, (Budget(Metric.LATENCY, fraction=share),))
    for floor in (None, 0.98):
        bounds, keep = Bounds(problem, floor=floor), list[int]()
        for _ in method.decisions:
            keep.append(chance.choice(bounds.allowed(keep).tolist()))  # type: ignore[attr-defined]
        assert problem.cost(Metric.LATENCY, keep) <= problem.limit(problem.budgets[0])


def test_a_table_is_measured_once_and_taken_from_the_cache_after_that(folder: Path) -> None:
    first, warnings = network(stairs, folder=folder), list[str]()
    bench = OracleBench(stairs)
    second = network(folder=folder, bench=bench, warn=warnings.append)
    assert bench.asked == {"blocks": 0, "networks": 0}
    assert warnings == []
    assert second.table == first.table
    keep = np.array([options[0] for options in decisions()])
    assert second.cost(keep) == first.cost(keep)
    (file,) = (folder / "latency").iterdir()
    assert read_table(file) == first.table


def test_a_table_of_another_runtime_version_is_measured_again_with_a_warning(folder: Path) -> None:
    network(stairs, folder=folder)
    bench, warnings = OracleBench(stairs).version("1.1"), list[str]()
    network(folder=folder, bench=bench, warn=warnings.append)
    assert bench.asked["blocks"] > 0
    assert warnings == [
        "the latency table was measured with onnxruntime 1.0, but the version is now 1.1; measuring it again"
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"amc latency table"', '"something"'),
        lambda text: text.replace('"latency_ms": 0.', '"latency_ms": -0.', 1),
        lambda text: json.dumps(json.loads(text) | {"blocks": {}}),
        lambda text: json.dumps(json.loads(text) | {"network": "0" * 16}),
        lambda text: json.dumps(json.loads(text) | {"networks": []}),
        lambda text: json.dumps(json.loads(text) | {"step": "3 or so"}),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_table_is_measured_again_with_a_warning(folder: Path, damage: object) -> None:
    network(stairs, folder=folder)
    (file,) = (folder / "latency").iterdir()
    good = file.read_text()
    file.write_text(damage(good))  # type: ignore[operator]
    bench, warnings = OracleBench(stairs), list[str]()
    network(folder=folder, bench=bench, warn=warnings.append)
    assert bench.asked["blocks"] > 0
    assert len(warnings) == 1
    assert warnings[0].endswith("measuring it again")
    assert str(file) in warnings[0]
    assert json.loads(file.read_text())["blocks"] == json.loads(good)["blocks"]


def test_a_cache_that_cannot_be_written_only_causes_a_warning(tmp_path: Path) -> None:
    (tmp_path / "latency").write_text("in the way")
    warnings: list[str] = []
    assert network(stairs, folder=tmp_path, warn=warnings.append).dense_ms > 0
    assert len(warnings) == 1
    assert warnings[0].startswith("the latency table is not kept for later: ")


def test_the_key_changes_with_whatever_latency_depends_on() -> None:
    model, structure, _ = made()

    def key(network: nn.Module, changed: Sequence[Sequence[int]], example: Tensor = EXAMPLE) -> str:
        made = inspect(network, example)
        return network_key(network, plan_table(network, made, changed), changed)

    assert len(structure.groups) == 3
    usual = key(model, decisions())
    assert key(Net().eval(), decisions()) == usual  # other weights
    other = Net().eval()
    other.extra = nn.Hardswish()
    assert key(other, decisions()) != usual
    assert key(model, [options[1:] for options in decisions()]) != usual
    assert key(model, decisions(), torch.zeros(1, 3, 13, 13)) != usual


def test_a_resumed_search_uses_its_own_table_or_raises_run_error(tmp_path: Path, folder: Path) -> None:
    first = network(stairs, folder=folder)
    stored = tmp_path / "latency-table.json"
    stored.write_text(json.dumps(first.table.to_json()))
    bench = OracleBench(stairs)
    assert network(bench=bench, stored=stored).table == first.table
    assert bench.asked == {"blocks": 0, "networks": 0}
    with pytest.raises(RunError, match=r"started with onnxruntime 1\.0, but the runtime is now onnxruntime 1\.1"):
        network(bench=bench.version("1.1"), stored=stored)
    stored.write_text(json.dumps(first.table.to_json() | {"network": "0" * 16}))
    with pytest.raises(RunError, match="the table of another network"):
        network(bench=bench, stored=stored)
    stored.write_text("{")
    with pytest.raises(
        RunError, match=r"is not valid JSON in line 1 .*; the search cannot continue without its own table"
    ):
        network(bench=bench, stored=stored)


def test_latencies_that_do_not_follow_the_table_are_refused() -> None:
    with pytest.raises(NoiseError, match="cannot be measured reliably on this machine: smaller networks are no faster"):
        network(bench=OracleBench(smooth, factor=-0.001))
    sums = np.array([[3.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]])
    correction = fit(sums, np.array([7.0, 5.0, 3.0]))
    assert correction.slopes == pytest.approx([2.0] + [0.0] * 11)


class Wide(nn.Module):
    """Three convolutions, the middle one with more weights than a second-level cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)
        self.head = nn.Conv2d(256, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.stem(x).relu()).relu()).mean((2, 3))


class CachedBench(OracleBench):
    """Weights beyond 200,000 cause waiting: those of a whole network, or of all copies of a single block."""

    def _block(self, run: Run) -> float:
        weights = run.copies * run.block.weights(run.inputs, run.outputs) if isinstance(run, BlockRun) else 0
        return super()._block(run) + waiting(weights)

    def whole(self, module: nn.Module, example_input: Any) -> float:
        return super().whole(module, example_input) + waiting(sum(p.numel() for p in module.parameters()))


def waiting(weights: int) -> float:
    return 1e-5 * max(0, weights - 200_000)


def test_waiting_for_weights_is_learnt_from_whole_networks_and_not_from_blocks(folder: Path) -> None:
    model, example = Wide().eval(), torch.zeros(1, 3, 2, 2)
    structure = inspect(model, example)
    method, bench = ChannelMethod(model, structure, MethodOptions()), CachedBench(smooth)
    choices, build = [decision.choices for decision in method.decisions], method.builder(None).build
    latency = latency_table(model, structure, example, choices, build, bench, folder=folder)
    assert max(9 * a * b for name, a, b in latency.table.times if "k3x3" in name) <= CACHED_WEIGHTS
    assert waiting(590_000) > 0.4 * latency.dense_ms  # waiting is a large share of the latency
    assert abs(latency.errors).mean() < 0.03  # the cache's size lies between two knots
    assert abs(latency.errors).max() < 0.1
    assert np.count_nonzero(latency.cost.correction.slopes[2:]) > 0
    for level in (0.3, 0.6, 0.9):
        keep = [min(options, key=lambda k: abs(k - level * options[-1])) for options in choices]
        assert latency.cost(np.array(keep)) == pytest.approx(bench.whole(build(keep), example), rel=0.1)


def test_the_least_and_the_dense_network_are_checked_before_any_block_is_measured(folder: Path) -> None:
    bench, checked = OracleBench(smooth), list[float]()

    def check(dense_ms: float, least_ms: float) -> None:
        checked.extend((dense_ms, least_ms))
        raise BudgetError("out of reach")

    with pytest.raises(BudgetError, match="out of reach"):
        network(bench=bench, folder=folder, check=check)
    build = made()[2].builder(None).build
    ends = [[options[end] for options in decisions()] for end in (-1, 0)]
    assert checked == pytest.approx([bench.whole(build(keep), EXAMPLE) for keep in ends])
    assert bench.asked["blocks"] == 5  # the step's probes
    assert not list(folder.glob("**/*.json"))


def test_the_measurement_is_told_part_by_part(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    network(bench=OracleBench(smooth), folder=folder, on_step=lambda *step: steps.append(step))
    done, total = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert {total[0]} == {done[-1]} == set(total)  # the bench of tests times all blocks at once


def test_a_table_that_predicts_badly_causes_a_warning(folder: Path) -> None:
    class Unsteady(OracleBench):
        def networks(self, *arguments: Any) -> dict[str, Any]:
            record = super().networks(*arguments)
            for index, entry in enumerate(record["networks"].values()):
                entry |= {"latency_ms": entry["latency_ms"] * (1 + 0.3 * (index % 2)), "spread": 0.1}
            return record

    warnings: list[str] = []
    for _ in range(2):  # measured, and from the cache
        latency = network(bench=Unsteady(smooth), folder=folder, warn=warnings.append)
    assert len(warnings) == 2
    assert re.match(r"the latency table is uncertain: it is off by up to \d\d%, and 26 of the 26 networks", warnings[0])
    assert latency.summary()["unsteady"] == 26
    assert abs(latency.errors).max() > 0.12
    network(bench=OracleBench(smooth), folder=folder / "other", warn=warnings.append)
    assert len(warnings) == 2


class Board:
    """A device whose latency in ms is the number of bytes of the model's files."""

    def __init__(self, runtimes: dict[str, str]) -> None:
        self.info = DeviceInfo("0.1.0", MACHINE, runtimes, 1 << 30, 300.0)
        self.requests: list[Request] = []

    def describe(self) -> DeviceInfo:
        return self.info

    def measure(self, request: Request, files: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        self.requests.append(request)
        sizes = {model.name: sum(map(len, parts)) for model, parts in zip(request.models, files, strict=True)}
        return {"networks": {name: {"latency_ms": float(size)} for name, size in sizes.items()}}


def test_a_device_is_sent_the_files_of_blocks_and_networks() -> None:
    board = Board({"onnxruntime": "1.0"})
    bench = DeviceBench(board, "http://board:8765", "onnxruntime", threads=2)
    assert (bench.place.version, bench.place.threads, bench.place.device) == ("1.0", 2, "http://board:8765")
    block = Block("conv", (4, 4), (1, 1), (1, 1), (0, 0), (1, 1))
    runs = [BlockRun(block, 8, 8, 1), BlockRun(block, 64, 64, 1)]
    small, large = bench.blocks(runs)
    assert large - small == pytest.approx(4 * (64 * 65 - 8 * 9), rel=0.01)  # bytes of weights and biases
    assert {(r.runtime, r.version, r.threads) for r in board.requests} == {("onnxruntime", "1.0", 2)}
    assert [spec.shape for model in board.requests[0].models for spec in model.inputs] == [(1, 8, 4, 4), (1, 64, 4, 4)]
    record = bench.networks({"dense": made()[0]}, EXAMPLE, NETWORK_SETTINGS)
    assert record["networks"]["dense"]["latency_ms"] > 4 * sum(p.numel() for p in made()[0].parameters())
    with pytest.raises(AmcError, match="runtime ncnn is not on the device at http://board:8765; it has onnxruntime"):
        DeviceBench(board, "http://board:8765", "ncnn")


def test_onnx_runtime_times_blocks_and_networks() -> None:
    quick = MeasureSettings(rounds=3, warmup=1, round_seconds=0.001, precision=0.5, max_seconds=0)
    bench = LocalBench("onnxruntime", settings=quick)
    block = Block("conv", (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))
    steps: list[tuple[int, int]] = []
    small, large = bench.blocks(
        [BlockRun(block, 4, 4, 1), BlockRun(block, 64, 256, 1)], lambda *step: steps.append(step)
    )
    assert steps == [(2, 4), (4, 4)]  # two blocks in two passes
    assert 0 < small < large  # 256 times as many multiply-accumulates
    record = bench.networks({"dense": Net().eval()}, EXAMPLE, quick)
    assert record["networks"]["dense"]["latency_ms"] > 0
    assert (bench.place.runtime, bench.place.threads, PLACE.device) == ("onnxruntime", 1, None)


def test_recurrent_layers_and_stacks_of_matrices_are_no_blocks() -> None:
    """The table's correction contains these layers; a plain matrix product is a linear block."""
    model = Recogniser(bidirectional=True).eval()
    blocks = blocks_of(model, inspect(model, torch.zeros(1, 1, 8, 7)))
    assert [block.layer for block in blocks] == ["first", "second", "head"]
    experts = Experts().eval()
    assert [block.layer for block in blocks_of(experts, inspect(experts, torch.zeros(5, 6)))] == ["gate", "head"]
    gpt = Gpt(depth=1).eval()
    by_name = {block.layer: block.block for block in blocks_of(gpt, inspect(gpt, torch.zeros(1, 6, dtype=torch.long)))}
    assert by_name["h.0.c_fc"] == Block("linear", (6,))
