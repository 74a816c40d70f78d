"""The result of a comparison: scores, costs, differences with their uncertainty, and the network to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amc.errors import AmcError, brief
from amc.report.charts.front import format_cost
from amc.report.compare.choice import Answers, Choice, choose, front
from amc.report.compare.entries import COSTS, STAGES, Entry, same_dense
from amc.report.tables import (
    format_difference,
    format_score,
    part_of,
)
from amc.report.words import metric_label
from amc.run.settings.scores import score_of_record
from amc.search import Metric
from amc.search.statistics import PairedDrop

_CHEAPEST = {"macs": "fewest MACs", "params": "fewest parameters", "size": "smallest file", "memory": "least memory"}
_FINE = 0.01  # the largest standard error of accuracy that is called fine enough
_PLACE = ("runtime", "version", "threads", "batch", "precision", "device")  # what two latencies must share


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What every network keeps of one group or layer; None where it has no such group."""

    name: str
    shares: tuple[float | None, ...]  # in the order of the entries, in [0, 1]

    @property
    def spread(self) -> float:
        """The largest difference between two networks; 0 if only one has the group."""
        known = [share for share in self.shares if share is not None]
        return max(known, default=0.0) - min(known, default=0.0)


@dataclass(frozen=True)
class Compared:
    """Networks side by side, and the one to take.

    >>> less = amc.compress(net, x, calibration=train, evaluate=train, budget="macs<=25%", episodes=3, run_dir="runs/c")
    >>> found = amc.compare(["runs/mine", "runs/c"], net, x, evaluate=train)
    >>> [entry.name for entry in found.entries]
    ['runs/mine', 'runs/c']
    >>> sorted(found.to_json()["fronts"])  # the costs that are known of all networks
    ['macs', 'memory', 'params', 'size']
    """

    entries: tuple[Entry, ...]
    answers: Answers | None  # None: the scores are those of the runs' files
    notes: tuple[str, ...]
    cost: str  # decides between networks that are equally good
    choice: Choice

    def __repr__(self) -> str:
        return brief(f"Compared({len(self.entries)} networks; take {_named(self.entry(self.choice.taken))})")

    @property
    def taken(self) -> str:
        """The path of the run whose network is to be taken."""
        return self.entry(self.choice.taken).name

    @property
    def percent(self) -> bool:
        """Whether scores are shown as percentages."""
        return all(entry.percent for entry in self.entries)

    @property
    def shared_dense(self) -> bool:
        """Whether all runs began with one dense network."""
        return all(same_dense(self.entries[0], entry) for entry in self.entries[1:])

    @property
    def scores(self) -> dict[str, float]:
        """The scores that are compared, by label."""
        return _scores(self.entries, self.answers)

    def entry(self, label: str) -> Entry:
        """The entry of a label."""
        return next(entry for entry in self.entries if entry.label == label)

    def costs(self, metric: str) -> dict[str, float]:
        """The known costs by label; those of latency only if all were measured alike."""
        return _costs(self.entries, metric)

    def front(self, metric: str) -> tuple[str, ...]:
        """The labels on the Pareto front of score and cost, the cheapest first."""
        costs, scores = self.costs(metric), self.scores
        return front([(label, cost, scores[label]) for label, cost in costs.items()])

    def groups(self) -> list[GroupRow]:
        """What is kept of each group, the largest differences first."""
        names = dict.fromkeys(name for entry in self.entries for name in entry.groups)
        rows = [
            GroupRow(name, tuple(e.groups[name].share if name in e.groups else None for e in self.entries))
            for name in names
        ]
        return sorted(rows, key=lambda row: -row.spread)

    def difference(self, first: str, second: str) -> str:
        """The score of the second minus that of the first, as text, with its standard error if that is known."""
        if self.answers is not None:
            return format_paired(self.answers.pairs[first, second])
        return format_difference(self.scores[first], self.scores[second], percent=self.percent)

    def sentence(self) -> str:
        """The network to take, and by which rule."""
        taken, best = self.entry(self.choice.taken), self.entry(self.choice.best)
        if self.answers is None:
            return (
                f"Take {_named(taken)}: {self._highest(taken)}. The runs' files hold no answers for single images, so "
                "that differences have no uncertainty: a cheaper network may be as good."
            )
        if taken is best and len(self.choice.equals) == 1:
            return f"Take {_named(taken)}: {self._highest(taken)}, and no other is within one standard error of it."
        rule = f"of the {len(self.choice.equals)} networks within one standard error of the best score"
        text = f"Take {_named(taken)}: {rule} it has the {self._cheapest} ({self._price(taken)})"
        if taken is best:
            return f"{text}, and the best score itself, {self._score(taken)}."
        behind = f"{self.difference(best.label, taken.label)} against {_named(best)}"
        return f"{text}; it scores {self._score(taken)}, {behind}."

    def to_json(self) -> dict[str, Any]:
        """The comparison as a record: `amc compare --json`."""
        costs = {metric: self.front(metric) for metric in COSTS if self.costs(metric)}
        answers, kind = self.answers, score_of_record(self.entries[0].summary)
        return {
            "score": kind.name,
            "images": None if answers is None else answers.images,
            "unseen": None if answers is None else answers.unseen,
            "shared_dense": self.shared_dense,
            "networks": [self._record(entry) for entry in self.entries],
            "differences": [] if answers is None else [
                {"of": second, "against": first, **_paired(pair)} for (first, second), pair in answers.pairs.items()
            ],
            "groups": [
                {"name": row.name, "kept": dict(zip(self._labels, row.shares, strict=True))} for row in self.groups()
            ],
            "fronts": {metric: list(labels) for metric, labels in costs.items()},
            "recommendation": {
                "network": self.choice.taken, "best": self.choice.best, "equals": list(self.choice.equals),
                "cost": self.cost, "sentence": self.sentence(),
            },
            "notes": list(self.notes),
        }  # fmt: skip

    @property
    def _labels(self) -> tuple[str, ...]:
        return tuple(entry.label for entry in self.entries)

    def _record(self, entry: Entry) -> dict[str, Any]:
        summary = entry.summary
        record: dict[str, Any] = {"label": entry.label, "run": entry.name, "goal": entry.goal}
        record |= {name: summary.get(name) for name in ("model", "method", "agent", "seed", "episodes", "seconds")}
        record |= {name: dict(part_of(summary, name)) for name in ("dense", "slim", "baselines")}
        record["compared"] = self.scores[entry.label]
        if self.answers is not None and entry.label in self.answers.dense:
            dense, drop = self.answers.dense[entry.label]
            record["against_dense"] = {"dense": dense, **_paired(drop)}
        return record

    def _highest(self, entry: Entry) -> str:
        kind = score_of_record(entry.summary)
        return f"it has the {'lowest error' if kind.is_error else 'best score'}, {self._score(entry)}"

    def _score(self, entry: Entry) -> str:
        return format_score(self.scores[entry.label], percent=self.percent)

    @property
    def _cheapest(self) -> str:
        return _CHEAPEST.get(self.cost, f"lowest {metric_label(self.cost)}")

    def _price(self, entry: Entry) -> str:
        return format_cost(self.cost, entry.slim(self.cost))


