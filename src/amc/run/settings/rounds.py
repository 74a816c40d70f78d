"""The settings of a schedule: several rounds of search and fine-tuning."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from amc.errors import AmcError
from amc.run.settings.finetuning import FineTuneConfig
from amc.run.settings.options import Panel, option
from amc.run.settings.types import convert_types_


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """The rounds of `amc search` with a schedule."""

    schedule: str | None = option(  # as `parse_schedule` takes it; None: a single search
        None, panel=Panel.BUDGET, help="Prune and fine-tune in rounds, to these fractions: 0.5,0.35,0.25,0.2."
    )
    round_epochs: int = option(5, panel=Panel.BUDGET, help="Epochs of fine-tuning after each round of a --schedule.")
    round_lr: float | None = option(None, panel=Panel.BUDGET, help="Learning rate of that fine-tuning.")

    def __post_init__(self) -> None:
        convert_types_(self)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fraction of the dense network's cost for each round; empty for a single search. Raises AmcError."""
        return () if self.schedule is None else parse_schedule(self.schedule)

    def tuning(self, seed: int) -> FineTuneConfig:
        """The fine-tuning of every round. Raises AmcError."""
        return FineTuneConfig(epochs=self.round_epochs, lr=self.round_lr, seed=seed)


def parse_schedule(text: str) -> tuple[float, ...]:
    """`0.5,0.35,0.25` -> falling fractions of the dense network's cost. Raises AmcError for anything else."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise AmcError(f"schedule {text!r} is malformed; write falling fractions, such as 0.5,0.35,0.25,0.2") from None
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise AmcError(f"schedule {text!r} has {fraction:g}; every round keeps a fraction between 0 and 1")
    for before, after in itertools.pairwise(fractions):
        if after >= before:
            raise AmcError(f"schedule {text!r} rises from {before:g} to {after:g}; every round must keep less")
    return fractions
