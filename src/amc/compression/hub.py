"""Pruned networks on the Hugging Face hub, or in a folder of the same form.

A folder holds the weights (model.safetensors), what is kept (policy.json), what the network was (amc.json) and a model
card (README.md). Reading it runs no code that came with it: the weights are tensors only, and of the networks that
amc.json may name only those of the zoo, torchvision and timm are built. Any other is given by the caller.
"""

from __future__ import annotations

import importlib
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.compression.load import network_file
from amc.errors import RunError, explained
from amc.pruning import Policy
from amc.pruning.methods import shaped
from amc.report.tables import summary_table
from amc.report.words import goal_of, words_of
from amc.run import files, records
from amc.run.directory import RunDir
from amc.run.lines import atomic_write_bytes
from amc.zoo import create_model, load_weights

ABOUT = "amc.json"
CARD = "README.md"
PLACEHOLDER = "USER/NAME"
NEEDED = (files.MODEL, files.POLICY, ABOUT)

# No path, no factory, no other repository: what a stranger may name, and with which arguments in which ranges.
_NAME = re.compile(r"((timm|torchvision):)?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_ARGS = {"num_classes": (1, 100_000), "width": (0.01, 4.0)}
_LARGEST = 1 << 26  # numbers in an example input
_DIMENSIONS = 5  # of one without its batch


def write_folder(
    folder: str | Path,
    weights: bytes,
    policy: Policy,
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    repo: str = PLACEHOLDER,
) -> None:
    """Write the files of a pruned network. `config`: of its run, for the name of the network, if it has one.

    `repo`: where the model card says that the network is.
    """
    path = Path(folder)
    about = {name: summary.get(name) for name in ("amc_version", "method", "budget")}
    if _NAME.fullmatch(str(config.get("model") or "")) and config.get("input_shape"):
        about |= {name: config[name] for name in ("model", "model_args", "input_shape") if config.get(name)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path / files.MODEL, weights)
        atomic_write_bytes(path / files.POLICY, records.json_bytes(policy.to_json()))
        atomic_write_bytes(path / ABOUT, records.json_bytes(about))
        atomic_write_bytes(path / CARD, model_card(summary, repo, named="model" in about).encode())
    except OSError as error:
        raise RunError(f"'{path}' cannot be written ({error.strerror}); choose another folder") from error


def write_run(run_dir: str | Path, folder: str | Path, repo: str = PLACEHOLDER) -> None:
    """Write the network of a run, the fine-tuned one if there is one. Raises RunError for a run without one network."""
    run = RunDir.open(run_dir)
    config = run.config()
    if config.get("schedule") or config.get("parent"):
        raise RunError(
            f"'{run.path}' was pruned in rounds, and one policy cannot say so; share the whole run directory, which "
            "load_run reads"
        )
    policy = Policy.from_json(run.read_json(files.POLICY))
    weights = records.read_bytes(run.file(network_file(run)))
    write_folder(folder, weights, policy, run.read_json(files.SUMMARY), config, repo)


def model_card(summary: Mapping[str, Any], repo: str, *, named: bool) -> str:
    """What the hub shows of a pruned network. `named`: whether `from_hub` can build the dense network itself."""
    rows = summary_table(summary)
    finetuned = any(row.finetuned for row in rows)
    head = ["", "dense", "pruned", *(["fine-tuned"] if finetuned else []), "difference"]
    lines = [[row.quantity, row.dense, row.slim, *([row.finetuned] if finetuned else []), row.change] for row in rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    rule = f"|{'---|' * len(head)}"
    groups = len(summary.get("groups") or ())
    given = "" if named else ", MyNet(), torch.zeros(1, 3, 224, 224)"
    remark = "" if named else "\n\nGive the dense network, with any weights, and an example input of batch size 1."
    return f"""---
library_name: pytorch
tags:
- pruning
- model-compression
- amc
---

# A pruned network

Pruned with AMC ({summary.get("method")} pruning, {goal_of(summary)}): an agent decided for each of {groups}
{words_of(summary.get("method")).holder}s how much to remove, by the accuracy of the pruned network.

| {" | ".join(head)} |
{rule}
{table}

```python
import amc

net = amc.from_hub("{repo}"{given})
```{remark}
"""


def upload(repo: str, write: Callable[[str], None], *, private: bool = False, token: str | None = None) -> str:
    """Upload what `write` puts into a folder to a repository of the hub, which is created if it is not there.

    Returns its address. Raises RunError.
    """
    hub = _library()
    remedy = "check the name, the connection, and that you are logged in (`hf auth login`)"
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        with explained(RunError, f"'{repo}' cannot be written on the hub", remedy, doing=" to upload"):
            api = hub.HfApi(token=token)
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Pruned network")
    return str(address)


def push_to_hub(run_dir: str | Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Publish the network of a run on the Hugging Face hub, as USER/NAME. Returns its address.

    The weights, the policy, what the network was and a model card are uploaded; paths and data stay here. `token`: by
    default, that of `hf auth login`. Raises RunError.
    """
    return upload(repo, lambda folder: write_run(run_dir, folder, repo), private=private, token=token)


def from_hub(
    repo: str | Path,
    model: nn.Module | None = None,
    example_input: Any = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """A pruned network from the Hugging Face hub, or from a folder of the same form, in eval mode.

    repo: USER/NAME, or a folder that `save_pretrained` wrote. model, example_input: the dense network, with any
    weights, and an example of its input; needed unless it is one of the zoo, torchvision or timm. Runs no code of the
    repository.
    Raises RunError for a damaged file, ModelError for weights that do not fit.

    >>> result.save_pretrained("pruned")  # or result.push_to_hub("me/pruned")
    >>> slim = amc.from_hub("pruned", net, x)
    >>> amc.count_macs(slim, x)
    768
    """
    folder = Path(repo) if Path(repo).is_dir() else _downloaded(str(repo), revision, token)
    policy = Policy.from_json(_read_json(folder / files.POLICY))
    if model is None:
        model, example_input = _named(_read_json(folder / ABOUT), repo)
    slim = shaped(model, example_input, policy)
    load_weights(slim, folder / files.MODEL)
    return slim.eval()


def _downloaded(repo: str, revision: str | None, token: str | None) -> Path:
    hub = _library()
    with explained(RunError, f"'{repo}' cannot be loaded from the hub", "check the name and the connection"):
        return Path(hub.snapshot_download(repo, revision=revision, token=token, allow_patterns=list(NEEDED)))


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise RunError("huggingface_hub is not installed; pip install 'amc-compress[hub]'") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return records.unsealed(records.parse_object(records.read_bytes(path)))
    except records.DamagedError as error:
        raise RunError(f"'{path}' {error}; get the file again") from error


def _named(about: Mapping[str, Any], repo: str | Path) -> tuple[nn.Module, Any]:
    """The dense network that a stranger's file names, within bounds, with random weights; and an example for it."""
    name, args, shape = about.get("model"), about.get("model_args", {}), about.get("input_shape")
    if not name:
        raise RunError(f"'{repo}' is not of a network with a name; load it with from_hub(repo, model, example_input)")
    sizes = shape if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape) else []
    chosen = args if isinstance(args, Mapping) else {"": args}
    sound = (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and all(key in _ARGS and _within(value, *_ARGS[key]) for key, value in chosen.items())
        and 0 < len(sizes) <= _DIMENSIONS
        and math.prod(sizes) <= _LARGEST
    )
    if not sound:
        raise RunError(
            f"'{repo}' names a network that cannot be built safely from a name alone; give it: "
            "from_hub(repo, model, example_input)"
        )
    return create_model(str(name), **chosen), torch.zeros(1, *sizes)


def _within(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most
