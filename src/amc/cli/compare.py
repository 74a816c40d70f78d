"""`amc compare`: the command, and a comparison on a terminal."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from amc.cli.common import JsonFlag, err, loading, out, print_json, reported
from amc.run.settings import Panel

if TYPE_CHECKING:
    from amc.report.compare.compared import Compared, GroupRow
    from amc.report.compare.page import NetworkRow

GROUPS_SHOWN = 8
_COLUMNS = 80
_SHARE = 5  # characters of a kept share, with the space before it


@reported
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Finished runs; of a sweep every point is compared.")
    ],
    cost: Annotated[
        str | None,
        typer.Option(help="macs, params, size, memory or latency: decides among equals (default: the searches' own)."),
    ] = None,
    score: Annotated[
        bool, typer.Option("--score/--no-score", help="Score the networks again, all on the same images.")
    ] = True,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="HTML page to write.", rich_help_panel=Panel.OUTPUT)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare runs on the same images, and say which network to take."""
    with loading():
        from amc.cli.jobs.compare import run_compare as job
        from amc.compression.progress import ProgressBar
        from amc.report.compare.page import write_comparison

    compared = job(runs, score=score, cost=cost, progress=ProgressBar(err))
    if out_path is not None:
        write_comparison(compared, out_path)
    if as_json:
        print_json(compared.to_json() | ({} if out_path is None else {"page": str(out_path)}))
    else:
        _show(compared, out_path)


def _show(compared: Compared, page: Path | None) -> None:
    from amc.report.compare.page import network_rows

    rows = network_rows(compared)
    out.print()
    for row in rows:
        _line(row.label, f"{row.name}: {row.what}")
    for table in (_costs(rows), _scores(rows, compared), _groups(compared)):
        if table is not None:
            out.print()
            out.print(table)
    left = len(compared.groups()) - GROUPS_SHOWN
    if left > 0:
        out.print(f"… and {left} more group{'s' if left > 1 else ''}; --out PAGE.html shows all", style="dim")
    out.print()
    if compared.answers is not None:
        _line("compared", f"on {compared.answers.which}; ± is one standard error of a difference")
    for note in compared.notes:
        _line("note", note, style="yellow")
    _line("result", compared.sentence(), style="bold")
    if page is not None:
        out.print(f"page      {page}", markup=False, soft_wrap=True)


def _costs(rows: list[NetworkRow]) -> Table:
    """What the networks cost. The first three have shares of the dense network's cost."""
    table = _table("", "MACs", "left", "params", "left", "size", "left", "memory", "latency")
    for row in rows:
        *counted, (_, memory, _) = row.costs
        table.add_row(
            row.label, *(t for _, value, share in counted for t in (value, _short(share))), memory, row.latency
        )
    return table


def _scores(rows: list[NetworkRow], compared: Compared) -> Table:
    """What the networks score. The last two columns are on the same images for all, if these could be scored."""
    last = "compared" if compared.answers is not None else "result"
    table = _table("", "uniform", "pruned", "recovered", "tuned", "test", last, "against best")
    for row in rows:
        cells = (row.uniform, row.pruned, row.recovered, row.tuned, row.test, row.score)
        table.add_row(row.label, *cells, Text(row.from_best.text, style="dim" if row.from_best.noise else ""))
    return table


def _groups(compared: Compared) -> Table | None:
    """The groups that differ most; None if there are none, or too many networks for the width."""
    rows, labels = compared.groups()[:GROUPS_SHOWN], [entry.label for entry in compared.entries]
    room = _COLUMNS - (_SHARE + 1) * len(labels)
    if not rows or room < 20:
        return None
    table = _table("kept", *labels)
    for row in rows:
        table.add_row(_fitted(row.name, room), *_shares(row))
    return table


def _shares(row: GroupRow) -> list[str]:
    return ["–" if share is None else f"{share:.0%}" for share in row.shares]


def _fitted(name: str, room: int) -> str:
    """The name, or its end, which tells layers apart."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def _short(share: str) -> str:
    """One decimal, as in 49.8%: nine columns have no room for two."""
    return share if share == "–" else f"{float(share.rstrip('%')):.1f}%"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table


def _line(label: str, text: str, style: str = "") -> None:
    """Print a labelled text, wrapped under itself."""
    plain = textwrap.fill(text, min(out.width, _COLUMNS), initial_indent=f"{label:<9} ", subsequent_indent=" " * 10)
    out.print(plain, style=style, markup=False, soft_wrap=True)
