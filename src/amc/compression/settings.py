"""The settings of a search; the command line's options are made from them.

Imports neither torch nor NumPy before settings are made: the help of the command line needs only the fields.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from amc.errors import AmcError
from amc.run.settings import (
    CONFIDENCE,
    MAX_SEED,
    MAX_SPARSITY,
    MAX_SPARSITY_LINEAR,
    Panel,
    Ranking,
    check_rules,
    convert_types_,
    format_duration,
    option,
    parse_duration,
)
from amc.run.settings.scores import DEFAULT, get_score

if TYPE_CHECKING:
    from amc.pruning.methods import MethodOptions
    from amc.search import Budget, Metric

DEFAULT_BUDGET = "macs<=50%"
NO_BUDGET = "none"
NO_BASELINE = "none"

Recover = Literal["calibration", "none"]
BatchNormRule = Literal["difference", "replace"]
EngineName = Literal["auto", "torch", "onnxruntime"]
Count = Literal["part", "whole"]

MOST_WORKERS = 1024
SESSION = ("workers", "ray", "score_timeout")  # may differ when a run is resumed: they decide nothing of its outcome
BN_IMAGES = 256
BN_IMAGES_BEFORE = 512  # the default when earlier runs began

BEFORE: Mapping[str, Any] = {  # how runs began that have no such setting
    "recover": "none", "finalists": 0, "bn_rule": "replace", "uniform_first": False, "engine": "torch",
    "agent": "ddpg", "baselines": ("uniform",), "random_share": 1.0, "batch": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """The settings that decide a search's outcome, together with the network and the data, and `SESSION`.

    >>> amc.SearchConfig(budget="macs<=50%,size<=1MB", episodes=100).budgets
    (Budget(...), Budget(...))
    """

    budget: str | None = option(  # None: half the MACs, or "none" where the reward or max_drop leads to a small network
        None, panel=Panel.BUDGET,
        help='"macs<=50%,size<=1MB", "latency<=4ms" …; default half the MACs; none with --reward.',
    )  # fmt: skip
    method: str = option(
        "channel", panel=Panel.PRUNING,
        help="channel, fine-grained, 2:4 (any N:M, or n:8), rows, columns or blocks:4x4.",
    )  # fmt: skip
    reward: str = option(  # or the name of the caller's own function
        "r_err", panel=Panel.BUDGET, help="r_err under a budget; without one r_flops, r_params or r_latency."
    )
    part: str | None = option(  # None: the whole network
        None, panel=Panel.PRUNING,
        help="Prune this submodule alone, such as backbone; the score is the whole network's.",
    )  # fmt: skip
    count: Count = option(  # noqa: RUF009 -- this is a field
        "part", panel=Panel.BUDGET, help="With --part, budgets limit the part, or the whole network (whole)."
    )
    max_drop: float | None = option(
        None, panel=Panel.BUDGET, help="Find the smallest network that loses at most this many points of accuracy."
    )
    minimise: str = option(
        "macs", panel=Panel.BUDGET, help="Cost that --max-drop minimises: macs, params, size, memory or latency."
    )
    confidence: float = option(  # of the drop's upper bound, in [0.5, 1)
        CONFIDENCE, panel=Panel.BUDGET, help="Confidence of --max-drop, one-sided."
    )
    agent: str = option(
        "planner", panel=Panel.SEARCH,
        help="What proposes policies: planner, ddpg, ddpg-paper, random, or another of docs/agents.md.",
    )  # fmt: skip
    agent_options: tuple[str, ...] = option(  # or, in Python, a mapping
        (), panel=Panel.SEARCH, name="agent_option", help="A setting of the agent, NAME=VALUE (repeat).",
    )  # fmt: skip
    warm_start: str | None = option(
        None, panel=Panel.SEARCH, is_path=True,
        help="Run whose scored policies the agent learns from first: of the same network and data.",
    )  # fmt: skip
    episodes: int = option(400, panel=Panel.SEARCH, help="Policies to score, at most.")
    time_limit: str | float | None = option(  # in Python also a number of seconds; becomes text such as "1800s"
        None, panel=Panel.SEARCH,
        help="Stop proposing and scoring policies after this time: 90s, 30m or 1.5h, over all sessions. Preparation, "
        "baselines and the end of the search are not counted.",
    )  # fmt: skip
    patience: int | None = option(
        None, panel=Panel.SEARCH,
        help="Stop once this many policies in a row were not better and nothing better is expected.",
    )  # fmt: skip
    batch: int = option(
        1, panel=Panel.SEARCH,
        help="Policies that are proposed before the first of them is scored: so many can be scored at once.",
    )  # fmt: skip
    workers: int | None = option(
        None, panel=Panel.SEARCH,
        help="Processes that score policies, each on one thread; more than --batch are of no use. Default: none; "
        "with a larger batch, as many as are fastest.",
    )  # fmt: skip
    ray: str | None = option(
        None, panel=Panel.SEARCH,
        help="Score on a Ray cluster: auto (of this machine), or HOST:PORT of its head; --workers: how many actors, "
        "by default as many as have room, and at most --batch.",
    )  # fmt: skip
    score_timeout: float | None = option(
        None, panel=Panel.SEARCH, help="Seconds after which a worker gives a policy up, which then fails."
    )
    seed: int = option(0, panel=Panel.SEARCH, help="The same seed gives the same search.")
    baselines: tuple[str, ...] = option(  # "none" and the agent itself are left out
        ("uniform", "random"), panel=Panel.SEARCH, name="baseline",
        help="Score beside the agent: any other agent, such as uniform or random (repeat), or none.",
    )  # fmt: skip
    random_share: float = option(
        0.2, panel=Panel.SEARCH,
        help="Random policies to score as a baseline, as a share of --episodes, and of --time-limit; 1: as many.",
    )  # fmt: skip
    uniform_first: bool = True  # no option; under a budget, the first policy that "ddpg" scores is the uniform one
    round_to: int | None = option(
        None, panel=Panel.PRUNING, help="Keep counts are multiples of it (default: at most 8)."
    )
    max_sparsity: float = option(
        MAX_SPARSITY, panel=Panel.PRUNING,
        help="Largest share of a group, or of a convolution's weights, to remove.",
    )  # fmt: skip
    max_sparsity_linear: float = option(
        MAX_SPARSITY_LINEAR, panel=Panel.PRUNING, help="Largest share of a linear layer's weights to remove."
    )
    ranking: Ranking | None = option(  # noqa: RUF009 -- this is a field
        None, panel=Panel.PRUNING, help="elimination (the default for channels) or magnitude (for masks)."
    )
    reconstruct: bool = option(True, panel=Panel.PRUNING, help="Refit the weights that stay by least squares.")
    # 0: keep the dense statistics. That is the default where max_drop meets the rule "replace": if little is pruned, it
    # changes more answers than pruning.
    bn_images: int | None = option(
        None, panel=Panel.DATA, help="Images for the batch norms of a pruned network (default: 256); 0: none."
    )
    bn_rule: BatchNormRule = option(  # noqa: RUF009 -- this is a field
        "difference", panel=Panel.DATA,
        help="Batch norms get the dense network's statistics plus what pruning changes (difference), or new ones "
        "(replace).",
    )  # fmt: skip
    calibration_images: int = option(2048, panel=Panel.DATA, help="Training images for calibration.")
    recover: Recover = option(  # noqa: RUF009 -- this is a field
        "calibration", panel=Panel.PRUNING,
        help="calibration: train the result towards the dense network's outputs on the calibration images; or none.",
    )  # fmt: skip
    recover_time: float = option(120.0, panel=Panel.PRUNING, help="Longest time of --recover for a network: seconds.")
    finalists: int = option(
        3, panel=Panel.SEARCH,
        help="Best policies to compare at the end, recovered, on images that the search never scores; 0: none.",
    )  # fmt: skip
    score: str = option(  # a function in place of data is its own score
        DEFAULT, panel=Panel.SEARCH,
        help="Score on the data: top1, top5, balanced-accuracy, macro-f1, auroc, miou or mse (lower is better).",
    )  # fmt: skip
    bf16: bool = option(False, panel=Panel.SEARCH, help="Score in bfloat16, if it is measured to be faster here.")
    engine: EngineName = option(  # noqa: RUF009 -- this is a field
        "auto", panel=Panel.SEARCH, help="Scores with torch, onnxruntime, or auto: onnxruntime if it pays and agrees."
    )
    keep_sets: int = option(  # of the certificate; 0: none
        3, panel=Panel.PRUNING, flags=("--certify",), help="Random keep sets to check first; 0: none."
    )
    lock: tuple[str, ...] = option((), panel=Panel.PRUNING, help="Keep layers of this name or pattern whole (repeat).")
    only: tuple[str, ...] = option((), panel=Panel.PRUNING, help="Prune only layers of this name or pattern (repeat).")
    approximate: bool = option(False, panel=Panel.PRUNING, help="Prune what layer norms average, too; it is not exact.")
    runtime: str | None = option(  # the default if a latency is requested
        None, panel=Panel.LATENCY, help="Runtime to measure: onnxruntime (the default), openvino, executorch …"
    )
    latency_threads: int = option(1, panel=Panel.LATENCY, help="Threads of the runtime.")
    device_url: str | None = option(  # None: this machine
        None, panel=Panel.LATENCY,
        help="Where to measure latency: http://HOST:PORT of `amc device serve`, or adb://…",
    )  # fmt: skip
    token_file: str | None = option(
        None, panel=Panel.LATENCY, is_path=True, help="File with the device's token (default: AMC_DEVICE_TOKEN)."
    )

    def __post_init__(self) -> None:
        from amc.pruning.methods import CHANNEL, check_method

        if not isinstance(self.budget, str | None):
            raise AmcError(f'budget must be text such as "macs<=50%", got {self.budget!r}')
        if isinstance(self.agent_options, Mapping):
            written = tuple(f"{name}={json.dumps(value)}" for name, value in self.agent_options.items())
            object.__setattr__(self, "agent_options", written)
        path: Any = self.warm_start
        if isinstance(path, os.PathLike):
            object.__setattr__(self, "warm_start", os.fspath(path))
        limit: Any = self.time_limit
        if not isinstance(limit, bool) and isinstance(limit, Real):
            object.__setattr__(self, "time_limit", str(float(limit)))
        convert_types_(self)
        if self.seconds is not None:
            object.__setattr__(self, "time_limit", format_duration(self.seconds))
        baselines = tuple(name for name in self.baselines if name not in (NO_BASELINE, self.agent))
        object.__setattr__(self, "baselines", baselines)
        object.__setattr__(self, "method", check_method(self.method))
        object.__setattr__(self, "score", get_score(self.score).name)
        object.__setattr__(self, "budget", self._resolved_budget())
        if self.bn_images is None:
            dense = self.bn_rule == "replace" and self.max_drop is not None
            object.__setattr__(self, "bn_images", 0 if dense else BN_IMAGES)
        self._check_ranges()
        self._check_score()
        self._check_part()
        if self.approximate and self.method != CHANNEL:
            raise AmcError(f"approximate is for channels; method {self.method} masks weights: leave approximate out")
        if self.times_latency and self.method != CHANNEL:
            raise AmcError(
                f"method {self.method} masks weights, which makes no runtime here faster; for a latency choose "
                "method channel"
            )

    def _check_ranges(self) -> None:
        """Raise AmcError for a value that is outside its range or not a known name."""
        from amc.deploy.runtimes import RUNTIMES
        from amc.search import BASELINES

        rules = {
            "max_drop": (self.max_drop is None or 0 <= self.max_drop < 100, "points of accuracy in [0, 100)"),
            "minimise": (
                self.minimise in ("macs", "params", "size", "memory", "latency"),
                "macs, params, size, memory or latency",
            ),
            "confidence": (0.5 <= self.confidence < 1, "in [0.5, 1)"),
            "max_sparsity_linear": (0 <= self.max_sparsity_linear < 1, "in [0, 1)"),
            "runtime": (self.runtime is None or self.runtime in RUNTIMES, f"one of {', '.join(RUNTIMES)}"),
            "latency_threads": (self.latency_threads >= 1, "at least 1"),
            "episodes": (self.episodes >= 1, "at least 1"),
            "batch": (1 <= self.batch <= MOST_WORKERS, f"between 1 and {MOST_WORKERS}"),
            "workers": (
                self.workers is None or 1 <= self.workers <= MOST_WORKERS,
                f"between 1 and {MOST_WORKERS}; leave it out to score in one process",
            ),
            "ray": (self.ray is None or bool(self.ray.strip()), "auto, or HOST:PORT of the head of a Ray cluster"),
            "score_timeout": (
                self.score_timeout is None or 0 < self.score_timeout < math.inf,
                "above 0 seconds and finite",
            ),
            "patience": (self.patience is None or self.patience >= 1, "at least 1"),
            "finalists": (self.finalists >= 0, "at least 0"),
            "seed": (0 <= self.seed <= MAX_SEED, "at least 0 and below 2^63"),
            "round_to": (self.round_to is None or self.round_to >= 1, "at least 1"),
            "max_sparsity": (0 <= self.max_sparsity < 1, "in [0, 1)"),
            "ranking": (self.ranking in (None, "magnitude", "elimination"), "magnitude or elimination"),
            "bn_images": ((self.bn_images or 2) >= 2, "0, or at least 2"),
            "calibration_images": (self.calibration_images >= 1, "at least 1"),
            "keep_sets": (self.keep_sets >= 0, "at least 0"),
            "bn_rule": (self.bn_rule in get_args(BatchNormRule), "difference or replace"),
            "recover": (self.recover in get_args(Recover), "calibration or none"),
            "recover_time": (0 < self.recover_time < math.inf, "above 0 seconds and finite"),
            "engine": (self.engine in get_args(EngineName), "auto, torch or onnxruntime"),
            "count": (self.count in get_args(Count), "part or whole"),
            "random_share": (0 < self.random_share <= 1, "above 0 and at most 1"),
            "baselines": (set(self.baselines) <= set(BASELINES), f"among {', '.join(BASELINES)}"),
        }
        check_rules(self, rules)

    def _check_part(self) -> None:
        """Raise AmcError for settings that contradict `part`."""
        if self.part is None:
            if self.count == "whole":
                raise AmcError("count whole is for a part of a network; name it with part, or leave count out")
            return
        if self.engine == "onnxruntime" or self.bf16:
            setting = "bf16" if self.bf16 else "engine onnxruntime"
            raise AmcError(
                f"{setting} needs a network that can be exported as a whole; leave it out, or leave part out"
            )
        metrics = {
            *(budget.metric for budget in self.budgets),
            *((self.minimise,) if self.max_drop is not None else ()),
        }
        if self.count == "whole" and (self.times_latency or "memory" in metrics):
            raise AmcError(
                "latency and memory are measured of the part alone: the rest of the network cannot be exported; leave "
                "count whole out"
            )

    def _check_score(self) -> None:
        """Raise AmcError for a score that does not fit max_drop or the reward."""
        from amc.search import REWARDS

        kind = get_score(self.score)
        if self.max_drop is not None and not kind.per_image:
            raise AmcError(
                f"max-drop counts the images that a network gets right, and {kind.label} does not call single images "
                "right or wrong; choose score top1 or top5, or a budget"
            )
        if not kind.is_share and self.reward in REWARDS and self.reward != "r_err":
            raise AmcError(
                f"reward {self.reward} is about a share of right answers, and score {kind.name} is none; give a budget "
                "with reward r_err, or a reward function of your own"
            )

    def _resolved_budget(self) -> str:
        """The budget, with its default filled in. Raises AmcError if it contradicts other settings."""
        from amc.search import REWARDS

        if self.max_drop is not None:
            if self.budget not in (None, NO_BUDGET):
                raise AmcError(
                    f"max-drop {self.max_drop:g} already seeks the smallest network; leave out max-drop or the budget "
                    f"{self.budget!r}"
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
        from amc.search import parse_budgets

        assert self.budget is not None
        return () if self.budget == NO_BUDGET else parse_budgets(self.budget)

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds; None without one."""
        return None if self.time_limit is None else parse_duration(str(self.time_limit), "time-limit")

    @property
    def metric(self) -> Metric:
        """With `max_drop`: the cost to minimise."""
        from amc.search import Metric

        return Metric(self.minimise)

    @property
    def options_of_agent(self) -> dict[str, Any]:
        """The agent's settings by name: numbers, true, false and null as in JSON, all else text."""
        found = {}
        for line in self.agent_options:
            name, equals, value = line.partition("=")
            if not (name and equals):
                raise AmcError(f"agent-option must be NAME=VALUE, got {line!r}")
            try:
                found[name.replace("-", "_")] = json.loads(value)
            except ValueError:
                found[name.replace("-", "_")] = value
        return found

    @property
    def times_latency(self) -> bool:
        """Whether latency is among the costs."""
        wanted = self.reward == "r_latency" or (self.max_drop is not None and self.minimise == "latency")
        limited = any(budget.metric == "latency" for budget in self.budgets)
        return wanted or limited or self.runtime is not None or self.device_url is not None

    @property
    def method_options(self) -> MethodOptions:
        """The settings of the method."""
        from amc.pruning.methods import MethodOptions

        return MethodOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(MethodOptions)})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the outcome."""
        return {name: value for name, value in self.to_json().items() if name not in SESSION}

    def for_run(self, began: Mapping[str, Any]) -> SearchConfig:
        """These settings, to resume a run with the config.json `began`.

        Settings that are newer than the run are as they were before, unless they are changed from their default.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        newer = {
            name: value for name, value in BEFORE.items() if name not in began and getattr(self, name) == defaults[name]
        }
        if "agent_options" not in began and self.agent == defaults["agent"]:
            newer["agent"] = began.get("agent", self.agent)  # the default was another one
        if "random_share" not in began and self.baselines == defaults["baselines"]:
            newer["baselines"] = tuple(began.get("baselines", BEFORE["baselines"]))  # and so was this one
        images = began.get("bn_images", self.bn_images)
        if self.bn_images == BN_IMAGES and ("bn_rule" in newer or images == BN_IMAGES_BEFORE):
            newer["bn_images"] = images  # and so was this one
        return dataclasses.replace(self, **newer)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchConfig:
        """From a run's config.json. Ignores its other fields; a run that began without one goes on as it began."""
        known = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        known = {**BEFORE, **known}
        for name in ("baselines", "lock", "only", "agent_options"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)
