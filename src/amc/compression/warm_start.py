"""The scored policies of earlier searches of the same network, for an agent that learns from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from amc.compression.job import Job
from amc.compression.load import weights_key
from amc.compression.verify import TOLERANCE
from amc.errors import RunError
from amc.run import files
from amc.run.directory import RunDir
from amc.search import EpisodeRecord, JournalContent, Problem, load_journal

# Settings by which the decisions are others, or the same policy gets another score.
_SAME = ("part", "method", "lock", "only", "score", "evaluate", "reconstruct", "ranking", "bn_rule", "bn_images")


def earlier_records(run: RunDir | None, job: Job) -> tuple[EpisodeRecord, ...]:
    """What the search of `job` in `run` learns from before its first episode; empty without a warm start.

    The records of the job, or of the run that the settings name, are copied into `run`, and read from there when it is
    resumed: the other run may go on or disappear. Raises RunError if the other run is of another network, or scored by
    other rules or images.
    """
    if run is not None and run.has(files.EARLIER):
        return read_earlier(run)
    records = job.earlier
    if not records and job.config.warm_start is not None:
        ours = {**job.config.to_json(), **weights_key(job.network)} if run is None else run.config()
        records = _of_run(RunDir.open(job.config.warm_start), job, ours)
    if run is not None and records:
        write_earlier(run, records)
    return records


def read_earlier(run: RunDir) -> tuple[EpisodeRecord, ...]:
    """The records that `write_earlier` kept. Raises RunError if the file is damaged."""
    try:
        return tuple(EpisodeRecord.from_fields(record) for record in run.read_json(files.EARLIER)["records"])
    except (KeyError, ValueError) as error:
        raise RunError(f"'{run.file(files.EARLIER)}' has no records ({error}); start a new run") from None


def write_earlier(run: RunDir, records: Iterable[EpisodeRecord]) -> None:
    """Keep the records in the run, whole or not at all."""
    run.write_json(files.EARLIER, {"records": [record.to_fields() for record in records]})


def fitting(records: Iterable[EpisodeRecord], problem: Problem) -> tuple[EpisodeRecord, ...]:
    """The scored ones whose keep counts this problem knows, each policy once."""
    known = [set(decision.choices) for decision in problem.decisions]
    scored = {
        record.keep: record
        for record in records
        if record.score is not None
        and len(record.keep) == len(known)
        and all(count in counts for count, counts in zip(record.keep, known, strict=True))
    }
    return tuple(scored.values())


def _of_run(earlier: RunDir, job: Job, ours: Mapping[str, Any]) -> tuple[EpisodeRecord, ...]:
    config = earlier.config()
    if config.get("schedule"):
        raise RunError(f"'{earlier.path}' is a schedule, whose rounds have different networks; name its round-1")
    _check_same(earlier, config, ours)
    records: list[EpisodeRecord] = []
    for place in _searches(earlier):
        for content in _journals(place):
            _check_data(place, content, job)
            records += content.records
    found = fitting(records, job.problem)
    if not found:
        raise RunError(
            f"'{earlier.path}' has no scored policy that fits this search; warm-start from a run of the same network "
            "with the same max-sparsity and round-to"
        )
    return found


def _searches(run: RunDir) -> Iterator[RunDir]:
    """The run itself, or the points of a sweep that have begun."""
    if not run.config().get("sweep"):
        yield run
        return
    for path in sorted(run.path.glob("point-*")):
        if (path / files.CONFIG).exists():
            yield RunDir.open(path)


def _journals(run: RunDir) -> Iterator[JournalContent]:
    for path in sorted(run.path.glob("journal*.jsonl")):
        content = load_journal(path)
        if content.header:
            yield content


def _check_same(earlier: RunDir, config: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if config.get("weights_digest") != ours.get("weights_digest"):
        raise RunError(
            f"'{earlier.path}' is a run of another network, or of other weights; warm-start from a run that began with "
            "the same ones, or leave warm-start out"
        )
    for name in _SAME:
        theirs, wanted = _plain(config.get(name)), _plain(ours.get(name))
        if theirs != wanted:
            raise RunError(
                f"'{earlier.path}' was scored with {name} {theirs!r}, not {wanted!r}: its scores "
                "cannot be compared; use the same setting, or leave warm-start out"
            )


def _check_data(earlier: RunDir, content: JournalContent, job: Job) -> None:
    """Raise RunError unless the journal's scores are on the same images."""
    data, dense = content.origin.get("data", {}), content.origin.get("dense_score")
    other = data.get("search") != job.origin["data"]["search"]
    if other or dense is None or not math.isclose(dense, job.dense_score, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise RunError(
            f"'{earlier.path}' was scored on other images (the dense network scores {dense}, here {job.dense_score}); "
            "use the same data, search-images and finalists, or leave warm-start out"
        )


def _plain(value: Any) -> Any:
    """Names as config.json has them."""
    return list(value) if isinstance(value, tuple) else value
