"""The settings of `amc study`: which methods meet which constraints, and what is measured of the results."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict, dataclass
from typing import Any

from amc.errors import AmcError
from amc.run.settings.options import Panel, option
from amc.run.settings.types import check_rules, convert_types_

NONE = "none"
MOST_SEEDS = 100


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a search has to meet: a budget, a reward that prices the cost, or a largest drop of the score."""

    text: str  # as the table shows it: macs<=50%, r_flops, drop<=1
    settings: tuple[tuple[str, Any], ...]  # of `SearchConfig`

    @property
    def metric(self) -> str:
        """The metric of a budget; empty for the others."""
        return self.text.partition("<=")[0] if self.settings[0][0] == "budget" else ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One search of a study."""

    method: str
    constraint: Constraint
    seed: int

    @property
    def name(self) -> str:
        """Its directory: channel-macs-50-seed-0."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.method}-{self.constraint.text}-seed-{self.seed}")

    @property
    def settings(self) -> dict[str, Any]:
        """What it changes in the settings of the search."""
        return {"method": self.method, "seed": self.seed, **dict(self.constraint.settings)}


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """The methods and constraints of a study. Lists are texts with commas.

    >>> plan = StudyConfig(methods="channel,2:4", budgets="50%", metrics="params", rewards="none", max_drops="none")
    >>> [cell.name for cell in plan.cells()]
    ['channel-params-50-seed-0', '2-4-params-50-seed-0']
    """

    budgets: str = option("50%,30%", panel=Panel.BUDGET, help="Budgets on every metric, with commas, or none.")
    metrics: str = option(
        "macs,params,size", panel=Panel.BUDGET, help="Of macs, params, size, memory and latency, with commas."
    )
    methods: str = option("channel,fine-grained,2:4", panel=Panel.PRUNING, help="Methods to compare, with commas.")
    rewards: str = option(
        "r_flops,r_params", panel=Panel.BUDGET, help="Rewards without a budget, with commas, or none."
    )
    max_drops: str = option(
        "1",
        panel=Panel.BUDGET,
        help="Points that the score may fall, with commas, or none; the first metric is minimised.",
    )
    runtimes: str = option(
        "onnxruntime", panel=Panel.LATENCY, help="Runtimes to time every result on, with commas, or none."
    )
    epochs: int = option(0, panel=Panel.TRAINING, help="Epochs of fine-tuning of every result; 0: none.", min=0)
    seeds: int = option(1, panel=Panel.SEARCH, help="Searches of every cell, with seeds from 0 on.", min=1)

    def __post_init__(self) -> None:
        convert_types_(self)
        check_rules(
            self,
            {
                "epochs": (self.epochs >= 0, "at least 0"),
                "seeds": (1 <= self.seeds <= MOST_SEEDS, f"1 to {MOST_SEEDS}"),
            },
        )
        if not listed(self.methods):
            raise AmcError("methods is empty; write for example channel,fine-grained")
        if not self.constraints():
            raise AmcError("a study needs a constraint: give budgets, rewards or max-drops")
        names = [cell.name for cell in self.cells()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise AmcError(f"the study has the cell '{twice}' twice; name every method and constraint once")

    def constraints(self) -> tuple[Constraint, ...]:
        """Every constraint; budgets as text, which is parsed with the settings of their searches. Raises AmcError."""
        return (*self._budgets(), *self._rewards(), *self._drops())

    def cells(self) -> tuple[Cell, ...]:
        """Every search: all methods for one seed, then the next."""
        parts = itertools.product(range(self.seeds), listed(self.methods), self.constraints())
        return tuple(Cell(method, constraint, seed) for seed, method, constraint in parts)

    def to_json(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)

    def _budgets(self) -> list[Constraint]:
        texts = [f"{metric}<={share}" for metric in listed(self.metrics) for share in listed(self.budgets)]
        return [Constraint(text, (("budget", text),)) for text in texts]

    def _rewards(self) -> list[Constraint]:
        return [Constraint(name, (("reward", name), ("budget", None))) for name in listed(self.rewards)]

    def _drops(self) -> list[Constraint]:
        metric = (listed(self.metrics) or ["macs"])[0]
        found = []
        for text in listed(self.max_drops):
            try:
                points = float(text)
            except ValueError:
                raise AmcError(f"max-drops has {text!r}; write points of the score, such as 0.5,1") from None
            settings = (("max_drop", points), ("minimise", metric), ("budget", None))
            found.append(Constraint(f"drop<={points:g}", settings))
        return found


def listed(text: str) -> list[str]:
    """The parts of a text with commas; of "none", no part."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [] if parts == [NONE] else parts
