"""What decides a search's outcome besides the network and the data; the command line's options derive from it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.errors import AmcError
from amc.problem import MAX_SPARSITY
from amc.pruning.ranking import Ranking
from amc.search import AGENTS, BASELINES

METHODS = ("channel",)


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides a search's outcome besides the network and the data."""

    budget: str = "macs<=50%"
    method: str = "channel"
    agent: str = "ddpg"
    episodes: int = 400
    seed: int = 0
    baselines: tuple[str, ...] = ("uniform",)  # scored beside the agent: uniform, random, shallow, deep
    round_to: int | None = None  # None: 8 where a group is wide enough
    max_sparsity: float = MAX_SPARSITY  # of a group's channels, in [0, 1)
    ranking: Ranking = "elimination"
    reconstruct: bool = True
    bn_images: int = 512  # calibration images to re-estimate batch norms on; 0: keep the dense statistics
    calibration_images: int = 2048
    bf16: bool = False  # score in bfloat16
    keep_sets: int = 3  # checked by the certificate; 0: none
    lock: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "budget": (isinstance(self.budget, str), 'text such as "macs<=50%"'),
            "episodes": (self.episodes >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "round_to": (self.round_to is None or self.round_to >= 1, "at least 1"),
            "max_sparsity": (0 <= self.max_sparsity < 1, "in [0, 1)"),
            "agent": (self.agent in AGENTS, f"one of {', '.join(AGENTS)}"),
            "method": (self.method in METHODS, f"one of {', '.join(METHODS)}"),
            "ranking": (self.ranking in ("magnitude", "elimination"), "magnitude or elimination"),
            "bn_images": (self.bn_images >= 0, "at least 0"),
            "calibration_images": (self.calibration_images >= 1, "at least 1"),
            "keep_sets": (self.keep_sets >= 0, "at least 0"),
            "baselines": (set(self.baselines) <= set(BASELINES), f"among {', '.join(BASELINES)}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise AmcError(f"{name.replace('_', '-')} must be {rule}, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SearchConfig:
        """From keyword arguments; AmcError for a name that is none."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise AmcError(f"unknown setting {name!r}; {hint}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchConfig:
        """From a run's config.json, whose other fields are passed over."""
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        for name in ("baselines", "lock", "only"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)
