"""The settings of `amc latency`."""

from __future__ import annotations

from dataclasses import dataclass

from amc.run.settings.options import Panel, option
from amc.run.settings.types import settle_types_


@dataclass(frozen=True, slots=True)
class TimingConfig:
    """On what, and how precisely, a network is timed."""

    runtime: str = option(
        "onnxruntime", panel=Panel.LATENCY, help="onnxruntime, openvino, executorch, litert, ncnn or eager."
    )
    threads: int = option(1, panel=Panel.LATENCY, help="Threads of the runtime.")
    batch: int = option(1, panel=Panel.LATENCY, help="Examples a call.")
    half: bool = option(
        False,
        panel=Panel.LATENCY,
        name="fp16",
        flags=("--fp16",),
        help="Weights in 16 bits, where the format has them.",
    )
    rounds: int = option(20, panel=Panel.LATENCY, help="Of each network, at least.")
    precision: float = option(0.03, panel=Panel.LATENCY, help="Largest spread to accept, as a share of the latency.")
    max_seconds: float = option(60.0, panel=Panel.LATENCY, help="How long to go on while the spread is larger.")
    device_url: str | None = option(  # None: this machine
        None, panel=Panel.LATENCY, help="Measure there: http://HOST:PORT of `amc device serve`, or adb://…."
    )
    token_file: str | None = option(
        None, panel=Panel.LATENCY, is_path=True, help="Holds that server's token; else AMC_DEVICE_TOKEN."
    )

    def __post_init__(self) -> None:
        settle_types_(self)