def compared(
    entries: tuple[Entry, ...], answers: Answers | None, *, notes: Sequence[str] = (), cost: str | None = None
) -> Compared:
    """The comparison of entries that `read_entries` has checked.

    `cost`: a metric, which all entries must have; by default the one that all were searched for, else the MACs or,
    if some networks are masked, the file size. Raises AmcError for another cost.
    """
    decides = _decider(entries, cost)
    scores = _scores(entries, answers)
    choice = choose(scores, _costs(entries, decides), answers)
    cautions = (*_cautions(entries, decides), *_coarse(answers, choice))
    return Compared(entries, answers, (*notes, *cautions), decides, choice)


def format_paired(pair: PairedDrop) -> str:
    """The difference with its standard error: "−0.52 ± 0.31 points"; a loss is negative."""
    difference = f"{0.0 - 100 * pair.drop:+.2f}".replace("-", "−")
    return f"{difference} ± {100 * pair.standard_error:.2f} points"


def is_noise(pair: PairedDrop) -> bool:
    """Whether a difference is no larger than its standard error."""
    return abs(pair.drop) <= pair.standard_error


def _paired(pair: PairedDrop) -> dict[str, Any]:
    error = pair.standard_error
    return {"difference": -pair.drop, "standard_error": error, "lost": pair.lost, "gained": pair.gained}


