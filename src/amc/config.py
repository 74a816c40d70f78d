"""What decides a search's outcome besides the network and the data; the command line's options derive from it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.deploy.runtimes import RUNTIMES
from amc.errors import AmcError
from amc.methods import CHANNEL, MethodOptions, check_method
from amc.methods.base import MAX_SPARSITY, MAX_SPARSITY_LINEAR
from amc.pruning.ranking import Ranking
from amc.scores import DEFAULT, get_score
from amc.search import AGENTS, BASELINES, REWARDS, Budget, Metric, parse_budgets
from amc.settings import MAX_SEED, settle_types_
from amc.statistics import CONFIDENCE

DEFAULT_BUDGET = "macs<=50%"
NO_BUDGET = "none"


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides a search's outcome besides the network and the data."""

    budget: str | None = None  # None: half the MACs, or "none" where the reward or max_drop leads to a small network
    method: str = "channel"  # or fine-grained, 2:4 (any N:M, n:M), rows, columns, blocks:RxC
    reward: str = "r_err"  # or r_flops, r_params, r_latency; the name of the caller's own function
    max_drop: float | None = None  # points of accuracy that may be lost: the smallest network within them is sought
    minimise: str = "macs"  # with max_drop: macs, params, size or latency
    confidence: float = CONFIDENCE  # with max_drop: of the drop's upper bound, one-sided, in [0.5, 1)
    agent: str = "ddpg"
    episodes: int = 400
    seed: int = 0
    baselines: tuple[str, ...] = ("uniform",)  # scored beside the agent: uniform, random, shallow, deep
    round_to: int | None = None  # None: 8 where a group is wide enough
    max_sparsity: float = MAX_SPARSITY  # of a group's channels or a convolution's weights, in [0, 1)
    max_sparsity_linear: float = MAX_SPARSITY_LINEAR  # of a linear layer's weights, in [0, 1)
    ranking: Ranking | None = None  # None: elimination for channels, magnitude for masks
    reconstruct: bool = True
    # Calibration images to re-estimate batch norms on; 0: keep the dense statistics. None: 512, with max_drop none, as
    # re-estimating changes more answers of a hardly pruned network than its pruning.
    bn_images: int | None = None
    calibration_images: int = 2048
    score: str = DEFAULT  # of labelled data: a name of `amc.scores`; a function in place of data is its own score
    bf16: bool = False  # score in bfloat16
    keep_sets: int = 3  # checked by the certificate; 0: none
    lock: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    runtime: str | None = None  # whose latency counts; None: onnxruntime, where a latency is asked for
    latency_threads: int = 1
    device_url: str | None = None  # of the machine that measures latency; None: this one
    token_file: str | None = None  # with the token of a device server; None: from AMC_DEVICE_TOKEN

    def __post_init__(self) -> None:
        if not isinstance(self.budget, str | None):
            raise AmcError(f'budget must be text such as "macs<=50%", got {self.budget!r}')
        settle_types_(self)
        object.__setattr__(self, "method", check_method(self.method))
        object.__setattr__(self, "score", get_score(self.score).name)
        object.__setattr__(self, "budget", self._resolved_budget())
        bn_images = (512 if self.max_drop is None else 0) if self.bn_images is None else self.bn_images
        object.__setattr__(self, "bn_images", bn_images)
        rules = {
            "max_drop": (self.max_drop is None or 0 <= self.max_drop < 100, "points of accuracy in [0, 100)"),
            "minimise": (self.minimise in ("macs", "params", "size", "latency"), "macs, params, size or latency"),
            "confidence": (0.5 <= self.confidence < 1, "in [0.5, 1)"),
            "max_sparsity_linear": (0 <= self.max_sparsity_linear < 1, "in [0, 1)"),
            "runtime": (self.runtime is None or self.runtime in RUNTIMES, f"one of {', '.join(RUNTIMES)}"),
            "latency_threads": (self.latency_threads >= 1, "at least 1"),
            "episodes": (self.episodes >= 1, "at least 1"),
            "seed": (0 <= self.seed <= MAX_SEED, "at least 0 and below 2^63"),
            "round_to": (self.round_to is None or self.round_to >= 1, "at least 1"),
            "max_sparsity": (0 <= self.max_sparsity < 1, "in [0, 1)"),
            "agent": (self.agent in AGENTS, f"one of {', '.join(AGENTS)}"),
            "ranking": (self.ranking in (None, "magnitude", "elimination"), "magnitude or elimination"),
            "bn_images": (bn_images == 0 or bn_images > 1, "0, or at least 2"),
            "calibration_images": (self.calibration_images >= 1, "at least 1"),
            "keep_sets": (self.keep_sets >= 0, "at least 0"),
            "baselines": (set(self.baselines) <= set(BASELINES), f"among {', '.join(BASELINES)}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise AmcError(f"{name.replace('_', '-')} must be {rule}, got {getattr(self, name)!r}")
        self._check_score()
        if self.times_latency and self.method != CHANNEL:
            raise AmcError(
                f"method {self.method} masks weights, which makes no runtime here faster: a latency can be had with "
                "method channel only"
            )

    def _check_score(self) -> None:
        """AmcError for a score that cannot do what the protocol asks of it."""
        kind = get_score(self.score)
        if self.max_drop is not None and not kind.per_image:
            raise AmcError(
                f"max-drop counts the images that a network gets right, and {kind.label} does not call single images "
                "right or wrong; choose score top1 or top5, or a budget"
            )
        if kind.is_error and self.reward in REWARDS and self.reward != "r_err":
            raise AmcError(
                f"reward {self.reward} is about a share of right answers, and score {kind.name} is none; give a budget "
                "with reward r_err, or a reward function of your own"
            )

    def _resolved_budget(self) -> str:
        """The budget as it holds; AmcError where it contradicts what else is asked for."""
        if self.max_drop is not None:
            if self.budget not in (None, NO_BUDGET):
                raise AmcError(
                    f"max-drop {self.max_drop:g} seeks the smallest network by itself; leave out either it or "
                    f"the budget {self.budget!r}"
                )
            if self.reward != "r_err":
                raise AmcError(f"max-drop brings its own reward; leave {self.reward!r} out, or leave max-drop out")
            return NO_BUDGET
        if self.budget is None:
            return DEFAULT_BUDGET if self.reward == "r_err" or self.reward not in REWARDS else NO_BUDGET
        if self.budget == NO_BUDGET and self.reward == "r_err":
            raise AmcError(
                "without a budget, reward r_err keeps the whole network; give a budget, a reward such as r_flops, "
                "or max-drop"
            )
        return self.budget

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budget, parsed; none in the accuracy-guaranteed protocol."""
        assert self.budget is not None
        return () if self.budget == NO_BUDGET else parse_budgets(self.budget)

    @property
    def metric(self) -> Metric:
        """With `max_drop`: what is made small."""
        return Metric(self.minimise)

    @property
    def times_latency(self) -> bool:
        """Whether latency is among the costs."""
        wanted = self.reward == "r_latency" or (self.max_drop is not None and self.minimise == Metric.LATENCY)
        limited = any(budget.metric is Metric.LATENCY for budget in self.budgets)
        return wanted or limited or self.runtime is not None or self.device_url is not None

    @property
    def method_options(self) -> MethodOptions:
        return MethodOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(MethodOptions)})

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
