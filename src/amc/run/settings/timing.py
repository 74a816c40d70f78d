"""The settings of `amc latency`."""

from __future__ import annotations

from dataclasses import dataclass

from amc.run.settings.options import Panel, option
from amc.run.settings.types import convert_types_


@dataclass(frozen=True, slots=True)
class TimingConfig:
    """How a network is timed: the runtime, the device and the precision."""

    runtime: str = option(
        "onnxruntime", panel=Panel.LATENCY, help="onnxruntime, openvino, executorch, litert, ncnn or eager."
    )
    threads: int = option(1, panel=Panel.LATENCY, help="Threads of the runtime.")
    batch: int = option(1, panel=Panel.LATENCY, help="Examples per call.")
    half: bool = option(
        False, panel=Panel.LATENCY, name="fp16", flags=("--fp16",), help="Weights in 16 bits, if the format has them."
    )
    rounds: int = option(20, panel=Panel.LATENCY, help="Least number of rounds of each network.")
    precision: float = option(0.03, panel=Panel.LATENCY, help="Largest spread to accept, as a share of the latency.")
    max_seconds: float = option(60.0, panel=Panel.LATENCY, help="Longest time to go on while the spread is larger.")
    device_url: str | None = option(  # None: this machine
        None, panel=Panel.LATENCY, help="Where to measure: http://HOST:PORT of `amc device serve`, or adb://…."
    )
    token_file: str | None = option(
        None, panel=Panel.LATENCY, is_path=True, help="File with that server's token (default: AMC_DEVICE_TOKEN)."
    )

    def __post_init__(self) -> None:
        convert_types_(self)
