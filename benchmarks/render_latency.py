"""docs/latency.md from what the latency_*.py scripts left in benchmarks/results/, around a text of its own.

    python benchmarks/render_latency.py

The page's text lies between its title and the line `## Measured`; everything after that line is written here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TARGET = HERE.parent / "docs" / "latency.md"
MARK = "## Measured"

# Latency ratios to the dense network on a Pixel 1 with TFLite, one thread, as cited from the paper.
PIXEL = {"dense": "123 ms", "published, half the FLOPs": "1.81×", "published, half the time": "1.95×"}

TRAINED = "Latency was searched for on ONNX Runtime; scores are those of the searches, before any fine-tuning."


def main() -> None:
    text = TARGET.read_text(encoding="utf-8").partition(MARK)[0]
    parts = [*table_section(), *search_section(), *runtimes_section()]
    body = "\n".join(parts) if parts else "Nothing has been measured yet.\n"
    TARGET.write_text(f"{text}{MARK}\n\n{body}", encoding="utf-8")


def table_section() -> Iterator[str]:
    found = read("latency-table.json")
    if found is None:
        return
    yield "### The table against whole networks\n"
    yield (
        "Random policies between the dense network and the least, each measured whole in alternation with the dense "
        "one (`benchmarks/latency_table.py`). The error is that of the predicted share of the dense latency.\n"
    )
    yield "| network | policies | mean error | worst | blocks timed | seconds for the table | not steady |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in found["networks"].items():
        yield (
            f"| {name} | {len(row['policies'])} | {row['mean_error']:.1f}% | {row['worst_error']:.1f}% | "
            f"{row['table']['blocks']} | {row['table']['seconds']:.0f} | {row['unsteady']} |"
        )
    yield machine_of(found)


def search_section() -> Iterator[str]:
    files = sorted(RESULTS.glob("latency-search-*.json"))
    for index, path in enumerate(files):
        found = json.loads(path.read_text(encoding="utf-8"))
        if index == 0:
            yield "### Searches for half the latency\n"
            yield (
                "`benchmarks/latency_search.py`: the share of the dense latency as the search measured it, and as "
                "`amc latency RUN` measures it afterwards, the median and the range of several runs, a process each. "
                "`search` is the time of the episodes, `deciding` that of measuring the best policies and of scoring "
                "neighbours (and as a share of the episodes), `table` that of the latency table, which later searches "
                "find in the cache.\n"
            )
            yield (
                "| network | search | in the search | afterwards | score | policies measured, scored again | search | "
                "deciding | table |"
            )
            yield "|" + "---|" * 9
        rows = [("macs<=50%", found.get("macs"))] if found.get("macs") else []
        rows += [(f"latency<=50%, seed {seed}", row) for seed, row in sorted(found.get("latency", {}).items())]
        for title, row in rows:
            yield search_row(found.get("model", path.stem), title, row)
        if index + 1 == len(files):
            yield machine_of(found)


def search_row(model: str, title: str, row: dict[str, Any]) -> str:
    latency, shares = row.get("latency"), [after["share"] for after in row["afterwards"]]
    unsteady = sum(not after["steady"] for after in row["afterwards"])
    doubt = f", {unsteady} of {len(shares)} not steady" if unsteady else ""
    after = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}){doubt}"
    cells = [model, f"`{title}`", "", after]
    cells += [f"{row['slim']['score']:.4f}", "", f"{row['wall_seconds']:.0f} s", "", ""]
    if latency:
        table = latency["table"]["seconds"] * title.endswith("seed 0")
        search = row["wall_seconds"] - latency["seconds"] - table
        cells[2], cells[5] = f"{latency['share']:.1%}", f"{latency['measured']}, {latency['scored_again']}"
        deciding = f"{latency['seconds']:.0f} s ({latency['seconds'] / search:.0%})"
        cells[6:] = [f"{search:.0f} s", deciding, f"{table:.0f} s" if table else "cached"]
    return f"| {' | '.join(cells)} |"


def runtimes_section() -> Iterator[str]:
    found = read("latency-runtimes.json")
    if found is None:
        return
    titles = {"trained": "Trained networks, 32x32", "imagenet": "ImageNet shapes, 224x224, random weights"}
    for kind, title in titles.items():
        if kind not in found:
            continue
        yield f"### {title}\n"
        yield (
            "Each cell: ms and speed-up over the dense network, measured in the same rounds; one thread, batch 1, "
            "float32 (`benchmarks/latency_runtimes.py`). `?` marks a difference within the noise. "
            + TRAINED * (kind == "trained")
            + "\n"
        )
        for name, entry in found[kind].items():
            yield from network_table(name, entry)
    yield machine_of(found)


def network_table(name: str, entry: dict[str, Any]) -> Iterator[str]:
    runtimes = entry["runtimes"]
    versions = ", ".join(f"{r} {v['runtime_version']}" for r, v in runtimes.items() if "networks" in v)
    scored = any("score" in variant for variant in entry["variants"].values())
    pixel = any(variant in PIXEL for variant in entry["variants"] if variant != "dense")
    head = ["network", "MACs", "parameters", "file", *(["search score"] if scored else []), *runtimes]
    head += ["Pixel 1 (cited)"] if pixel else []
    yield f"**{name}** ({versions})\n"
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for variant, row in entry["variants"].items():
        files = [v["networks"][variant]["file_bytes"] for v in runtimes.values() if variant in v.get("networks", {})]
        cells = [variant, f"{row['macs'] / 1e6:.1f} M", f"{row['params'] / 1e6:.2f} M", megabytes(files)]
        cells += [f"{row['score']:.4f}" if "score" in row else ""] if scored else []
        cells += [cell(found, variant) for found in runtimes.values()]
        cells += [PIXEL.get(variant, "")] if pixel else []
        yield f"| {' | '.join(cells)} |"
    for runtime, found in runtimes.items():
        if "error" in found:
            yield f"\n{runtime}: {found['error']}"
        elif not found["steady"]:
            doubt = max(row["uncertainty"] / row["ratio"] for row in found["networks"].values() if "ratio" in row)
            yield f"\n{runtime} was not steady: its speed-ups may be off by {doubt:.0%}."
    yield ""


def cell(found: dict[str, Any], variant: str) -> str:
    times = found.get("networks", {}).get(variant)
    if times is None:
        return "—"
    if "ratio" not in times:
        return f"{times['latency_ms']:.2f}"
    mark = "?" if times["verdict"] == "undecided" else ""
    return f"{times['latency_ms']:.2f} ({1 / times['ratio']:.2f}×{mark})"


def megabytes(files: list[int]) -> str:
    sizes = [size for size in files if size]
    return f"{min(sizes) / 1e6:.2f} MB" if sizes else ""


def machine_of(found: dict[str, Any]) -> str:
    place = found["environment"]
    return f"\nMeasured on {place['cpu']}, {place['cores']} cores, torch {place['torch']}, {place['date']}.\n"


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


if __name__ == "__main__":
    main()
