"""Budgets: the cost limits of the compressed network, parsed from the user's text.

Reads text, returns frozen records. Pure: no torch, no files.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Self

from amc.errors import BudgetError

_PATTERN = re.compile(
    r"(?P<metric>[a-z_]+)\s*<=\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>%|[a-z]*)",
    re.I,
)
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_REMEDY = 'write for example "macs<=50%" to keep half, or "params<=1.2M"'


class Metric(StrEnum):
    """The unit of a cost. The paper's "FLOPs" are multiply-accumulates: `macs`."""

    MACS = "macs"
    PARAMS = "params"
    SIZE = "size"  # bytes of the stored weights
    MEMORY = "memory"  # bytes of the activations that are alive at once, at most
    LATENCY = "latency"  # milliseconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """The metric of that name; "flops" is accepted for macs. Raises BudgetError for any other."""
        name = text.strip().lower()
        name = "macs" if name == "flops" else name
        if name not in set(cls):
            known = ", ".join(cls)
            raise BudgetError(f"budget metric {text.strip()!r} is unknown; known: {known} (flops means macs)")
        return cls(name)

    @property
    def in_bytes(self) -> bool:
        """Whether the unit is bytes."""
        return self in (Metric.SIZE, Metric.MEMORY)


_UNITS = {Metric.MACS: "MACs", Metric.PARAMS: "parameters", Metric.SIZE: "bytes", Metric.MEMORY: "bytes"}


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on the whole compressed network: either a fraction of the dense cost or an absolute cost."""

    metric: Metric
    fraction: float | None = None  # of the dense network's cost, in (0, 1]
    absolute: float | None = None  # MACs, parameters, bytes or milliseconds, > 0

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.absolute is None):
            raise BudgetError(f"budget on {self.metric} needs either a fraction or an absolute limit; {_REMEDY}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            percent = f"{self.fraction * 100:g}%"
            raise BudgetError(f"budget {self.metric}<={percent} must be above 0% and at most 100%; {_REMEDY}")
        if self.absolute is not None and not (self.absolute > 0 and math.isfinite(self.absolute)):
            raise BudgetError(f"budget {self.metric}<={self.absolute:g} must be above zero and finite; {_REMEDY}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one budget such as "macs<=50%", "flops <= 150M", "size<=1.2MB" or "latency<=5ms".

        Suffixes K, M and G are powers of 1000. Raises BudgetError with the value and the remedy.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise BudgetError(f"budget {text.strip()!r} is malformed; {_REMEDY}")
        metric = Metric.parse(match["metric"])
        number = float(match["number"])
        if not math.isfinite(number) or number <= 0:
            raise BudgetError(f"budget {text.strip()!r} must be above zero and finite; {_REMEDY}")
        if match["unit"] == "%":
            return cls(metric, fraction=number / 100)
        if not match["unit"] and 1 <= number < 100 and metric is not Metric.LATENCY:
            raise BudgetError(
                f"budget {text.strip()!r} would limit the whole network to {number:g} {_UNITS[metric]}; "
                f"write {metric}<={number:g}% to keep that share"
            )
        absolute = number * _unit_scale(metric, match["unit"].lower(), text.strip())
        if metric is not Metric.LATENCY and absolute < 1:
            raise BudgetError(f"budget {text.strip()!r} allows less than one; {number:g} of the whole is {number:.4%}")
        return cls(metric, absolute=absolute)

    def limit(self, dense: float) -> float:
        """The largest allowed cost, in the metric's unit, for a dense network that costs `dense`.

        Exact for integer costs: 57% of 100 is 57, not 56.99999999999999. Raises BudgetError for an absolute
        limit above the dense cost, which would prune nothing.
        """
        if self.fraction is not None:
            return float(Fraction(repr(self.fraction)) * Fraction(dense))
        assert self.absolute is not None
        if self.absolute > dense:
            raise BudgetError(
                f"budget {self} is above the dense network's {dense:.0f} {self.metric}: it asks for nothing; "
                "lower it or leave it out"
            )
        return self.absolute

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.metric}<={float(Fraction(repr(self.fraction)) * 100):.10g}%"
        return f"{self.metric}<={self.absolute:.15g}{'ms' if self.metric is Metric.LATENCY else ''}"


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read budgets separated by commas, e.g. "macs<=50%, params<=1.2M". A policy must meet all of them.

    Raises BudgetError for an empty text, a malformed part, or two budgets on one metric.
    """
    parts = text.split(",")
    if len(parts) > 1 and not all(map(str.strip, parts)):
        raise BudgetError(f"budget {text!r} is malformed: it has a comma too many; {_REMEDY}")
    budgets = tuple(map(Budget.parse, parts))
    metrics = [budget.metric for budget in budgets]
    for metric in set(metrics):
        if metrics.count(metric) > 1:
            raise BudgetError(f"budget {text!r} limits {metric} twice; keep the stricter one")
    return budgets


def _unit_scale(metric: Metric, unit: str, text: str) -> float:
    if metric is Metric.LATENCY:
        if unit == "ms":
            return 1
        raise BudgetError(f'budget {text!r}: a latency is given in ms or %; write for example "latency<=5ms"')
    if metric.in_bytes and unit.endswith("b"):
        unit = unit[:-1]
    if unit not in _SUFFIXES:
        raise BudgetError(f"budget {text!r}: unit {unit!r} is unknown, use %, K, M or G; {_REMEDY}")
    return _SUFFIXES[unit]
