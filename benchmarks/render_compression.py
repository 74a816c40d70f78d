"""The sections of docs/benchmarks.md about methods, protocols and rounds; `render.py` puts them on the page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Table = Callable[[list[str], Iterable[list[str]]], str]


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def methods_section(record: dict[str, Any], table: Table) -> str:
    rows = []
    for key, cell in record["cells"].items():
        name, _, budget = key.rpartition(", ")
        rows.append([name, budget, *_cell(cell, budget.partition("<=")[0])])
    header = ["method", "budget", "score, median (least to most)", "uniform", "recounted", "fine-tuned, test"]
    return (
        f"## Methods and budgets: {record['model']}\n\n"
        f"`python benchmarks/methods.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR "
        f"--episodes {record['episodes']} --search-images {record['search_images']}`: score on the search split before "
        f"any fine-tuning, {record['episodes']} episodes, beside the uniform policy of the same budget (median of "
        "the seeds); the budgeted cost as counted on the saved networks; the first seed's test accuracy after "
        "fine-tuning. "
        "MACs and parameters of masked networks are those that are not zero.\n\n" + table(header, rows)
    )


def _cell(cell: dict[str, Any], metric: str) -> list[str]:
    if "unreachable" in cell:
        return [f"out of reach: {cell['unreachable'].partition(': even')[2].partition(' (')[0].strip()}", "", "", ""]
    runs = list(cell["seeds"].values())
    scores = [run["slim"]["score"] for run in runs]
    uniform = [run["baselines"]["uniform"]["score"] for run in runs if "uniform" in run["baselines"]]
    shares = [run["slim"][metric] / run["dense"][metric] for run in runs]
    tuned = cell.get("finetuned")
    return [
        f"{percent(statistics.median(scores))} "
        + (f"({percent(min(scores))} to {percent(max(scores))})" if len(scores) > 1 else "(one seed)"),
        percent(statistics.median(uniform)) if uniform else "",
        f"{100 * min(shares):.2f} to {100 * max(shares):.2f}%",
        f"{percent(tuned['test'])} ({tuned['epochs']} epochs)" if tuned else "",
    ]


def guarantee_section(record: dict[str, Any], table: Table) -> str:
    rows = []
    for label, run in record["rows"].items():
        dense, slim = run["dense"], run["slim"]
        promise = run.get("guarantee")
        said = ""
        if promise:
            state = "confirmed" if promise["confirmed"] else "not confirmed"
            said = f"{promise['drop']:+.2f}, at most {promise['upper']:.2f}: {state}"
        rows.append(
            [
                label, percent(slim["macs"] / dense["macs"]), percent(slim["params"] / dense["params"]),
                f"{percent(dense['score'])} → {percent(slim['score'])}", said,
                f"{percent(dense['test'])} → {percent(slim['test'])}",
            ]
        )  # fmt: skip
    header = ["reward", "MACs", "parameters", "score, search", "loss on confirmation images, points", "test"]
    return (
        f"## No budget, accuracy guaranteed: {record['model']}\n\n"
        f"`python benchmarks/guarantee.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR`: "
        f"{record['episodes']} episodes, without any fine-tuning. With `--max-drop` half of the search images score "
        "and the other half confirms (docs/accuracy.md).\n\n" + table(header, rows)
    )


def rounds_section(record: dict[str, Any], table: Table) -> str:
    plan, rows = record["schedule"], []
    epochs, dense = record["epochs"], plan["dense"]
    for number, row in enumerate(plan["rounds"], start=1):
        share = row["params"] / dense["params"]
        rows.append([f"round {number}, {epochs} epochs", percent(share), percent(row["score"]), *_tests(row)])
    for label, run in record.items():
        if label.startswith("once"):
            slim = run["slim"]
            rows.append([label, percent(slim["params"] / dense["params"]), percent(slim["score"]), *_tests(slim)])
    header = ["", "density, recounted", "score, search, as pruned", "test as pruned", "test fine-tuned"]
    return (
        f"## Four rounds beside one: {record['model']}, fine-grained\n\n"
        f"`python benchmarks/rounds.py --model {record['model']} --weights W --data cifar10:DATA --runs DIR`: the "
        f"paper's schedule of densities, {record['episodes']} episodes a search; beside it one round straight to the "
        "last density, with as much fine-tuning as one round, and as all four. "
        f"Dense: {percent(dense['test'])} test.\n\n" + table(header, rows)
    )


def _tests(row: dict[str, Any]) -> list[str]:
    return [percent(row[name]) if name in row else "" for name in ("test", "test_finetuned")]


def masking_section(record: dict[str, Any], table: Table) -> str:
    rows = [
        [label, f"{1000 * row['build']:.0f} ms", f"{row['episode']:.2f} s", f"{row['share']:.1%}"]
        for label, row in record["rows"].items()
    ]
    return (
        f"## What masking costs in an episode: {record['model']}, fine-grained\n\n"
        f"`python benchmarks/masking_cost.py --model {record['model']} --weights W --data cifar10:DATA`: "
        f"{record['images']} search images in bfloat16, {record['threads']} thread(s), medians of {record['rounds']} "
        "policies, all of them new.\n\n" + table(["", "building the network", "episode", "share"], rows)
    )


def correlation_section(record: dict[str, Any], table: Table) -> str:
    policies = record["policies"]
    test = np.array([row["test"] for row in policies])
    rows = []
    for way in policies[0]["scores"]:
        score = np.array([row["scores"][way] for row in policies])
        top = score >= np.median(score)
        rows.append(
            [
                way, f"{spearmanr(score, test).statistic:+.2f}", f"{spearmanr(score[top], test[top]).statistic:+.2f}",
                f"{percent(score.min())} to {percent(score.max())}", percent(test[score.argmax()]),
            ]
        )  # fmt: skip
    header = ["score", "rank correlation", "in its top half", "scores", "fine-tuned accuracy of its best"]
    return (
        f"## What the score is worth: {record['model']}, {record['budget']}\n\n"
        f"`python benchmarks/score_correlation.py --model {record['model']} --weights W --data cifar10:DATA`: "
        f"Spearman's rank correlation of four scores ({record['search_images']} search images, bfloat16) with the test "
        f"accuracy after {record['epochs']} epochs of fine-tuning, over {len(policies)} random policies. Test "
        f"accuracies lie between {percent(test.min())} and {percent(test.max())}, median "
        f"{percent(float(np.median(test)))}.\n\n" + table(header, rows)
    )


def compensation_section(record: dict[str, Any], table: Table) -> str:
    ways = list(record["rows"][0]["scores"])
    rows = [[row["method"], f"{row['density']:.0%}", *map(percent, row["scores"].values())] for row in record["rows"]]
    return (
        f"## What ranking and compensation are worth to masks: {record['model']}\n\n"
        f"`python benchmarks/compensation.py --model {record['model']} --weights W --data cifar10:DATA`: the same "
        f"density in every layer, accuracy on {record['images']} search images without any fine-tuning, batch norms "
        "re-estimated "
        f"(dense {percent(record['dense'])}).\n\n" + table(["method", "density", *ways], rows)
    )
