"""The runs of a comparison, read and checked.

A run is one entry, and so is a schedule: it stands for its last round, whose dense network is the first round's. A
sweep has an entry for each point. Runs that were scored on other data or by another score are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amc.errors import RunError
from amc.report.record import kept_records
from amc.report.tables import named_scores, part_of, records_of, scores_are_fractions
from amc.report.words import goal_of, metric_of, words_of
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings.scores import score_of_record
from amc.search import Metric, load_journal

COSTS = tuple(str(metric.value) for metric in Metric)
STAGES = ("score", "score_recovered", "score_finetuned")  # in the order in which a run has them


@dataclass(frozen=True, slots=True)
class Kept:
    """The keep count of one group or layer, and its size in the dense network."""

    kept: int
    size: int

    @property
    def share(self) -> float:
        """The kept fraction, in [0, 1]."""
        return self.kept / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of a comparison."""

    label: str  # "A", "B", …
    name: str  # its run's path, as the user gave it
    run: RunDir  # that holds the network
    first: RunDir  # that began with the dense network: of a schedule the first round, else `run`
    config: Mapping[str, Any]  # of `first`
    summary: Mapping[str, Any]  # of `run`, with the dense network of `first` and named scores
    groups: Mapping[str, Kept]

    @property
    def goal(self) -> str:
        """The budget, the allowed loss or the reward, in words."""
        return goal_of({**self.config, **self.summary})

    @property
    def metric(self) -> str:
        """The cost that the search limited or rewarded."""
        return metric_of({**self.config, **self.summary})

    @property
    def slices(self) -> bool:
        """Whether the network is smaller in shape; otherwise weights are zero."""
        return words_of(self.summary.get("method")).slices

    @property
    def percent(self) -> bool:
        """Whether every score is a fraction."""
        return scores_are_fractions(self.summary)

    @property
    def score(self) -> float:
        """The score of the stored network on the images of its search, as the run's files say."""
        return next(score for stage in reversed(STAGES) if (score := self.slim(stage)) is not None)

    @property
    def test(self) -> float | None:
        """The score of the stored network on the test split."""
        tests = (self.slim(stage.replace("score", "test")) for stage in reversed(STAGES))
        return next((test for test in tests if test is not None), None)

    def slim(self, key: str) -> float | None:
        """A cost or score of the network; None if unknown."""
        value = part_of(self.summary, "slim").get(key)
        return value if isinstance(value, int | float) else None

    def dense(self, key: str) -> float | None:
        """A cost or score of the dense network; None if unknown."""
        value = part_of(self.summary, "dense").get(key)
        return value if isinstance(value, int | float) else None

    def baseline(self, name: str) -> float | None:
        """The score of a baseline's best policy, as pruned; None if the run has none."""
        value = part_of(part_of(self.summary, "baselines"), name).get("score")
        return value if isinstance(value, int | float) else None


def read_entries(paths: Sequence[str | os.PathLike[str]]) -> tuple[Entry, ...]:
    """The entries of all runs, in the order given.

    Raises RunError for an unfinished or damaged run, a run given twice, fewer than two networks, or runs that cannot be
    compared.
    """
    found = [entry for path in paths for entry in _read(RunDir.open(path))]
    seen: dict[Path, str] = {}
    for entry in found:
        here = entry.run.path.resolve()
        if here in seen:
            again = f"as '{seen[here]}' and '{entry.name}'" if seen[here] != entry.name else f"'{entry.name}'"
            raise RunError(f"one run is given twice: {again}; name each run once")
        seen[here] = entry.name
    if len(found) < 2:
        one = f"'{found[0].name}' alone" if found else "nothing"
        raise RunError(f"{one} cannot be compared; name two runs or more, or a sweep of two points or more")
    entries = tuple(replace(entry, label=label_of(index)) for index, entry in enumerate(found))
    for entry in entries[1:]:
        check_comparable(entries[0], entry)
    return entries


def check_comparable(first: Entry, other: Entry) -> None:
    """Raise RunError, which says what differs, unless both runs scored with the same score on the same data."""
    differences = []
    if not _same_data(first, other):
        differences.append(f"the data ({_data_of(first)} and {_data_of(other)})")
    kinds = [score_of_record({**entry.config, **entry.summary}).label for entry in (first, other)]
    if kinds[0] != kinds[1]:
        differences.append(f"the score ({kinds[0]} and {kinds[1]})")
    functions = [entry.config.get("evaluate") or "a named score" for entry in (first, other)]
    if functions[0] != functions[1]:
        differences.append(f"the score's function ({functions[0]} and {functions[1]})")
    if differences:
        raise RunError(
            f"'{first.name}' and '{other.name}' cannot be compared: they differ in {' and in '.join(differences)}; "
            "compare runs on the same data with the same score"
        )


def same_dense(first: Entry, other: Entry) -> bool:
    """Whether both runs began with the same dense network."""
    for key in ("weights_digest", "weights_sha256"):
        digests = [entry.config.get(key) for entry in (first, other)]
        if None not in digests:
            return digests[0] == digests[1]
    names = ("macs", "params", "score")  # versions that digest by other rules
    return all(first.dense(name) == other.dense(name) for name in names)


def images_of(entry: Entry) -> str | None:
    """The digest of the search images in the run's journal; None for runs of earlier versions."""
    journal = entry.first.file(files.JOURNAL)
    data = part_of(load_journal(journal).origin, "data") if journal.exists() else {}
    digest = data.get("search")
    return digest if isinstance(digest, str) else None


