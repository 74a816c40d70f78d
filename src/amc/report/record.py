"""Reads the whole content of a run directory, for the page.

The search may be unfinished, so every file except `config.json` may be missing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from amc.errors import RunError
from amc.report.finalists import finalist_episode
from amc.report.guarantee import guaranteed_episode
from amc.report.tables import named_scores, part_of, records_of
from amc.run import files
from amc.run.directory import RunDir
from amc.run.settings.scores import ScoreKind, score_of_record
from amc.search import EpisodeRecord, JournalContent, load_journal


@dataclass(frozen=True, slots=True)
class Group:
    """The keep count of one group of channels, or of one layer's weights, rows, columns or blocks."""

    name: str
    size: int
    kept: int
    uniform: int | None  # keep count of the best uniform policy
    saves: Mapping[str, float]  # by metric, what the cut of this group alone saves; empty if unknown

    @property
    def share(self) -> float:
        """The kept fraction, in [0, 1]."""
        return self.kept / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run directory in memory."""

    path: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # empty while the search is unfinished
    episodes: tuple[EpisodeRecord, ...]
    uniform: tuple[EpisodeRecord, ...]
    random: tuple[EpisodeRecord, ...]
    groups: tuple[Group, ...]
    warmup: int  # first episodes, which explored at random
    seconds: Mapping[str, float]  # mean wall-clock time of an episode, by its parts
    finetune: tuple[Mapping[str, Any], ...]  # one record per epoch
    answers: Mapping[str, Any]  # the content of answers.json; empty without it
    has_model: bool
    latencies: tuple[Mapping[str, Any], ...]  # of `amc latency`, of the weights that the run has now
    exports: tuple[Mapping[str, Any], ...]  # of `amc export`, likewise
    files: tuple[tuple[str, int], ...]  # the run's files by name, and their bytes

    @property
    def failed(self) -> tuple[EpisodeRecord, ...]:
        """Episodes without a score."""
        return tuple(episode for episode in self.episodes if episode.score is None)

    @property
    def best(self) -> tuple[EpisodeRecord, ...]:
        """The scored episodes, highest reward first; equal rewards in the order of episodes."""
        return ranked(self.episodes)

    @property
    def chosen(self) -> int | None:
        """The episode of the resulting policy. It is not always the best of the search."""
        for candidate in records_of(self.summary.get("candidates")):
            if candidate.get("chosen"):
                return candidate.get("episode")
        for episode in (guaranteed_episode(self.summary), finalist_episode(self.summary)):
            if episode is not None:
                return episode
        return self.best[0].episode if self.best else None


def merit(episode: EpisodeRecord) -> float:
    """The reward; minus infinity for a failed episode."""
    return -math.inf if episode.reward is None else episode.reward


def ranked(episodes: Iterable[EpisodeRecord]) -> tuple[EpisodeRecord, ...]:
    """The scored episodes, highest reward first; equal rewards in the order of episodes."""
    return tuple(sorted((e for e in episodes if e.score is not None), key=lambda e: (-merit(e), e.episode)))


def load_record(run: RunDir) -> RunRecord:
    """Read a run. Raises `RunError` with the name of a damaged file."""
    config = run.config()
    summary = named_scores(run.read_json(files.SUMMARY)) if run.has(files.SUMMARY) else {}
    kind = score_of_record({**config, **summary})
    policy = run.read_json(files.POLICY) if run.has(files.POLICY) else {}
    journals = [files.JOURNAL, *map(files.baseline_journal, ("uniform", "random"))]
    run.verify(files.POLICY, *journals)
    journal, uniform, random = (_journal(run, name) for name in journals)
    return RunRecord(
        path=str(run.path),
        config=config,
        summary=summary,
        episodes=_episodes(journal, kind),
        uniform=_episodes(uniform, kind),
        random=_episodes(random, kind),
        groups=_groups(summary, policy, _best_keep(uniform.records)),
        warmup=_warmup(config, journal.header),
        seconds=_seconds(run.read_jsonl(files.TIMINGS)),
        finetune=tuple(_named(epoch, kind) for epoch in _epochs(run)),
        answers=run.read_json(files.ANSWERS) if run.has(files.ANSWERS) else {},
        has_model=run.has(files.MODEL),
        latencies=kept_records(run, files.LATENCY),
        exports=kept_records(run, files.EXPORT),
        files=_files(run),
    )


def _files(run: RunDir) -> tuple[tuple[str, int], ...]:
    """All but hidden ones, the page itself and what a job under way writes."""
    left_out = (files.REPORT, files.STATUS, files.PREPARED)
    paths = sorted(path for path in run.path.iterdir() if path.is_file())
    shown = (path for path in paths if not path.name.startswith(".") and path.name not in left_out)
    return tuple((path.name, path.stat().st_size) for path in shown if path.exists())


def kept_records(run: RunDir, name: str) -> tuple[Mapping[str, Any], ...]:
    """The records of a file that are about the present weights."""
    present = set(run.digests([files.MODEL, files.MODEL_FINETUNED]).values())
    found = run.read_json(name).get("records", {}) if run.has(name) else {}
    return tuple(record for record in found.values() if record.get("weights") in present)


def _journal(run: RunDir, name: str) -> JournalContent:
    return load_journal(run.file(name)) if run.has(name) else JournalContent({})


def _epochs(run: RunDir) -> tuple[dict[str, Any], ...]:
    """The epochs of fine-tuning. Raises RunError if they do not fit the summary."""
    epochs = tuple(record for record in run.read_jsonl(files.FINETUNE) if "epoch" in record)
    summary = run.read_json(files.SUMMARY) if run.has(files.SUMMARY) else {}
    slim = part_of(summary, "slim")
    if epochs and "files" in summary and "score_finetuned" in slim and not run.has(files.FINETUNE_STATE):
        in_turn = [record["epoch"] for record in epochs] == list(range(1, len(epochs) + 1))
        if not in_turn or epochs[-1].get("score") != slim["score_finetuned"]:
            raise RunError(
                f"'{run.file(files.FINETUNE)}' is not of the fine-tuning that {files.SUMMARY} tells of; "
                "restore it from a copy, or delete it"
            )
    return epochs


def _best_keep(episodes: tuple[EpisodeRecord, ...]) -> tuple[int, ...]:
    return ranked(episodes)[0].keep if ranked(episodes) else ()


def _named(record: Mapping[str, Any], kind: ScoreKind) -> Mapping[str, Any]:
    score = record.get("score")
    return record if score is None else {**record, "score": kind.named(score)}


def _episodes(journal: JournalContent, kind: ScoreKind) -> tuple[EpisodeRecord, ...]:
    return tuple(record.named(kind) for record in journal.records)


def _groups(summary: Mapping[str, Any], policy: Mapping[str, Any], uniform: tuple[int, ...]) -> tuple[Group, ...]:
    # The policy takes precedence: it describes the stored network, also after a choice between candidates.
    records = policy.get("groups") or summary.get("groups") or ()
    aligned = uniform if len(uniform) == len(records) else (None,) * len(records)
    saves = {(group.get("name"), group.get("kept")): group.get("saves") for group in summary.get("groups") or ()}
    groups = []
    for index, (record, uniform_keep) in enumerate(zip(records, aligned, strict=True)):
        name, kept = record.get("name"), int(record["kept"] if "kept" in record else len(record.get("keep", ())))
        size, saved = int(record.get("size", 0)), saves.get((name, kept)) or {}
        groups.append(Group(str(name or f"group {index}"), size, kept, uniform_keep, saved))
    return tuple(groups)


def _warmup(config: Mapping[str, Any], header: Mapping[str, Any]) -> int:
    warmup = config.get("warmup", (header.get("settings") or {}).get("warmup_episodes"))
    return warmup if isinstance(warmup, int) else 0


def _seconds(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds per episode, by part. An episode repeated after a kill counts once, with its last time."""
    by_episode = {record.get("episode"): record.get("seconds") or {} for record in records}
    totals: dict[str, float] = {}
    for parts in by_episode.values():
        for part, seconds in parts.items():
            totals[part] = totals.get(part, 0.0) + seconds
    return {part: total / len(by_episode) for part, total in totals.items()}
