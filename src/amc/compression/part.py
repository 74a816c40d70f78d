"""A compressed part in its whole network: what both cost, and what the end of a job stores of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from amc.errors import ModelError
from amc.pruning.methods import Finishing, Method
from amc.run.weights import file_overhead, pack
from amc.search import CostFunction, Metric
from amc.structure import count_macs, count_params
from amc.structure.part import Part

WHOLE = "whole"  # `SearchConfig.count`


@dataclass(frozen=True)
class Rest:
    """What a whole network costs besides its part."""

    macs: int  # on the example input of the whole network
    params: int
    size: int  # bytes of the file, at most
    calls: int  # of the part on that input

    @classmethod
    def of(cls, part: Part, method: Method) -> Rest:
        """Raises ModelError if torch cannot count the operations of the whole network."""
        names, under = method.weights(), f"{part.name}."
        inner, outer = part.module.state_dict(), part.whole.state_dict()
        plain = len(pack(outer)) - len(pack(inner))
        compact = file_overhead(outer, [under + name for name in names]) - file_overhead(inner, names)
        macs = count_macs(part.whole, part.outer) - part.calls * method.structure.macs
        return cls(macs, count_params(part.whole) - method.structure.params, max(plain, compact), part.calls)

    def added(self, costs: Mapping[str, int]) -> dict[str, int]:
        """The costs of the whole network, from those of the part: MACs, parameters and size."""
        return {
            "macs": self.macs + self.calls * costs["macs"],
            "params": self.params + costs["params"],
            "size": self.size + costs["size"],
        }

    def costs(self, method: Method) -> dict[Metric, CostFunction]:
        """The closed forms of the whole network."""
        rest = {Metric.MACS: self.macs, Metric.PARAMS: self.params, Metric.SIZE: self.size}
        times = {Metric.MACS: self.calls}
        return {
            metric: partial(_with_rest, method.costs[metric], rest[metric], times.get(metric, 1)) for metric in rest
        }


def _with_rest(cost: CostFunction, rest: int, times: int, keep_counts: npt.NDArray[np.int64]) -> Any:
    return rest + times * cost(keep_counts)


@dataclass(frozen=True)
class InWhole(Finishing):
    """A method of which the networks are wholes: their part `part` is compressed, and the rest stays as it is."""

    method: Method
    part: Part
    count: str  # of which network the costs are: "part" or "whole"
    rest: Rest | None  # None: torch cannot count the whole network

    @classmethod
    def of(cls, part: Part, method: Method, count: str) -> InWhole:
        """Raises ModelError if the costs are those of the whole, and torch cannot count it."""
        if count == WHOLE:
            return cls(method, part, count, Rest.of(part, method))
        with suppress(ModelError):
            return cls(method, part, count, Rest.of(part, method))
        return cls(method, part, count, None)

    @property
    def costs(self) -> Mapping[Metric, CostFunction]:
        """The closed forms that replace the method's own."""
        return self.rest.costs(self.method) if self.rest is not None and self.count == WHOLE else {}

    def masks(self, slim: nn.Module) -> dict[str, Tensor]:
        under = f"{self.part.name}."
        return {under + name: mask for name, mask in self.method.masks(self.part.of_whole(slim)).items()}

    def stored(self, model: nn.Module, under: str = "") -> bytes:
        return self.method.stored(model, f"{under}{self.part.name}.")

    def recount(self, model: nn.Module, example_input: Any) -> dict[str, int]:
        """The costs of the part in the network `model`, or of the whole. The part's own example counts."""
        return self.counted(self.method.recount(self.part.of_whole(model), self.part.example))

    def counted(self, costs: Mapping[str, int]) -> dict[str, int]:
        """The costs that count, from those of the part."""
        return self.rest.added(costs) if self.rest is not None and self.count == WHOLE else dict(costs)

    def record(self, slim: Mapping[str, int]) -> dict[str, Any]:
        """The entry of summary.json: the costs before and after, of the part and of the whole. `slim`: of the part."""
        method, dense = self.method, np.array([decision.size for decision in self.method.decisions])
        before = {name: int(method.costs[Metric(name)](dense)) for name in ("macs", "params", "size")}
        record = {"name": self.part.name, "count": self.count, "calls": self.part.calls}
        record["part"] = {"dense": _shown(before), "slim": _shown(slim)}
        if self.rest is not None:
            record["whole"] = {key: _shown(self.rest.added(each)) for key, each in (("dense", before), ("slim", slim))}
        return record


def _shown(costs: Mapping[str, int]) -> dict[str, int]:
    return {name: costs[name] for name in ("macs", "params")}