def _read(run: RunDir) -> Iterator[Entry]:
    """The entries of one directory."""
    config = run.config()
    if config.get("sweep"):
        yield from _points(run, config)
    elif config.get("schedule"):
        yield _last_round(run, config)
    else:
        yield _entry(str(run.path), run, run)


def _points(run: RunDir, config: Mapping[str, Any]) -> Iterator[Entry]:
    """The points of a sweep, the largest budget first."""
    planned, points = config["sweep"].get("points"), records_of(_summary(run).get("points"))
    if len(points) != planned:
        raise _unfinished(run, f"{len(points)} of {planned} points", "name its finished points")
    for point in points:
        inner = RunDir.open(run.file(str(point["run"])))
        yield _entry(str(inner.path), inner, inner)


def _last_round(run: RunDir, config: Mapping[str, Any]) -> Entry:
    """The last round of a schedule, beside the dense network of the first."""
    planned, rounds = len(config["schedule"]), records_of(_summary(run).get("rounds"))
    if len(rounds) != planned:
        raise _unfinished(run, f"{len(rounds)} of {planned} rounds", "name its finished rounds")
    inner = [RunDir.open(run.file(str(each.get("run", f"round-{n}")))) for n, each in enumerate(rounds, start=1)]
    entry = _entry(str(run.path), inner[-1], inner[0])
    seconds = [_summary(each).get("seconds") for each in inner]
    known = [value for value in seconds if value is not None]
    whole = {
        "seconds": sum(known) if len(known) == planned else None,
        "episodes": sum(_summary(each).get("episodes") or 0 for each in inner),
        "budget": f"{entry.metric}<={100 * config['schedule'][-1]:g}%",  # of the first dense network
    }
    return replace(entry, summary={**entry.summary, **whole})


def _entry(name: str, run: RunDir, first: RunDir) -> Entry:
    summary, config = _summary(run), first.config()
    if not summary:
        scored = sum("episode" in record for record in run.read_jsonl(files.JOURNAL))
        raise _unfinished(run, f"{scored} of {config.get('episodes', '?')} episodes", "leave it out")
    if run.has(files.FINETUNE_STATE):
        raise RunError(
            f"the fine-tuning of '{run.path}' is not finished; finish it with `amc finetune {run.path}`, or leave the "
            "run out"
        )
    for key in ("macs", "score"):
        if part_of(summary, "slim").get(key) is None:
            raise RunError(f"'{run.file(files.SUMMARY)}' has no slim.{key}; restore the file from a copy")
    run.verify(files.POLICY, files.MODEL, files.MODEL_FINETUNED)
    dense = _summary(first).get("dense")
    whole = named_scores({**summary, "dense": dense if run is not first else summary.get("dense")})
    return Entry("", name, run, first, config, _with_latency(whole, run), _groups(run, first))


def _with_latency(summary: Mapping[str, Any], run: RunDir) -> dict[str, Any]:
    """The summary; if its search measured no latency, with the one that `amc latency` measured last, if it did."""
    records = kept_records(run, files.LATENCY)
    if not records or part_of(summary, "slim").get("latency") is not None:
        return dict(summary)
    last = records[-1]
    times = {name: part_of(part_of(last, "networks"), name).get("latency_ms") for name in ("dense", "slim")}
    place = {name: last.get(name) for name in ("runtime", "threads", "batch", "precision", "device", "machine")}
    return {
        **summary,
        **{name: {**part_of(summary, name), "latency": value} for name, value in times.items()},
        "latency": {**place, "version": last.get("runtime_version")},
    }


def _unfinished(run: RunDir, done: str, other: str) -> RunError:
    return RunError(f"'{run.path}' is not finished ({done}); run `amc resume {run.path}` first, or {other}")


def _summary(run: RunDir) -> dict[str, Any]:
    return run.read_json(files.SUMMARY) if run.has(files.SUMMARY) else {}


def _groups(run: RunDir, first: RunDir) -> dict[str, Kept]:
    """The keep counts of a run by group, with the sizes in the dense network of `first`."""
    kept = _kept(run)
    if run is first:
        return kept
    sizes = {name: group.size for name, group in _kept(first).items()}
    return {name: replace(group, size=sizes.get(name, group.size)) for name, group in kept.items()}


def _kept(run: RunDir) -> dict[str, Kept]:
    policy = run.read_json(files.POLICY) if run.has(files.POLICY) else _summary(run)
    return {
        str(record["name"]): Kept(int(record.get("kept", len(record.get("keep", ())))), int(record["size"]))
        for record in records_of(policy.get("groups"))
    }


def _same_data(first: Entry, other: Entry) -> bool:
    """Whether both searches had the same data: the same name or, if it was moved or has no name, the same images."""
    images = [images_of(entry) for entry in (first, other)]
    if None not in images and images[0] == images[1]:
        return True
    named = [bool(entry.config.get("data") or entry.config.get("model")) for entry in (first, other)]
    if any(named):
        return _place(_data_of(first)) == _place(_data_of(other))
    return None in images  # two networks of Python, one of an earlier version: nothing says that the data differ


def _place(data: str) -> str:
    """The name of a data set, in which two spellings of one folder are equal."""
    kind, colon, rest = data.partition(":")
    folder = Path(rest).expanduser().resolve() if kind in ("cifar10", "imagefolder") else rest
    return f"{kind}{colon}{folder}"


def _data_of(entry: Entry) -> str:
    """The name of the data in words; a zoo network may have data of its own."""
    config = entry.config
    return str(config.get("data") or (f"that of {config['model']}" if config.get("model") else "given in Python"))


def label_of(index: int) -> str:
    """Letters: A to Z, then AA to ZZ, as of the columns of a table."""
    return (label_of(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)
