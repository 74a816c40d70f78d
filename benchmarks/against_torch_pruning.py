"""AMC beside torch-pruning's group-magnitude pruner: the same MACs, the same fine-tuning.

    python benchmarks/against_torch_pruning.py --model vgg16_050 --weights W.safetensors --data cifar10:ROOT --runs DIR

The search is an ordinary run directory, resumed where it stopped. torch-pruning prunes step by step, by a global
ranking or by the same share everywhere, until torch's counter finds no more MACs than in AMC's network. The results go
to benchmarks/results/rival-MODEL.json after each network, so an interrupted benchmark can be resumed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from amc.cli.jobs.origin import BATCH, data_of, network_of
from amc.compression.load import load_run
from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.settings import SearchConfig
from amc.recovery import FineTuneConfig, finetune
from amc.run.provenance import environment
from amc.run.settings import Source
from amc.structure import count_macs, count_params
from amc.structure.batches import limited
from amc.zoo import DataSplits
from common import Record, load, machine, percent, save, table
from searches import search_parser, searched

RESULT = "rival-{model}.json"
STEPS = 200  # of torch-pruning, so that it stops close to the requested MACs


def options() -> argparse.ArgumentParser:
    parser = search_parser(__doc__)
    parser.set_defaults(threads=2)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    run = searched(args, "rival", test=False)
    source = Source.from_json(run.config())
    data, dense = data_of(source), network_of(source)
    example = torch.zeros(1, *data.input_shape)
    ours = load_run(run.path, finetuned=False)
    limit = count_macs(ours, example)
    makers: dict[str, Callable[[], nn.Module]] = {
        "AMC": lambda: ours,
        "torch-pruning, global": lambda: rival(dense, example, limit, everywhere=True),
        "torch-pruning, uniform": lambda: rival(dense, example, limit, everywhere=False),
        "dense": lambda: copy.deepcopy(dense),
    }
    name = RESULT.format(model=args.model)
    record: Record = {"rows": {}} | load(name)
    for title, make in makers.items():
        if title not in record["rows"]:
            record["rows"][title] = measured(make(), data, example, args)
        record |= {"model": args.model, "epochs": args.epochs, "environment": environment()}
        record["dense_macs"] = count_macs(dense, example)
        save(name, record)
    return record


def rival(dense: nn.Module, example: torch.Tensor, limit: int, *, everywhere: bool) -> nn.Module:
    """torch-pruning's network with at most `limit` MACs; `everywhere` ranks all layers together."""
    import torch_pruning as tp

    model = copy.deepcopy(dense)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    attentions = attentions_of(model)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=0.95,
        iterative_steps=STEPS,
        ignored_layers=[last],
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
    )
    for _ in range(STEPS):
        if count_macs(model, example) <= limit:
            break
        pruner.step()
        set_heads_(attentions, pruner.num_heads)
    return model


def attentions_of(model: nn.Module) -> list[Any]:
    """timm's attentions, whose heads torch-pruning has to be told."""
    return [module for module in model.modules() if hasattr(module, "qkv") and hasattr(module, "num_heads")]


def set_heads_(attentions: Iterable[Any], num_heads: Mapping[nn.Module, int]) -> None:
    """Write the sizes that torch-pruning has left into timm's attentions, in place."""
    for attention in attentions:
        if attention.qkv in num_heads and hasattr(attention, "head_dim"):
            attention.num_heads = num_heads[attention.qkv]
            attention.attn_dim = attention.qkv.out_features // 3
            attention.head_dim = attention.attn_dim // attention.num_heads


def measured(model: nn.Module, data: DataSplits, example: torch.Tensor, args: argparse.Namespace) -> Record:
    """Costs, and test accuracy as pruned, with batch norms re-estimated, and after fine-tuning."""
    test = Evaluator(data.test)
    row: Record = {"macs": count_macs(model, example), "params": count_params(model), "test": test(model)}
    reestimate_batchnorm_(model, limited(data.calibration.batches(BATCH), SearchConfig().bn_images or 0))
    row["test_batch_norm"] = test(model)
    finetune(model, data.train, FineTuneConfig(epochs=args.epochs, precision="bfloat16"))
    row["test_finetuned"] = test(model)
    print(row, flush=True)
    return row


def section(record: Record) -> str:
    rows = [
        [
            name, f"{row['macs'] / record['dense_macs']:.2%}", f"{row['params'] / 1e3:.1f} k",
            percent(row["test"]), percent(row["test_batch_norm"]), percent(row["test_finetuned"]),
        ]
        for name, row in record["rows"].items()
    ]  # fmt: skip
    header = ["network", "MACs", "parameters", "test as pruned", "batch norm re-estimated", "fine-tuned"]
    return (
        f"## Beside torch-pruning: {record['model']}\n\n"
        f"`python benchmarks/against_torch_pruning.py --model {record['model']} --weights W --data cifar10:DATA "
        f"--runs DIR`: group-magnitude pruning at the same recounted MACs, {record['epochs']} epochs of the same "
        f"fine-tuning for all (the dense network too), one seed.\n\n" + table(header, rows) + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
