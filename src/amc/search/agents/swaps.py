"""Budget-neutral swaps of the best policy, as in EvoPress (arXiv 2410.14649).

EvoPress mutates the best configuration: it raises the level of one layer and lowers that of another, so that the
budget holds. The number of such swaps is the smaller of two uniform draws from one to three. Two differences: groups
here differ in cost, so one group's rise may take several falls. And EvoPress scores several offspring of one parent on
growing samples of the data; here every policy is scored once, and the parent is the best policy so far.

Pure: no torch, no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import SearchTask, Setting
from amc.search.agents.exploring import BestSoFarAgent, near_cost
from amc.search.problem import FloatArray, IntArray

_NAMED = "agent 'swaps': "  # begins the errors


@dataclass(frozen=True, slots=True)
class SwapsConfig:
    """Settings of the agent."""

    warmup_episodes: int = 1  # the start policy and random ones before the first swap
    most_swaps: int = 3  # the largest number of swaps at once
    levels: int = 16  # a level is the distance of a group's choices over this, and at least one choice

    def __post_init__(self) -> None:
        convert_types_(self, _NAMED)
        rules = {
            "warmup_episodes": (self.warmup_episodes >= 1, "at least 1"),
            "most_swaps": (1 <= self.most_swaps <= 1000, "in [1, 1000]"),
            "levels": (self.levels >= 1, "at least 1"),
        }
        check_rules(self, rules, _NAMED)


class SwapsAgent(BestSoFarAgent):
    """One group a level up, others a level down until the budget holds; repeated a few times."""

    name = "swaps"
    max_episodes = None

    def __init__(self, task: SearchTask, config: SwapsConfig) -> None:
        super().__init__(task, warmup=config.warmup_episodes)
        self._config = config
        self._choices = [np.array(decision.choices) for decision in self.problem.decisions]
        self._last = np.array([len(choices) - 1 for choices in self._choices])
        self._step = np.maximum(1, self._last // config.levels)

    def settings(self) -> dict[str, Setting]:
        """The settings."""
        return asdict(self._config)

    def vary(self, best: tuple[int, ...], reached: float, attempt: int) -> FloatArray:
        """Keep fractions [groups] after one or more swaps."""
        draw = self.generator
        cost = None if self.surface.bounded else near_cost(self.problem, best, draw)
        places = np.array([np.searchsorted(c, keep) for c, keep in zip(self._choices, best, strict=True)])
        swaps = int(draw.integers(1, self._config.most_swaps + 1, size=2).min()) + attempt
        for _ in range(swaps):
            places = self._swapped(places, cost)
        return self._counts(places) / self.problem.dense

    def _swapped(self, places: IntArray, cost: float | None) -> IntArray:
        """Raise one group, lower others until the limits hold, then raise the rest while the limits allow it.

        Places are indices of the groups' choices, [groups].
        """
        draw, groups = self.generator, len(places)
        places = places.copy()
        risen = int(draw.choice(np.flatnonzero(places < self._last))) if (places < self._last).any() else -1
        lowered = np.zeros(groups, dtype=bool)
        if risen >= 0:
            places[risen] = self._moved(places, risen, +1)
        while places.any() and not self.surface.fits(self._counts(places), cost=cost):
            ready = np.flatnonzero((places > 0) & (np.arange(groups) != risen))
            group = int(draw.choice(ready)) if len(ready) else risen  # the risen group falls last
            places[group] = self._moved(places, group, -1)
            lowered[group] = True
        for group in draw.permutation(groups):
            if lowered[group] or group == risen:
                continue
            raised = places.copy()
            raised[group] = self._moved(places, group, +1)
            if self.surface.fits(self._counts(raised), cost=cost):
                places = raised
        return places

    def _moved(self, places: IntArray, group: int, levels: int) -> int:
        """The group's place that many levels up or down, within its choices."""
        return int(np.clip(places[group] + levels * self._step[group], 0, self._last[group]))

    def _counts(self, places: IntArray) -> IntArray:
        """Keep counts [groups]."""
        return np.array([choices[place] for choices, place in zip(self._choices, places, strict=True)])
