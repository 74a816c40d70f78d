"""Checks a journal against the current network and data, so that an edited record never becomes a result.

Costs and rewards are computed again from the keep counts and scores. The score of the chosen policy is measured again.
Another data set is refused. Another processor, version or number of threads gives a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from amc.compression.job import Job
from amc.compression.scoring.engine.choice import BFLOAT16, TORCH
from amc.compression.scoring.evaluator import score_of
from amc.errors import EvaluationError, RunError
from amc.run.provenance import difference
from amc.search import EpisodeRecord, JournalContent, Outcome, load_journal, rewarded
from amc.search.judging import score_of_policy
from amc.structure.copying import copy_model

TOLERANCE = 1e-6  # of a score, relative and absolute; one image in 50,000 is 2e-5
_DATA = {"calibration": "calibration images", "search": "search images"}


@dataclass(frozen=True, slots=True)
class Recorded:
    """The journals of a run, before this session adds records."""

    contents: Mapping[Path, JournalContent]

    @classmethod
    def at(cls, paths: Sequence[Path]) -> Recorded:
        """Read the journals that exist. Raises RunError for a damaged one."""
        return cls({path: content for path in paths if path.exists() if (content := load_journal(path)).header})

    def place_of(self, record: EpisodeRecord) -> Path | None:
        """The journal that contains a record; None for a record of this session."""
        return next((path for path, content in self.contents.items() if record in content.records), None)

    def moved(self, job: Job) -> bool:
        """Whether some record was scored with other versions, threads or instructions, or this is unknown."""
        here = job.origin["environment"]
        return any(
            not content.places or any(place != here for place in content.places) for content in self.contents.values()
        )

    def engine(self, *, bf16: bool) -> str | None:
        """The name of the engine that scored the last record; None without a journal. `bf16`: the run's setting.

        Runs that began before engines were recorded were scored with torch, in bfloat16 if that was set.
        """
        places = [content.places for content in self.contents.values()]
        if not places:
            return None
        last = places[-1][-1] if places[-1] else {}
        return str(last.get("engine", BFLOAT16 if bf16 else TORCH))

    def check(self, job: Job) -> list[str]:
        """Warnings about resuming here. Raises RunError for other data, another dense score, or changed records."""
        warnings: list[str] = []
        for path, content in self.contents.items():
            if content.origin:
                _check_data(path, content.origin["data"], job.origin["data"])
                warnings += self._check_dense(path, content.origin["dense_score"], job)
            warnings += [text for place in content.places if (text := _elsewhere(place, job.origin["environment"]))]
            for record in content.records:
                check_record(path, record, job)
        return list(dict.fromkeys(warnings))

    def _check_dense(self, path: Path, recorded: float, job: Job) -> list[str]:
        _, warnings = reconciled(
            recorded,
            job.dense_score,
            lambda: _number(score_of(job.scorer.evaluate, copy_model(job.model), "dense")),
            f"the dense network of '{path}'",
            refuse=not self.moved(job),
        )
        return warnings


def check_record(path: Path, record: EpisodeRecord, job: Job) -> None:
    """Raise RunError unless the record's costs and reward follow from its keep counts and score."""
    where, problem = f"episode {record.episode} in '{path}'", job.problem
    remedy = f"restore the file from a copy, or delete the line of episode {record.episode} and all after it"
    fits = len(record.keep) == len(problem.decisions) and all(
        kept in decision.choices for kept, decision in zip(record.keep, problem.decisions, strict=True)
    )
    if not fits:
        raise RunError(f"{where} keeps {list(record.keep)}, which is no policy of this search; {remedy}")
    costs = problem.policy_costs(record.keep)
    for name, value in costs.items():
        if not _close(record.cost.get(name, math.nan), value, 1e-9):
            raise RunError(f"{where} has {record.cost.get(name)} {name}, and its policy costs {value:.10g}; {remedy}")
    if record.score is None or record.reward is None:
        return
    dense = problem.policy_costs(problem.dense.tolist())
    reward = rewarded(job.reward, Outcome(record.score, costs, dense, record.standard_error))
    if not _close(record.reward, reward, 1e-9):
        raise RunError(f"{where} has reward {record.reward}, and its score and costs give {reward}; {remedy}")


def confirmed(job: Job, record: EpisodeRecord, slim: nn.Module, recorded: Recorded) -> tuple[EpisodeRecord, list[str]]:
    """Score the record's network `slim` again. Returns the record with the new score, and warnings.

    For a record of an earlier session: raises RunError if only the score changed, and EvaluationError if the network
    cannot be scored. For a record of this session: if `evaluate` fails now, the first score remains.
    """
    assert record.score is not None
    path = recorded.place_of(record)
    where = "the result" if path is None else f"episode {record.episode} in '{path}'"

    def again() -> float:
        return _number(score_of(job.scorer.evaluate, slim, "resulting"))

    try:
        refuse = path is not None and not recorded.moved(job)
        score, warnings = reconciled(record.score, again(), again, where, refuse=refuse)
    except EvaluationError as error:
        if path is not None:
            raise
        return record, [f"the result could not be scored a second time: {error}"]
    if not warnings:
        return record, []
    dense = job.problem.policy_costs(job.problem.dense.tolist())
    reward = rewarded(job.reward, Outcome(score, record.cost, dense, record.standard_error))
    return replace(record, score=score, reward=reward), warnings


def reconciled(
    recorded: float, now: float, again: Callable[[], float], what: str, *, refuse: bool
) -> tuple[float, list[str]]:
    """The valid one of two scores of a network, and a warning if they differ. The newer score is then valid.

    A third score, by `again`, shows whether `evaluate` is deterministic. If it is, the recorded score or the data was
    changed: with `refuse` this raises RunError.
    """
    if _close(recorded, now, TOLERANCE):
        return recorded, []
    if not _close(now, again(), TOLERANCE):
        reason = "evaluate gives one network different scores"
    elif refuse:
        raise RunError(
            f"{what} has the recorded score {recorded:.10g}, and its network now scores {now:.10g}: the record, the "
            "data or evaluate was changed; restore it, or start a new run"
        )
    else:
        reason = "the earlier score is of another session, processor or version"
    return now, [f"{what} scored {recorded:.6g} before and {now:.6g} when scored again ({reason}); the new one counts"]


def _check_data(path: Path, began: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name, what in _DATA.items():
        if began.get(name) != here.get(name):
            raise RunError(
                f"'{path}' was begun with other {what}; give the same ones in the same order (a loader that shuffles "
                "gives others each time), or start a new run"
            )


def _elsewhere(place: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    differing = difference(place, here)
    if differing is None:
        return None
    return f"part of this search was scored elsewhere ({differing}): the result may differ in the last digits"


def _number(score: Any) -> float:
    return score_of_policy(score)[0]


def _close(first: float, second: float, tolerance: float) -> bool:
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
