"""Only around the best: random changes of the best policy so far, without an actor or a model.

Pure: no torch, no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from amc.run.settings import check_rules, convert_types_
from amc.search.agents.base import SearchTask, Setting
from amc.search.agents.exploring import ATTEMPT_GROWTH, BestSoFarAgent, decay_of, perturbed, warmup_of
from amc.search.problem import FloatArray

LARGEST = 0.5  # standard deviation of the noise
_NAMED = "agent 'around-best': "  # begins the errors


@dataclass(frozen=True, slots=True)
class AroundBestConfig:
    """Settings of the agent; the defaults are the DDPG agent's for its episodes near the best policy."""

    warmup_episodes: int = 100  # random episodes before the first change of the best policy
    sigma: float = 0.25  # initial standard deviation of the noise, in keep fractions
    noise_decay: float = 0.99  # of sigma, per episode after the warm-up
    groups: float = 0.4  # share of the groups that an episode changes

    def __post_init__(self) -> None:
        convert_types_(self, _NAMED)
        rules = {
            "warmup_episodes": (self.warmup_episodes >= 1, "at least 1"),
            "sigma": (0 < self.sigma <= LARGEST, f"above 0 and at most {LARGEST}"),
            "noise_decay": (0 < self.noise_decay <= 1, "above 0 and at most 1"),
            "groups": (0 < self.groups <= 1, "above 0 and at most 1"),
        }
        check_rules(self, rules, _NAMED)

    @classmethod
    def for_episodes(cls, episodes: int, **options: Any) -> Self:
        """The defaults for a search of that length, except `options`: a quarter is warm-up, at most 100 episodes."""
        config = cls(**{"warmup_episodes": warmup_of(episodes), **options})
        decay = decay_of(episodes, config.warmup_episodes)
        return config if "noise_decay" in options else replace(config, noise_decay=decay)


class AroundBestAgent(BestSoFarAgent):
    """Noise on some groups of the best policy so far, projected onto the budget's surface."""

    name = "around-best"
    max_episodes = None

    def __init__(self, task: SearchTask, config: AroundBestConfig) -> None:
        super().__init__(task, warmup=config.warmup_episodes)
        self._config = config

    def settings(self) -> dict[str, Setting]:
        """The settings."""
        return asdict(self._config)

    def vary(self, best: tuple[int, ...], reached: float, attempt: int) -> FloatArray:
        """Keep fractions [groups] near the best policy's."""
        c = self._config
        sigma = min(LARGEST, c.sigma * c.noise_decay ** (reached - c.warmup_episodes) * ATTEMPT_GROWTH**attempt)
        return perturbed(self.problem, self.surface, best, sigma=sigma, groups=c.groups, generator=self.generator)
