"""Agents on a real network, at the same number of scored policies.

    python benchmarks/search_agents.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --search-images 3000

Two thirds of the search images score the policies; the last third and the test split steer nothing. Every agent is
judged by the policy that its search would return, as pruned and after recovery without labels. The results go to
benchmarks/results/agents-MODEL.json after every search; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.distillation import distill_
from amc.run.provenance import environment
from amc.search import AGENTS, SearchTask, create_agent, search
from amc.structure.batches import limited
from amc.structure.copying import copy_model
from amc.zoo import DataSplits
from amc.zoo.splits import Split
from common import Record, load, machine, network_parser, percent, save, source_of, table

RESULT = "agents-{model}.json"


def options() -> argparse.ArgumentParser:
    parser = network_parser(__doc__)
    parser.add_argument("--agents", nargs="+", default=["planner", "ddpg", "random"], choices=AGENTS)
    parser.add_argument("--shares", type=int, nargs="+", default=[50, 30], help="of the MACs, percent")
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning after recovery, for the first seed")
    parser.add_argument("--skip-recovery", action="store_true", help="leave its columns to a later call")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    name = RESULT.format(model=args.model)
    model, data = network_of(source_of(args)), data_of(source_of(args))
    seen, unseen = divided(data.search)
    calibration = limited(data.calibration.batches(BATCH), SearchConfig().calibration_images)
    record: Record = {"model": args.model, "threads": args.threads, "policies": args.policies, "rows": []} | load(name)
    record |= {"images": [len(seen), len(unseen)]}
    if record["policies"] != args.policies:
        raise SystemExit(f"{name} has searches of {record['policies']} policies; move it away, or ask for as many")
    judges = {"held out": Evaluator(unseen), "test": Evaluator(data.test)}
    record["dense"] = {"search": Evaluator(seen)(model)} | {split: judge(model) for split, judge in judges.items()}
    for share in args.shares:
        config = SearchConfig(budget=f"macs<={share}%", recover="none", finalists=0)
        example = torch.zeros(1, *data.input_shape)
        job = prepare(Inputs(model, example, calibration, Evaluator(seen)), config)
        rows = {(row["agent"], row["share"], row["seed"]): row for row in record["rows"]}
        for seed, agent in product(args.seeds, args.agents):
            row = rows.get((agent, share, seed))
            if row is None:
                row = {"agent": agent, "share": share, "seed": seed} | searched(job, agent, args.policies, seed, judges)
                record["rows"].append(row)
            elif args.skip_recovery or "recovered" in row:
                continue
            if not args.skip_recovery:
                row |= recovered(job, row, data, judges["test"], args.epochs if seed == args.seeds[0] else 0)
            save(name, record | {"environment": environment()})
            print(row, flush=True)
    return load(name)


def divided(split: Split) -> tuple[Split, Split]:
    """The images that score policies, and those that steer nothing."""
    first = 2 * len(split) // 3
    return split.subset(torch.arange(first)), split.subset(torch.arange(first, len(split)))


def searched(
    job: Job, name: str, policies: int, seed: int, judges: Mapping[str, Callable[[torch.nn.Module], float]]
) -> Record:
    """One search: the best score after a quarter, a half and all policies, and what the result scores elsewhere."""
    builder = job.scorer.builder
    errors = builder.errors([decision.choices for decision in job.problem.decisions])
    task = SearchTask(job.problem, policies, seed, reward=job.reward, dense_score=job.dense_score, errors=errors)
    agent, spent = create_agent(name, task), time.process_time()
    episodes = min(policies, agent.max_episodes or policies)
    found = search(job.problem, job.scorer, agent, episodes=episodes, seed=seed, reward=job.reward)
    spent = time.process_time() - spent  # scores that an earlier agent asked for cost nothing
    slim = job.scorer.build(found.best.keep)
    return {
        "best": [max(r.score or 0.0 for r in found.episodes[:count]) for count in parts(episodes)],
        "keep": list(found.best.keep),
        "search": found.best.score,
        **{split: judge(slim) for split, judge in judges.items()},
        "cpu_seconds": spent,
    }


def recovered(job: Job, row: Record, data: DataSplits, test: Callable[[torch.nn.Module], float], epochs: int) -> Record:
    """The test accuracy of a search's network after recovery, and after fine-tuning with labels from there."""
    slim = job.scorer.build(row["keep"])
    distill_(slim, copy_model(job.model), job.calibration, classes=True, seed=row["seed"])
    scores = {"recovered": test(slim)}
    if epochs:
        finetune(slim, data.train, FineTuneConfig(epochs=epochs))
        scores["fine-tuned"] = test(slim)
    return scores


def parts(count: int) -> tuple[int, int, int]:
    return max(1, count // 4), max(1, count // 2), count


def section(record: Record) -> str:
    scored, unseen = record["images"]
    dense = {split: percent(value) for split, value in record["dense"].items()}
    text = (
        f"## Agents on {record['model']}\n\n"
        f"`python benchmarks/search_agents.py --model {record['model']} --weights W --data cifar10:DATA "
        f"--search-images {scored + unseen} --policies {record['policies']}`: {scored:,} images score the policies; "
        f"{unseen:,} others and the test split steer nothing. Medians over the seeds, with the range on test: as "
        f"pruned, after recovery without labels, and after fine-tuning from there (one seed); {record['threads']} "
        f"thread(s). Dense: {dense['search']} search, {dense['held out']} held "
        f"out, {dense['test']} test.\n\n"
    )
    cases: dict[tuple[int, str], list[Record]] = {}
    for row in record["rows"]:
        cases.setdefault((row["share"], row["agent"]), []).append(row)
    lines = [
        [f"{share}%", agent, str(len(rows)), *cells(rows)]
        for (share, agent), rows in sorted(cases.items(), key=lambda case: (-case[0][0], AGENTS.index(case[0][1])))
    ]
    quarter, half, whole = parts(record["policies"])
    header = [
        "MACs", "agent", "seeds", f"best of {quarter}", f"of {half}", f"of {whole}", "its result, held out", "test",
        "test, recovered", "fine-tuned",
    ]  # fmt: skip
    return text + table(header, lines) + machine(record)


def cells(rows: Sequence[Record]) -> list[str]:
    best = [percent(statistics.median(values)) for values in zip(*(row["best"] for row in rows), strict=True)]
    held = percent(statistics.median(row["held out"] for row in rows))
    later = [[row[name] for row in rows if name in row] for name in ("test", "recovered", "fine-tuned")]
    return [*best, held, *(f"{percent(statistics.median(v))}{spread(v)}" if v else "" for v in later)]


def spread(values: Sequence[float]) -> str:
    return f" ({percent(min(values))} to {percent(max(values))})" if len(values) > 1 else ""


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
