"""The tables of docs/sparse.md from what sparse_files.py left in benchmarks/results/, in a text of its own.

    python benchmarks/render_sparse.py

Only what stands between `<!-- measured: NAME -->` and `<!-- end -->` is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "sparse-files.json"
TARGET = HERE.parent / "docs" / "sparse.md"
AGREE = 1e-5  # largest difference of equal outputs, as a share of the largest output
FASTER = 0.8  # a share of the dense file's time that no noise explains, emulated or not
BY_ZEROS = "MobileNet-V1, 224×224, "

Row = dict[str, Any]


def main() -> None:
    networks = json.loads(RESULT.read_text(encoding="utf-8"))["networks"] if RESULT.exists() else {}
    TARGET.write_text(rendered(TARGET.read_text(encoding="utf-8"), networks), encoding="utf-8")
    for name, row in networks.items():
        missing = [part for part in ("here", "arm") if part not in row and row["sparse_bytes"]]
        if missing:
            print(f"not measured yet: {name}, {' and '.join(missing)}")


def rendered(text: str, networks: Mapping[str, Row]) -> str:
    """The page with its tables written anew; one for which there is nothing stays as it is."""
    for name, section in SECTIONS.items():
        body = "\n".join(section(networks))
        mark = re.compile(rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"{TARGET} has no lines `<!-- measured: {name} -->` and `<!-- end -->`")
        if body:
            text = mark.sub(lambda found, body=body: f"{found[1]}\n{body}\n\n{found[2]}", text)
    return text


def files_section(networks: Mapping[str, Row]) -> Iterator[str]:
    """Bytes by share of zeros."""
    rows = {name: row for name, row in networks.items() if name.startswith(BY_ZEROS)}
    if not rows:
        return
    yield "| zeros | dense file | sparse file | verdict on sparse kernels |"
    yield "|---|---|---|---|"
    for name, row in rows.items():
        zeros = name.removeprefix(BY_ZEROS).removesuffix(" zeros")
        dense, sparse, verdict = megabytes(row["dense_bytes"]), "–", "–"
        if row["sparse_bytes"]:
            sparse, verdict = megabytes(row["sparse_bytes"]), verdict_of(row).partition(":")[0]
        yield f"| {'none' if zeros == '0%' else zeros} | {dense} | {sparse} | {verdict} |"


def runs_section(networks: Mapping[str, Row]) -> Iterator[str]:
    """Dense beside sparse, here and on Arm."""
    rows = {name: row for name, row in networks.items() if "here" in row or "arm" in row}
    if not rows:
        return
    here = {row["here"]["environment"]["machine"] for row in rows.values() if "here" in row}
    kinds = " and ".join(sorted(here)) or "x86_64"
    yield (
        "| network, 90% zeros unless said | verdict | sparse / dense time on Arm | outputs agree on Arm | "
        f"sparse / dense time on {kinds} | outputs agree there |"
    )
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        cells = [name, verdict_of(row), *arm_cells(row.get("arm")), *here_cells(row.get("here"))]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from places(rows)
    yield from verdicts(rows)


def verdict_of(row: Row) -> str:
    """The first half of a reason that has two is enough."""
    verdict = row["verdict"]
    if verdict["used"]:
        return "used"
    return f"{'refused' if verdict['wrong'] else 'not used'}: {verdict['reason'].partition(';')[0]}"


def arm_cells(found: Row | None) -> list[str]:
    if found is None:
        return ["", ""]
    if not agrees(found):
        return ["–", "**no**"]
    return [rough(found["ratio"]) if found["emulated"] else f"{found['ratio']:.2f}", "yes"]


def rough(share: float) -> str:
    """An emulator's times are not worth more digits."""
    part = round(1 / share)
    return f"1 / {part}" if part > 1 else f"{share:.0f}"


def here_cells(found: Row | None) -> list[str]:
    if found is None:
        return ["", ""]
    networks = found["networks"]
    sparse, plain = (ratio(networks[name], steady=found["steady"]) for name in ("sparse", "plain"))
    return [f"{sparse} ({plain})", "yes" if agrees(found) else "**no**"]


def ratio(found: Row, *, steady: bool) -> str:
    return f"{found['ratio']:.2f}{'' if steady and found['verdict'] != 'undecided' else '?'}"


def agrees(found: Row) -> bool:
    return found["difference"] is not None and bool(found["difference"] <= AGREE)


def places(rows: Mapping[str, Row]) -> Iterator[str]:
    """Where and how, a paragraph for each machine."""
    for key, title, place in (("arm", "On Arm", arm_place), ("here", "Elsewhere", here_place)):
        parts = [row[key] for row in rows.values() if key in row]
        for where in dict.fromkeys(map(place, parts)):
            same = [part for part in parts if agrees(part) and place(part) == where]
            largest = max((part["difference"] for part in same), default=0.0)
            yield f"{title}: {where}. Outputs that agree differ by at most {largest:.0e} of the largest output.\n"
    yield (
        "In brackets the dense file with the transposition before its mean taken out and nothing stored sparse. `?`: "
        "whatever difference there is lies within the noise, or other work on that machine kept the measurement from "
        "being as steady as claimed."
    )


def verdicts(rows: Mapping[str, Row]) -> Iterator[str]:
    """How the verdicts fared on Arm."""
    found: dict[str, list[Row]] = {"used": [], "not used": [], "refused": []}
    for row in rows.values():
        if "arm" in row:
            found[verdict_of(row).partition(":")[0]].append(row["arm"])
    if any(found.values()):
        used, unused, refused = found.values()
        yield (
            f'\nOn Arm {fast(used)} of {len(used)} networks with the verdict "used" were faster and {right(used)} '
            f'right, {fast(unused)} of {len(unused)} with "not used" were faster and {right(unused)} right; of '
            f"{len(refused)} refused ones {len(refused) - right(refused)} were wrong."
        )


def fast(runs: Sequence[Row]) -> int:
    return sum(agrees(found) and found["ratio"] < FASTER for found in runs)


def right(runs: Sequence[Row]) -> int:
    return sum(map(agrees, runs))


def arm_place(found: Row) -> str:
    place = f"{found['machine']}, ai-edge-litert {found['litert']}, one thread, {found['date']}"
    if not found["emulated"]:
        return place
    return (
        f"{place}, emulated ({found['emulated']}). Emulation tells which kernels run and whether outputs agree; its "
        'times are not those of a phone, so take the ratios as "yes" or "no"'
    )


def here_place(found: Row) -> str:
    place = found["environment"]
    machine = f"{place['machine']}, {place['cpu']}, {place['cores']} cores"
    return f"{machine}, ai-edge-litert {found['runtime_version']}, one thread, {place['date']}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


SECTIONS: dict[str, Callable[[Mapping[str, Row]], Iterator[str]]] = {"files": files_section, "runs": runs_section}


if __name__ == "__main__":
    main()
