"""Measures a latency table: the runtime's step, a few whole networks, and every block at its widths."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from amc.deploy.measure import MeasureSettings
from amc.deploy.table.bench import NETWORK_SETTINGS, Bench, OnStep
from amc.deploy.table.blocks import Block, BlockRun, ProbeRun
from amc.deploy.table.cost import BlockSums, LatencyCost, fit, held_out_errors
from amc.deploy.table.grid import FloatArray
from amc.deploy.table.plan import Key, Plan
from amc.deploy.table.record import LatencyTable, WholeNetwork
from amc.errors import AmcError

NETWORKS = 24  # random networks, besides the dense and the smallest one
STEPS = (16, 8, 4)  # channel steps that runtimes are known to have

_LIGHT_MACS = 50_000_000  # a block up to this size is timed as three copies minus one, a larger one as two minus one
_TOGETHER = 6  # whole networks in memory at the same time, besides the dense one
_FLOOR_MS = 1e-5  # replaces smaller or negative differences, which are noise
_SAME = 0.8  # a stair exists if half its width causes at least this share of its rise


class NoiseError(AmcError):
    """The machine is too noisy for a decision."""


Build = Callable[[Sequence[int]], nn.Module]
Check = Callable[[float, float], None]  # ms of the dense and of the smallest network; raises to refuse the search


@dataclass(frozen=True, slots=True)
class Told:
    """Who hears of a table's measurement.

    check: gets the latency in ms of the dense and of the smallest network, before any block is measured; it may raise.
    warn: gets a message if a cached table is measured again, or if the table's predictions are poor.
    on_step: hears, first of the whole networks and then of the blocks, how many parts are timed and of how many.
    """

    check: Check = lambda dense_ms, least_ms: None
    warn: Callable[[str], None] = lambda _: None
    on_step: OnStep = None


def find_step(bench: Bench) -> int:
    """Channels per stair of the runtime's latency: 16, 8 or 4; 1 if there is no staircase."""
    widths = sorted({32} | {32 + step for step in STEPS} | {32 + step // 2 for step in STEPS})
    times = dict(zip(widths, bench.blocks([ProbeRun(width) for width in widths]), strict=True))
    for step in STEPS:
        rise = times[32 + step] - times[32]
        if rise > 0 and times[32 + step // 2] - times[32] >= _SAME * rise:
            return step
    return 1


def block_times(wanted: Sequence[tuple[Block, int, int]], bench: Bench, on_step: OnStep = None) -> list[float]:
    """Latency in ms of each block at its channels in and out.

    A network pays only once for the call itself, and for the conversion of its input and output to the runtime's
    layout. The difference between several parallel copies of the block and a single one excludes these costs.
    """
    copies = [_copies(*block) for block in wanted]
    runs = [BlockRun(*block, count) for block, several in zip(wanted, copies, strict=True) for count in (1, several)]
    measured = dict(zip(runs, bench.blocks(runs, on_step), strict=True))
    times = []
    for block, several in zip(wanted, copies, strict=True):
        alone = measured[BlockRun(*block, 1)]
        together = measured[BlockRun(*block, several)]
        times.append(max(_FLOOR_MS, (together - alone) / (several - 1)))
    return times


def measure_table(
    network: str,
    plan: Plan,
    build: Build,
    example_input: Any,
    choices: Sequence[Sequence[int]],
    bench: Bench,
    told: Told,
    *,
    seed: int = 0,
) -> LatencyTable:
    """Measure whole networks, which `build` makes from keep counts, and then the blocks of `plan`.

    Calls `told.check` after the first networks, before the others are measured; its exceptions pass through. Raises
    NoiseError if the whole networks are too noisy to correct the table.
    """
    began = time.perf_counter()
    policies = whole_policies(choices, NETWORKS, np.random.default_rng(seed))
    networks = measure_whole(policies, build, example_input, bench, told)
    times = block_times([(plan.blocks[key[0]], *key[1:]) for key in plan.keys], bench, told.on_step)
    table = LatencyTable(
        network, bench.place, plan.step, dict(zip(plan.keys, times, strict=True)), networks, time.perf_counter() - began
    )
    correction_of(plan, table)  # refuses an unusable table before it is stored
    return table


def measure_whole(
    policies: Sequence[tuple[int, ...]], build: Build, example_input: Any, bench: Bench, told: Told
) -> tuple[WholeNetwork, ...]:
    """Latencies of the networks with these keep counts: the dense network first, the smallest second.

    The dense network is timed again beside each part of the others. Each latency is its share of the dense latency in
    that part, times the best dense latency of all parts.
    """
    dense, *others = policies
    references: list[WholeNetwork] = []  # the dense network, once per part
    shares: list[tuple[tuple[int, ...], float, float]] = []  # keep counts, share of the dense latency, spread
    for start in range(0, len(others), _TOGETHER):
        part = others[start : start + _TOGETHER]
        networks = {str(index): build(keep) for index, keep in enumerate([dense, *part])}
        reference, *entries = bench_networks(bench, networks, example_input)["networks"].values()
        references.append(WholeNetwork(dense, float(reference["latency_ms"]), float(reference["spread"])))
        for keep, entry in zip(part, entries, strict=True):
            shares.append((keep, float(entry["latency_ms"]) / references[-1].latency_ms, float(entry["spread"])))
        if not start:
            told.check(references[0].latency_ms, shares[0][1] * references[0].latency_ms)
        if told.on_step is not None:
            told.on_step(len(shares), len(others))
    best = min(references, key=lambda entry: entry.latency_ms)
    return (best, *(WholeNetwork(keep, share * best.latency_ms, spread) for keep, share, spread in shares))


def whole_policies(
    choices: Sequence[Sequence[int]], count: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """The dense policy, the smallest, and `count` random policies at evenly spread levels between them."""
    sizes, least = (np.array([options[end] for options in choices], dtype=np.float64) for end in (-1, 0))
    policies = [tuple(int(v) for v in sizes), tuple(int(v) for v in least)]
    for index in range(count):
        level = (index + generator.uniform()) / count
        position = np.clip(level + 0.5 * generator.uniform(-1, 1, len(sizes)), 0, 1)
        requested = least + position * (sizes - least)
        policies.append(
            tuple(int(min(options, key=lambda k: abs(k - r))) for options, r in zip(choices, requested, strict=True))
        )
    return policies


def bench_networks(
    bench: Bench,
    networks: Mapping[str, nn.Module],
    example_input: Any,
    settings: MeasureSettings = NETWORK_SETTINGS,
) -> dict[str, Any]:
    """Time whole networks in alternation; an unsteady measurement is repeated once, for twice as long.

    Returns the steadier record of `amc.deploy.timing`; its field `steady` says whether the latencies are reliable.
    """
    record = bench.networks(networks, example_input, settings)
    if record["steady"]:
        return record
    longer = MeasureSettings(
        rounds=2 * settings.rounds, warmup=settings.warmup, round_seconds=settings.round_seconds,
        precision=settings.precision, max_seconds=2 * settings.max_seconds,
    )  # fmt: skip
    again = bench.networks(networks, example_input, longer)
    return again if again["steady"] or _worst(again) <= _worst(record) else record


def correction_of(plan: Plan, table: LatencyTable) -> tuple[LatencyCost, FloatArray]:
    """The table's cost function, and its relative error on each whole network except the dense one.

    Each error is a leave-one-out error: the network is predicted from the other networks. Raises NoiseError if the
    measured networks do not follow the table.
    """
    sums = BlockSums(plan, table.times)
    keep = np.array([entry.keep for entry in table.networks], dtype=np.int64)
    measured = np.array([entry.latency_ms for entry in table.networks])
    try:
        correction = fit(sums(keep), measured)
        errors = held_out_errors(sums(keep), measured)
    except ValueError as error:
        spread = max(entry.spread for entry in table.networks)
        raise NoiseError(
            f"latency cannot be measured reliably on this machine: {error} in {len(measured)} whole networks measured "
            f"with a spread of {spread:.0%}; let nothing else run, or use another machine with --device-url"
        ) from None
    return LatencyCost(sums, correction), errors


def _copies(block: Block, inputs: int, outputs: int) -> int:
    return 3 if block.macs(inputs, outputs) <= _LIGHT_MACS else 2


def _worst(record: Mapping[str, Any]) -> float:
    return max(float(entry["spread"]) for entry in record["networks"].values())


def complete(plan: Plan, times: Mapping[Key, float]) -> bool:
    """Whether a table holds every key of the plan."""
    return all(key in times for key in plan.keys)