def _scores(entries: Iterable[Entry], answers: Answers | None) -> dict[str, float]:
    if answers is not None:
        return dict(answers.scores)
    return {entry.label: entry.score for entry in entries}


def _costs(entries: Sequence[Entry], metric: str) -> dict[str, float]:
    if metric == "latency" and len({_place_of(entry) for entry in entries if entry.slim("latency")}) > 1:
        return {}
    return {entry.label: value for entry in entries if (value := entry.slim(metric)) is not None}


def _place_of(entry: Entry) -> tuple[Any, ...]:
    """Where the latency of a network was measured."""
    latency: Mapping[str, Any] = part_of(entry.summary, "latency")
    return (*(latency.get(name) for name in _PLACE), *sorted(map(str, part_of(latency, "machine").items())))


def _decider(entries: Sequence[Entry], cost: str | None) -> str:
    """The cost that decides between equally good networks. Raises AmcError for a cost that some network lacks."""
    complete = [metric for metric in COSTS if len(_costs(entries, metric)) == len(entries)]
    if cost is not None:
        cost = str(Metric.parse(cost).value)
        if cost not in complete:
            known = ", ".join(complete) or "none"
            raise AmcError(f"not every run has the cost {cost!r}, measured alike; choose one that all have: {known}")
        return cost
    searched = {entry.metric for entry in entries}
    wanted = [*(searched if len(searched) == 1 else ()), "macs" if all(e.slices for e in entries) else "size", *COSTS]
    return next((metric for metric in wanted if metric in complete), "macs")


def _cautions(entries: Sequence[Entry], cost: str) -> list[str]:
    """What a reader must know to compare these runs fairly."""
    notes = []
    if not all(same_dense(entries[0], entry) for entry in entries[1:]):
        notes.append("The runs began with different dense networks.")
    masked = [entry.label for entry in entries if not entry.slices]
    if masked and cost != "size":
        notes.append(
            f"{', '.join(masked)}: masked; MACs and parameters count nonzero weights only, and most runtimes run the "
            "network no faster."
        )
    timed = [entry for entry in entries if entry.slim("latency")]
    if len(timed) > 1 and not _costs(entries, "latency"):
        notes.append("Latencies were measured on different runtimes or machines, so that they are not compared.")
    tuned = [entry.label for entry in entries if entry.slim(STAGES[-1]) is not None]
    if 0 < len(tuned) < len(entries):
        others = [entry.label for entry in entries if entry.label not in tuned]
        notes.append(f"{', '.join(others)}: not fine-tuned, unlike the others; fine-tuning may raise the score.")
    return notes


def _coarse(answers: Answers | None, choice: Choice) -> list[str]:
    """A warning if the images are too few for a fine choice."""
    if answers is None or choice.taken == choice.best:
        return []
    error = answers.pairs[choice.best, choice.taken].standard_error
    if error <= _FINE:
        return []
    return [
        f"On {answers.images:,} images the standard error is {100 * error:.1f} points, so that networks count as equal "
        "that may not be; searches with more images to score on tell them apart."
    ]


def cost_title(metric: str) -> str:
    """A metric's name at the start of a line."""
    label = metric_label(metric)
    return label[:1].upper() + label[1:]


def _named(entry: Entry) -> str:
    return f"{entry.label} ({entry.name})"
