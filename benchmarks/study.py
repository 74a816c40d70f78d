"""Every method under every constraint, on one network: the table of `amc study`.

    python benchmarks/study.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

The study is DIR/MODEL, an ordinary one: `amc report DIR/MODEL` shows it whole, and the same command goes on with one
that was stopped. What it says is kept in benchmarks/results/study-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from amc.cli.jobs.study import run_study, search_settings
from amc.compression.observer import Observer
from amc.compression.settings import SearchConfig
from amc.report.study import read_study, to_json
from amc.report.tables import format_bytes, format_seconds
from amc.run.directory import RunDir
from amc.run.settings import Given, StudyConfig
from common import Record, machine, network_parser, percent, save, source_of, table

RESULT = "study-{model}.json"
RESULTS = ("finetuned", "recovered", "")  # the last stage that a network went through


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="where the study is, or will be")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runtimes", default="onnxruntime")
    parser.add_argument("--budgets", default="50%,30%")
    parser.add_argument("--methods", default="channel,fine-grained,2:4")
    parser.add_argument("--rewards", default=StudyConfig().rewards)
    parser.add_argument("--max-drops", default=StudyConfig().max_drops)
    parser.add_argument("--device", default="auto")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    config = search_settings(Given(SearchConfig, {"episodes": args.episodes}))
    plan = StudyConfig(
        budgets=args.budgets, metrics="macs,params,size,latency", methods=args.methods, runtimes=args.runtimes,
        epochs=args.epochs, seeds=args.seeds, rewards=args.rewards, max_drops=args.max_drops,
    )  # fmt: skip
    place = args.runs / args.model
    run_study(place, replace(source_of(args), device=args.device), config, plan, progress=Observer())
    found = to_json(read_study(RunDir.open(place)))
    record = found | {"model": args.model, "episodes": args.episodes, "threads": args.threads}
    record["data"] = args.data.partition(":")[0]  # where it lies is nobody's business
    save(RESULT.format(model=args.model), record)
    return record


def section(record: Record) -> str:
    """The rows that have a result, and why the others have none."""
    dense, plan = record["dense"]["values"], record["study"]
    runtimes = [name for name in plan["runtimes"].split(",") if name != "none"]
    header = [
        "constraint", "method", "MACs left", "parameters left", "file left", "as pruned", "uniform", "best random",
        "result", "test", *(f"as fast on {name}" for name in runtimes), "search", "fine-tuning",
    ]  # fmt: skip
    rows = sorted((row for row in record["rows"] if row["seeds"]), key=lambda row: order(row, record))
    lines = [[row["constraint"], row["method"], *cells(row["values"], dense, runtimes)] for row in rows]
    reasons: dict[str, list[str]] = {}
    for row in record["rows"]:
        if not row["seeds"]:
            reasons.setdefault(row["reason"].partition(": ")[0], []).append(f"{row['method']}, {row['constraint']}")
    left_out = "".join(f"- {', '.join(names)}: {reason}\n" for reason, names in short(reasons).items())
    asked = {name: str(plan[name]) for name in ("epochs", "rewards", "max_drops")}
    usual = {name: str(options().get_default(name)) for name in asked}
    flags = "".join(f" --{name.replace('_', '-')} {asked[name]}" for name in asked if asked[name] != usual[name])
    levels = "".join(f"- {constraint}: {verdict}\n" for constraint, verdict in record["verdicts"].items())
    return (
        f"## {record['model']}\n\n"
        f"`python benchmarks/study.py --model {record['model']} --weights W --data cifar10:DATA --search-images 2000 "
        f"--runs DIR{flags}`: {record['episodes']} policies a search, {plan['epochs']} epoch(s) of fine-tuning, "
        f"{plan['seeds']} seed(s), {record['threads']} thread(s). Scores as pruned on the images that the search "
        f"scored, beside the uniform policy and the best of a fifth as many random ones; the result, recovered and "
        f"fine-tuned, on the same images and on the test split. Dense: {percent(dense['score'][0])}, test "
        f"{percent(dense['test'][0])}.\n\n{table(header, lines)}\n"
        f"Which method scores best where several meet a budget:\n\n{levels}\nWithout a result:\n\n{left_out}"
        + machine(record)
    )


def order(row: Record, record: Record) -> tuple[int, int]:
    """By constraint, and then by method, as the study has them."""
    constraints = list(dict.fromkeys(each["constraint"] for each in record["rows"]))
    methods = list(dict.fromkeys(each["method"] for each in record["rows"]))
    return constraints.index(row["constraint"]), methods.index(row["method"])


def cells(values: Record, dense: Record, runtimes: list[str]) -> list[str]:
    """The figures of a row: medians of its seeds."""
    median = {key: statistics.median(found) for key, found in values.items() if found}

    def shown(key: str) -> str:
        return percent(median[key]) if key in median else "–"

    def result(name: str) -> str:
        keys = (f"{name}_{stage}" if stage else name for stage in RESULTS)
        return shown(next(key for key in keys if key in median))

    error = f" ± {100 * median['standard_error']:.2f}" if "standard_error" in median else ""
    return [
        shown("macs_share"), shown("params_share"),
        f"{percent(median['size'] / dense['size'][0])} ({format_bytes(median['size'])})",
        shown("score") + error, shown("uniform"), shown("random"),
        result("score"), result("test"), *(f"{median.get(f'{name}_times', 1.0):.2f}×" for name in runtimes),
        *(format_seconds(median[key]) if key in median else "–" for key in ("seconds", "finetune_seconds")),
    ]  # fmt: skip


def short(reasons: dict[str, list[str]]) -> dict[str, list[str]]:
    """The rows without a result, by the kind of reason."""
    kinds = {
        "cannot be reached": "2:4 keeps half of every weight, so the budget is out of reach",
        "masks weights": "masks make no runtime here faster, so there is no latency to search for",
    }
    found: dict[str, list[str]] = {}
    for reason, names in reasons.items():
        text = next((text for part, text in kinds.items() if part in reason), reason)
        found.setdefault(text, []).extend(names)
    return found


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
