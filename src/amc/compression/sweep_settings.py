"""The settings of a sweep: the budgets of its points.

Imports neither torch nor NumPy before settings are made: the help of the command line needs only the fields.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, BudgetError
from amc.run.settings import Panel, check_rules, convert_types_, option

if TYPE_CHECKING:
    from amc.search import Budget

MOST_POINTS = 100
DIGITS = 3  # of the share of a point between the ends: tenths of a percent


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Which budgets a sweep searches.

    >>> SweepConfig(start="80%", end="20%", points=3).texts
    ('macs<=80%', 'macs<=40%', 'macs<=20%')
    """

    metric: str = option("macs", panel=Panel.BUDGET, help="Cost to limit: macs, params, size, memory or latency.")
    start: str = option("80%", panel=Panel.BUDGET, flags=("--from",), help="Largest budget: 80%, 1.2MB or 4ms.")
    end: str = option("25%", panel=Panel.BUDGET, flags=("--to",), help="Smallest budget, in the same unit.")
    points: int = option(
        8, panel=Panel.BUDGET, help="Budgets, both ends included; each keeps the same share of the last."
    )

    def __post_init__(self) -> None:
        convert_types_(self)
        check_rules(
            self, {"points": (2 <= self.points <= MOST_POINTS, f"2 to {MOST_POINTS}; for one, search a budget")}
        )
        _ = self.budgets  # raises for ends that cannot be

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budget of every point, the largest first. Raises BudgetError for ends that make no sweep."""
        first, last = self._end(self.start), self._end(self.end)
        high, low = _value(first), _value(last)
        if (first.fraction is None) != (last.fraction is None):
            raise BudgetError(
                f"a sweep from {self.start} to {self.end} mixes a share and a cost; give both ends in one unit"
            )
        if high <= low:
            raise BudgetError(f"a sweep goes from large to small; got from {self.start} to {self.end}: exchange them")
        ratio = (low / high) ** (1 / (self.points - 1))
        inner = tuple(self._between(first, high * ratio**step) for step in range(1, self.points - 1))
        budgets = (first, *inner, last)
        values = [_value(budget) for budget in budgets]
        if any(after >= before for before, after in itertools.pairwise(values)):
            raise BudgetError(f"{self.points} points from {self.start} to {self.end} are too close; give fewer points")
        return budgets

    @property
    def texts(self) -> tuple[str, ...]:
        """The budgets as text."""
        return tuple(map(str, self.budgets))

    def to_json(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)

    def _end(self, text: str) -> Budget:
        from amc.search import Budget

        return Budget.parse(f"{self.metric}<={text}")

    def _between(self, first: Budget, value: float) -> Budget:
        """A budget in the unit of `first`, rounded."""
        from amc.search import Budget, Metric

        if first.fraction is not None:
            return Budget(first.metric, fraction=round(value, DIGITS))
        return Budget(first.metric, absolute=float(f"{value:.4g}") if first.metric is Metric.LATENCY else round(value))


def _value(budget: Budget) -> float:
    value = budget.absolute if budget.fraction is None else budget.fraction
    assert value is not None
    return value


def sweep_of(config: dict[str, Any]) -> SweepConfig:
    """From a run's config.json. Raises AmcError for values that no sweep has."""
    try:
        return SweepConfig(**config["sweep"])
    except (KeyError, TypeError) as error:
        raise AmcError(f"sweep is malformed ({error})") from None
