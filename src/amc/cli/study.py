"""`amc study`: the command, and a study on a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from amc.cli.common import JsonFlag, RecipeOption, loading, out, print_json, reported, stoppable
from amc.cli.listening import LogOption, listening
from amc.cli.options import takes_settings
from amc.compression.settings import SearchConfig
from amc.run.settings import Given, Panel, Source, StudyConfig, spelled

if TYPE_CHECKING:
    from amc.cli.jobs.study import Planned
    from amc.report.study import Study


@reported
@takes_settings
def study(
    source: Source,
    config: Given[SearchConfig],
    plan: StudyConfig,
    out_dir: Annotated[
        Path,
        typer.Option("--out", help="Directory for the study, new or of the same study.", rich_help_panel=Panel.OUTPUT),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the searches and a rough estimate of the time; write nothing.")
    ] = False,
    recipe: RecipeOption = None,
    log: LogOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Every method under every constraint, and one table: costs, scores, latencies."""
    with loading():
        from amc.cli.jobs.study import plan_study, run_study, search_settings

    settings = search_settings(config)
    if dry_run:
        planned = plan_study(out_dir, source, settings, plan)
        print_json({"cells": [_record(each) for each in planned]}) if as_json else _show_plan(planned)
        return
    source = replace(source, repeat=spelled("study", source, config, plan))
    with stoppable(out_dir), listening(out_dir, log) as progress:
        run_study(out_dir, source, settings, plan, progress=progress)
    finish_study(out_dir, as_json)


def is_study(place: Path) -> bool:
    """Whether a directory holds a study."""
    from amc.run.directory import RunDir

    return bool(RunDir.open(place).config().get("study"))


def finish_study(place: Path, as_json: bool) -> None:
    """Print the results, as a table or as JSON."""
    from amc.report.study import read_study, to_json
    from amc.run.directory import RunDir

    found = read_study(RunDir.open(place))
    if as_json:
        print_json(to_json(found) | {"run": str(place)})
    else:
        show_study(found, place)


def show_study(found: Study, place: Path) -> None:
    """The results in 80 columns; the files have the rest."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "constraint", "MACs", "params", "pruned", "result", "test"):
        table.add_column(title, justify="left" if title in ("method", "constraint") else "right", no_wrap=True)
    for row in (found.dense, *found.rows):
        if not (row.done or row is found.dense):
            table.add_row(row.method, row.constraint, "–", "–", "–", "–", "–", style="dim")
            continue
        shares = [_percent(row.median(f"{key}_share")) for key in ("macs", "params")]
        scores = [_score(value) for value in (row.median("score"), row.result, row.test)]
        table.add_row(row.method, row.constraint, *shares, *scores)
    out.print(table)
    for row in found.rows:
        if row.reason:
            out.print(f"no result: {row.name}: {row.reason}", markup=False, style="yellow")
    for constraint, verdict in found.verdicts().items():
        out.print(f"{constraint}: {verdict}", markup=False)
    out.print(f"tables: {place}/report.html, study.md, study.csv, study.json", markup=False, soft_wrap=True)


def _show_plan(planned: list[Planned]) -> None:
    for each in planned:
        what = f"not possible: {each.reason}" if each.reason else f"about {_minutes(each.seconds)}"
        out.print(f"{each.cell.name}: {what}", markup=False)
    possible = [each for each in planned if not each.reason]
    whole = _minutes(sum(each.seconds for each in possible))
    out.print(f"{len(possible)} of {len(planned)} searches are possible; about {whole} in all, with one process")


def _record(each: Planned) -> dict[str, Any]:
    return {"name": each.cell.name, "reason": each.reason or None, "seconds": round(each.seconds)}


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _score(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if 0 <= value <= 1 else f"{value:.4g}"
