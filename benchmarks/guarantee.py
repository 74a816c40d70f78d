"""The accuracy-guaranteed protocol: what each of the paper's rewards, and --max-drop, come to without a budget.

    python benchmarks/guarantee.py --model resnet20 --weights W.safetensors --data cifar10:ROOT --runs DIR

Every search is a run directory under --runs, resumed where it stopped. The outcome goes to
benchmarks/results/guarantee-MODEL.json.
"""

from __future__ import annotations

import torch

from amc import rundir
from amc.provenance import environment
from common import load, save
from searches import parser, public, searched

SEARCHES = {
    "-error*log(MACs)": {"reward": "r_flops"},
    "-error*log(parameters)": {"reward": "r_params"},
    "--max-drop 0.5": {"max_drop": 0.5, "bn_images": 0},
    "--max-drop 0.5, fine-grained, parameters": {
        "max_drop": 0.5, "bn_images": 0, "method": "fine-grained", "minimise": "params",
    },
}  # fmt: skip


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    name = f"guarantee-{args.model}.json"
    for label, settings in SEARCHES.items():
        short = "-".join(str(value) for value in settings.values()).replace("_", "")
        run = searched(args, f"guarantee-{short}", baselines=("uniform",), **settings)
        record = load(name)
        rows = record.get("rows", {}) | {label: public(run.read_json(rundir.SUMMARY))}
        common = {"model": args.model, "episodes": args.episodes, "search_images": args.search_images}
        save(name, record | common | {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
