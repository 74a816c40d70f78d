"""Dense beside sparse TFLite files, here and on Arm: whether outputs agree, and which file is faster.

    python benchmarks/sparse_files.py --folder DIR
    python benchmarks/sparse_files.py --folder DIR --arm "ssh board python3"
    python benchmarks/sparse_files.py --folder DIR --arm ./arm-python --emulated "QEMU 10, user mode, Cortex-A76"

`--arm` is a command that runs a Python with ai-edge-litert on an Arm machine that sees DIR under the same path. Its
times are seconds of processor time, so other work disturbs them little. An emulator's times say no more than "yes" or
"no".

Each network's figures are saved as soon as they are measured. Run it again to measure what is missing, or with --again
to measure everything once more. Needs amc-compress[litert]; times here need a machine on which nothing else runs. The
results go to benchmarks/results/sparse-files.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amc.deploy.formats import tflite_graph
from amc.deploy.measure import MeasureSettings
from amc.deploy.runtimes import get_runtime
from amc.deploy.timing import latency_of_files
from amc.errors import AmcError
from amc.run.provenance import environment
from common import Record, load, plain_parser, table
from sparse_cases import CASES, SPARSE_FILES, Case, keep, known, verdict_of, written

RESULT = SPARSE_FILES

AGREE = 1e-5  # largest difference of equal outputs, as a share of the largest output
FASTER = 0.8  # a share of the dense file's time that no noise explains, emulated or not


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; those that it has are used again")
    parser.add_argument("--network", action="append", choices=list(CASES), metavar="NAME", help="default: all")
    parser.add_argument("--again", action="store_true", help="measure what has been measured already")
    parser.add_argument("--rounds", type=int, default=20, help="here, at least")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="here, a network")
    parser.add_argument("--arm", help="command that runs Python on an Arm machine")
    parser.add_argument("--emulated", metavar="BY", help="what emulates the Arm machine")
    parser.add_argument("--arm-rounds", type=int, default=20)
    parser.add_argument("--arm-seconds", type=float, default=60.0, help="no round begins after this")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.network or CASES:
        dense, sparse = written(args.folder.resolve(), name)
        if sparse.exists():
            measure_network(args, name, dense, sparse)
            print(f"{name}: {json.dumps(known(name))}", flush=True)
    return load(RESULT)


def measure_network(args: argparse.Namespace, name: str, dense: Path, sparse: Path) -> None:
    """Measure a network here and on Arm, unless that is done."""
    if args.again or "here" not in known(name):
        settings = MeasureSettings(rounds=args.rounds, max_seconds=args.max_seconds)
        keep(name, {"here": here(dense, sparse, CASES[name], settings)})
    if args.arm and (args.again or "arm" not in known(name)):
        command = shlex.split(args.arm)
        try:
            times = on_arm(command, dense, sparse, rounds=args.arm_rounds, seconds=args.arm_seconds)
        except AmcError as error:
            print(f"{name}: {error}", flush=True)
        else:
            keep(name, {"arm": times | {"emulated": args.emulated}})


def here(dense: Path, sparse: Path, case: Case, settings: MeasureSettings) -> Record:
    """Outputs and times of both files on this machine, one thread. `plain` shows what is not due to sparse storage."""
    inputs = (torch.randn(1, 3, case.side, case.side, generator=torch.Generator().manual_seed(2)),)
    engine = get_runtime("litert")
    first, second = (engine.load([path], threads=1, half=False).run(inputs)[0].clone() for path in (dense, sparse))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "model.tflite")
        plain.write_bytes(untransposed(dense.read_bytes()))
        networks = {name: ([path], inputs) for name, path in (("dense", dense), ("plain", plain), ("sparse", sparse))}
        measured = latency_of_files(networks, runtime="litert", settings=settings)
    difference = float((first - second).abs().max() / first.abs().max())
    return {"difference": finite(difference), "environment": environment()} | measured


def untransposed(data: bytes) -> bytes:
    """The file that `sparsify_tflite` would write if it stored nothing sparse: only the transposition is gone."""
    schema, model = tflite_graph.load_schema(), tflite_graph.read_model(data)
    for graph in model.subgraphs:
        tflite_graph.fold_transposed_means_(schema, model, graph)
    return tflite_graph.write_model(schema, model)


def on_arm(command: Sequence[str], dense: Path, sparse: Path, *, rounds: int, seconds: float) -> Record:
    """Outputs and times of the two files on another machine, one thread. The program is sent to its standard input."""
    call = f"{compare_files.__name__}({str(dense)!r}, {str(sparse)!r}, {rounds}, {seconds})"
    program = f"{inspect.getsource(compare_files)}\n\n{call}\n"
    done = subprocess.run([*command, "-"], input=program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AmcError(f"{shlex.join(command)} ended with code {done.returncode}:\n{done.stderr.strip()}")
    times: Record = json.loads(done.stdout.splitlines()[-1])
    return times | {"difference": finite(times["difference"])}


def finite(value: float) -> float | None:
    """None if the outputs were not numbers."""
    return value if math.isfinite(value) else None


def compare_files(dense: str, sparse: str, rounds: int, seconds: float) -> None:
    """Run the two files in alternation and print a line of JSON. Only the source of this function is sent."""
    import json
    import platform
    import time
    from importlib.metadata import version

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    runs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    for name, path in (("dense", dense), ("sparse", sparse)):
        runs[name] = interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        image = np.random.default_rng(0).standard_normal(entry["shape"]).astype(np.float32)
        interpreter.set_tensor(entry["index"], image)
        interpreter.invoke()  # warms up
        outputs[name] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    begin, order, done = time.perf_counter(), list(runs), 0
    while done < rounds and (done < 2 or time.perf_counter() - begin < seconds):
        for name in order:
            calls: list[float] = []
            while len(calls) < 100 and sum(calls) < 0.1:
                start = time.process_time()
                runs[name].invoke()
                calls.append(time.process_time() - start)
            times[name].append(float(np.median(calls)))
        order.reverse()
        done += 1
    difference = np.abs(outputs["dense"] - outputs["sparse"]).max() / np.abs(outputs["dense"]).max()
    ratios = sorted(b / a for a, b in zip(times["dense"], times["sparse"], strict=True))
    record = {
        "difference": float(difference), "dense_ms": min(times["dense"]) * 1e3, "sparse_ms": min(times["sparse"]) * 1e3,
        "ratio": min(times["sparse"]) / min(times["dense"]), "ratio_range": [ratios[0], ratios[-1]], "rounds": done,
        "machine": platform.machine(), "system": platform.system(), "python": platform.python_version(),
        "litert": version("ai-edge-litert"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    print(json.dumps(record))


def section(record: Record) -> str:
    rows = {name: row for name, row in record["networks"].items() if "here" in row or "arm" in row}
    machines = {row["here"]["environment"]["machine"] for row in rows.values() if "here" in row}
    place = " and ".join(sorted(machines)) or "x86_64"
    header = ["network, 90% zeros unless said", "verdict", "sparse / dense time on Arm", "outputs agree on Arm"]
    header += [f"sparse / dense time on {place}", "outputs agree there"]
    cells = [[name, verdict_of(row), *_arm(row.get("arm")), *_here(row.get("here"))] for name, row in rows.items()]
    text = table(header, cells, rule="|---" * len(header) + "|")
    return "\n".join([text, *_places(rows), *_verdicts(rows)]) + "\n"


def _arm(run: Record | None) -> list[str]:
    if run is None:
        return ["", ""]
    if not _agrees(run):
        return ["–", "**no**"]
    return [_rough(run["ratio"]) if run["emulated"] else f"{run['ratio']:.2f}", "yes"]


def _rough(share: float) -> str:
    """An emulator's times are not worth more digits."""
    part = round(1 / share)
    return f"1 / {part}" if part > 1 else f"{share:.0f}"


