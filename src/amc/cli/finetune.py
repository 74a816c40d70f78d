"""`amc finetune`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from amc.cli.common import JsonFlag, RecipeOption, RunArgument, finish, loading, out, reported, stoppable
from amc.cli.listening import LogOption, listening
from amc.cli.options import takes_settings
from amc.run.settings import CandidateConfig, FineTuneConfig, Given, SessionConfig


@reported
@takes_settings
def finetune(
    run: RunArgument,
    config: Given[FineTuneConfig],
    candidates: Given[CandidateConfig],
    session: SessionConfig,
    recipe: RecipeOption = None,
    log: LogOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the slim network of a run; the last epoch is reported.

    An interrupted fine-tuning is resumed; options that are not given keep their earlier values.

    On many GPUs: accelerate launch -m amc.cli finetune RUN
    """
    with loading():
        from amc.cli.jobs.finetune import run_finetune

    with stoppable(run), listening(run, log) as progress:
        run_finetune(run, config, candidates=candidates, session=session, progress=progress)
    if int(os.environ.get("RANK", "0")) == 0:  # of several processes only the first prints
        finish(run, as_json)
        if not as_json:
            _show_candidates(run)


def _show_candidates(run: Path) -> None:
    """Print the candidates and their scores, if there were several."""
    from amc.report.tables import format_score, named_scores
    from amc.run.directory import RunDir
    from amc.run.files import SUMMARY

    summary: Mapping[str, Any] = named_scores(RunDir.open(run).read_json(SUMMARY))
    tried = summary.get("candidates") or ()
    if not tried:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("candidate", "score", "tuned", ""):
        table.add_column(title, justify="left" if title in ("candidate", "") else "right")
    for entry in tried:
        cells = [format_score(entry["score"]), format_score(entry["score_tuned"])]
        table.add_row(f"episode {entry['episode']}", *cells, "taken on" if entry.get("chosen") else "")
    out.print()
    out.print(table)
