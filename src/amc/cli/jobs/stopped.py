"""The content of a stopped job's directory in one sentence, with the command that resumes the job."""

from __future__ import annotations

import shlex
from pathlib import Path

from amc.compression.load import point_path, round_path
from amc.errors import RunError
from amc.recovery import resume_point
from amc.run import files
from amc.run.directory import RunDir
from amc.search import load_journal


def left_in(path: Path) -> str:
    """One sentence without a full stop, such as "3 of 400 episodes are scored; `amc resume runs/a` goes on"."""
    try:
        return _left_in(path)
    except RunError as error:
        return str(error)


def _left_in(path: Path) -> str:
    if not (path / files.CONFIG).exists():
        return "nothing was written; run the same command again"
    run = RunDir.open(path)
    config = run.config()
    if config.get("schedule"):
        return _left_in_schedule(run, len(config["schedule"]))
    if config.get("sweep"):
        return _left_in_sweep(run, config["sweep"].get("points", 0))
    if not run.has(files.SUMMARY):
        return _left_in_search(run, config.get("episodes", 1))
    finetune = _command("finetune", path)
    if run.has(files.FINETUNE_STATE):
        return f"{_steps(run)}; {finetune} goes on"
    tuned = run.has(files.MODEL_FINETUNED)
    done = "the search and the fine-tuning are" if tuned else "the search is"
    return f"{done} finished and stored; {_command('report', path)} shows the result" + (
        "" if tuned else f", {finetune} trains it"
    )


def _left_in_schedule(run: RunDir, rounds: int) -> str:
    number = 1
    while number < rounds and (round_path(run, number + 1) / files.CONFIG).exists():
        number += 1
    inner = round_path(run, number)
    what = "it has not begun"
    if (inner / files.CONFIG).exists():
        what = _left_in(inner).partition(";")[0]
    return f"round {number} of {rounds}: {what}; {_command('resume', run.path)} goes on"


def _left_in_sweep(run: RunDir, points: int) -> str:
    done = sum((point_path(run, number) / files.SUMMARY).exists() for number in range(1, points + 1))
    return f"{done} of {points} points are finished; {_command('resume', run.path)} goes on"


def _left_in_search(run: RunDir, episodes: int) -> str:
    journals = sorted(run.path.glob("journal*.jsonl"))
    resume = _command("resume", run.path)
    if not journals:
        return f"no episode was scored yet; {resume} starts the search again"
    journal = run.file(files.JOURNAL)
    records = load_journal(journal).records if journal.exists() else ()
    scored = len(records)
    if records and records[-1].stopped is not None:
        return f"the search has stopped, as asked, after {scored} of {episodes} episodes; {resume} writes its result"
    if scored >= episodes:
        return f"all {episodes} episodes are scored, the result is not written yet; {resume} goes on"
    return f"{scored} of {episodes} episodes are stored; {resume} goes on"


def _steps(run: RunDir) -> str:
    """The last stored step of the unfinished fine-tuning."""
    for path in (run.file("finetune.ckpt"), *sorted(run.path.glob("finetune-candidate-*.ckpt"))):
        point = resume_point(path)
        if point is not None:
            what = "the fine-tuning" if path.name == "finetune.ckpt" else "the fine-tuning of a candidate"
            return f"{what} is stored up to step {point.step} of {point.total_steps}"
    return "the fine-tuning has no checkpoint yet"


def _command(name: str, path: Path) -> str:
    return f"`amc {name} {shlex.quote(str(path))}`"
