"""How long networks take on a runtime, as a small record: what `amc.latency` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from amc.deploy.measure import MeasureSettings
from amc.deploy.timing import latency_record
from amc.errors import brief
from amc.run.settings import from_keywords


@dataclass(frozen=True, slots=True)
class NetworkLatency:
    """One network. `ratio`, `uncertainty` and `verdict` compare it with the first one, which has None for them."""

    latency_ms: float  # median of the best round
    spread: float  # how much slower the third best round is, as a share of the best
    steady: bool  # whether the latency is as precise as claimed
    file_bytes: int  # of the network's files; 0 for eager
    ratio: float | None = None  # of the latencies; below 1: faster than the first network
    uncertainty: float | None = None  # the true ratio is within ratio ± uncertainty
    verdict: str | None = None  # faster | slower | undecided


@dataclass(frozen=True)
class Latencies:
    """The result of `latency`. The first network is the one that the others are compared with.

    >>> times = amc.latency(net, x, rounds=3, max_seconds=0)
    >>> times.latency_ms == times.networks["network"].latency_ms == times.to_json()["networks"]["network"]["latency_ms"]
    True
    """

    networks: Mapping[str, NetworkLatency]  # by name, in the order in which they were given
    record: Mapping[str, Any]  # also the machine, the settings and every other figure

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Latencies:
        """From a record of `amc.deploy.timing`."""
        names = NetworkLatency.__dataclass_fields__
        networks = {
            name: NetworkLatency(**{key: value for key, value in entry.items() if key in names})
            for name, entry in record["networks"].items()
        }
        return cls(networks, record)

    @property
    def latency_ms(self) -> float:
        """Of the first network."""
        return next(iter(self.networks.values())).latency_ms

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, as `amc latency --json` prints it."""
        return dict(self.record)

    def __repr__(self) -> str:
        first, threads = next(iter(self.networks)), self.record["threads"]
        runtime = f"{self.record['runtime']} {self.record['runtime_version']}"
        latencies = ", ".join(_text(name, entry, first) for name, entry in self.networks.items())
        return brief(f"{runtime}, {threads} thread{'s' if threads > 1 else ''}: {latencies}")


def _text(name: str, entry: NetworkLatency, first: str) -> str:
    text = f"{name} {entry.latency_ms:.3g} ms"
    if entry.ratio is None:
        return text
    return f"{text} ({entry.ratio:.2f} ± {entry.uncertainty:.2f} of {first}: {entry.verdict})"


def latency(
    networks: nn.Module | Mapping[str, nn.Module],
    example_input: Any,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    half: bool = False,
    **settings: Any,
) -> Latencies:
    """Time one network, or several by name in alternation, on a runtime of this machine.

    runtime: a name of `amc.deploy.runtimes.RUNTIMES`. Each network is exported to its format, and checked, first.
    batch: how many examples one call takes. half: weights in 16 bits.
    settings: fields of `amc.deploy.measure.MeasureSettings`: rounds, precision, max_seconds, and so on.

    Raises AmcError for unusable arguments, a missing package, or a network that the runtime cannot run.

    >>> dense, slim = nn.Conv2d(3, 64, 5).eval(), nn.Conv2d(3, 4, 5).eval()
    >>> both = {"dense": dense, "slim": slim}
    >>> times = amc.latency(both, torch.zeros(1, 3, 32, 32), rounds=3, max_seconds=0)
    >>> times
    onnxruntime ..., 1 thread: dense ... ms, slim ... ms (... ± ... of dense: ...)
    >>> times.networks["slim"].latency_ms > 0
    True
    """
    chosen = from_keywords(MeasureSettings, settings)
    named = {"network": networks} if isinstance(networks, nn.Module) else networks
    return Latencies.of(
        latency_record(named, example_input, runtime=runtime, threads=threads, batch=batch, half=half, settings=chosen)
    )