def _here(run: Record | None) -> list[str]:
    if run is None:
        return ["", ""]
    sparse, plain = (_ratio(run["networks"][name], steady=run["steady"]) for name in ("sparse", "plain"))
    return [f"{sparse} ({plain})", "yes" if _agrees(run) else "**no**"]


def _ratio(time: Record, *, steady: bool) -> str:
    return f"{time['ratio']:.2f}{'' if steady and time['verdict'] != 'undecided' else '?'}"


def _agrees(run: Record) -> bool:
    return run["difference"] is not None and bool(run["difference"] <= AGREE)


def _places(rows: Mapping[str, Record]) -> Iterator[str]:
    """Where and how the files were run, a paragraph for each machine."""
    for key, title, place_of in (("arm", "On Arm", _arm_place), ("here", "Elsewhere", _here_place)):
        runs = [row[key] for row in rows.values() if key in row]
        for place in dict.fromkeys(map(place_of, runs)):
            agreeing = [run for run in runs if _agrees(run) and place_of(run) == place]
            largest = max((run["difference"] for run in agreeing), default=0.0)
            yield f"{title}: {place}. Outputs that agree differ by at most {largest:.0e} of the largest output.\n"
    yield (
        "In brackets the dense file with the transposition before its mean taken out and nothing stored sparse. `?`: "
        "whatever difference there is lies within the noise, or other work on that machine kept the measurement from "
        "being as steady as claimed."
    )


def _arm_place(run: Record) -> str:
    place = f"{run['machine']}, ai-edge-litert {run['litert']}, one thread, {run['date']}"
    if not run["emulated"]:
        return place
    return (
        f"{place}, emulated ({run['emulated']}). Emulation tells which kernels run and whether outputs agree; its "
        'times are not those of a phone, so take the ratios as "yes" or "no"'
    )


def _here_place(run: Record) -> str:
    place = run["environment"]
    machine = f"{place['machine']}, {place['cpu']}, {place['cores']} cores"
    return f"{machine}, ai-edge-litert {run['runtime_version']}, one thread, {place['date']}"


def _verdicts(rows: Mapping[str, Record]) -> Iterator[str]:
    """How often the verdicts held on Arm."""
    runs: dict[str, list[Record]] = {"used": [], "not used": [], "refused": []}
    for row in rows.values():
        if "arm" in row:
            runs[verdict_of(row).partition(":")[0]].append(row["arm"])
    if any(runs.values()):
        used, unused, refused = runs.values()
        yield (
            f'\nOn Arm {_fast(used)} of {len(used)} networks with the verdict "used" were faster and {_right(used)} '
            f'right, {_fast(unused)} of {len(unused)} with "not used" were faster and {_right(unused)} right; of '
            f"{len(refused)} refused ones {len(refused) - _right(refused)} were wrong."
        )


def _fast(runs: Sequence[Record]) -> int:
    return sum(_agrees(run) and run["ratio"] < FASTER for run in runs)


def _right(runs: Sequence[Record]) -> int:
    return sum(map(_agrees, runs))


def main() -> None:
    parser = options()
    args = parser.parse_args()
    if args.emulated and not args.arm:
        parser.error("--emulated says what kind of machine --arm is; give --arm too")
    record = measure(args)
    for name, row in record["networks"].items():
        missing = [part for part in ("here", "arm") if part not in row and row["sparse_bytes"]]
        if missing:
            print(f"not measured yet: {name}, {' and '.join(missing)}")
    print(section(record))


if __name__ == "__main__":
    main()
