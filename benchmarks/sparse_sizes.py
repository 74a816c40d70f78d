"""Bytes of dense and sparse TFLite files, by share of zeros.

    python benchmarks/sparse_sizes.py --folder DIR

Needs amc-compress[litert]. The results go to benchmarks/results/sparse-files.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import Record, load, plain_parser, table
from sparse_cases import BY_ZEROS, CASES, SPARSE_FILES, verdict_of, written

RESULT = SPARSE_FILES


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; those that it has are used again")
    return parser


def measure(args: argparse.Namespace) -> Record:
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        if name.startswith(BY_ZEROS):
            written(args.folder.resolve(), name)
    return load(RESULT)


def section(record: Record) -> str:
    header = ["zeros", "dense file", "sparse file", "verdict on sparse kernels"]
    networks = {name: row for name, row in record["networks"].items() if name.startswith(BY_ZEROS)}
    return table(header, [_cells(name, row) for name, row in networks.items()], rule="|---" * len(header) + "|")


def _cells(name: str, row: Record) -> list[str]:
    zeros = name.removeprefix(BY_ZEROS).removesuffix(" zeros")
    sparse, verdict = "–", "–"
    if row["sparse_bytes"]:
        sparse, verdict = _megabytes(row["sparse_bytes"]), verdict_of(row).partition(":")[0]
    return ["none" if zeros == "0%" else zeros, _megabytes(row["dense_bytes"]), sparse, verdict]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
