"""A part of a network: a submodule, what the whole network calls it with, and the whole with another in its place.

Only the part is exported, so whatever control flow surrounds it is free: loops over detections, boxes by the dozen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from amc.errors import DataError, ModelError, ResourceError, check_resources, explained, reason_of
from amc.structure.batches import mapped, moved
from amc.structure.certificate import random_mask
from amc.structure.copying import copy_model, undisturbed
from amc.structure.modes import device_of
from amc.structure.slicing import slice_model
from amc.structure.structure import Structure
from amc.structure.trace import Example, cloned, dry_run, inference

CLOSE = 1e-4  # largest difference of two outputs that the same operators make of the same numbers, of the largest one
_NAMED = 3  # names in a message


@dataclass(frozen=True)
class Part:
    """A submodule of a network, and how the network calls it.

    >>> net = nn.ModuleDict({"body": nn.Conv2d(3, 4, 3)})
    >>> net.forward = lambda images: [net["body"](image[None]) for image in images]
    >>> part = Part.of(net, (torch.zeros(2, 3, 6, 6),), "body")
    >>> part.calls, part.example.args[0].shape
    (2, torch.Size([1, 3, 6, 6]))
    """

    name: str
    paths: tuple[str, ...]  # all names of the same submodule, `name` among them
    whole: nn.Module  # a plain copy, which never runs
    outer: Example  # for the whole network
    example: Example  # what the whole calls the part with on `outer`: the first call
    calls: int  # on `outer`; all have the shapes of `example`

    @classmethod
    def of(cls, model: nn.Module, example_input: Any, name: str) -> Part:
        """The part called `name`. Copies of `model` are run, never itself.

        Raises ModelError if there is no such part, if it is never called on the example or in several shapes, or if
        the rest of the network uses its modules or weights besides.
        """
        whole, outer = copy_model(model), Example.of(example_input)
        module, kind = _submodule(whole, name), type(model).__name__
        paths = tuple(path for path, each in whole.named_modules(remove_duplicate=False) if each is module)
        _refuse_shared(whole, module, paths, kind)
        runner = copy_model(whole)
        with undisturbed(model), _watching(runner, name) as seen:
            dry_run(runner, outer.cloned())
        if seen.outside:
            raise ModelError(
                f"{kind} calls '{name}.{seen.outside[0]}' outside of its part '{name}': sliced alone, the part would "
                f"not fit there; choose a part that holds all of these calls"
            )
        if not seen.calls:
            raise ModelError(_never_called(module, name, kind, seen.called))
        _refuse_shapes(seen.calls, name, kind)
        return cls(name, paths, whole, outer, seen.calls[0], len(seen.calls))

    @property
    def module(self) -> nn.Module:
        """The dense submodule, which never runs."""
        return self.whole.get_submodule(self.name)

    def of_whole(self, whole: nn.Module) -> nn.Module:
        """The submodule at this place in another network of the same kind."""
        return whole.get_submodule(self.name)

    def within(self, slim: nn.Module) -> nn.Module:
        """A copy of the whole network that has a copy of `slim` in the place of the part, under each of its names."""
        dense = self.module
        try:
            self._put_(slim)
            return copy_model(self.whole)
        finally:
            self._put_(dense)

    def in_eval(self, slim: nn.Module) -> nn.Module:
        """The network of `within` in eval mode, as it is scored."""
        return self.within(slim).eval()

    def _put_(self, module: nn.Module) -> None:
        for path in self.paths:
            parent, _, leaf = path.rpartition(".")
            self.whole.get_submodule(parent)._modules[leaf] = module

    def inputs(self, batches: Iterable[Example]) -> Iterator[list[Example]]:
        """What the whole network calls the part with on each of its batches, in main memory; empty calls are left out.

        Raises DataError if the network fails on a batch.
        """
        network = copy_model(self.whole)
        failing = f"{type(network).__name__} fails on a calibration batch"
        remedy = "give batches as the network takes them"
        clear = partial(explained, DataError, failing, remedy, passing=ResourceError)
        for batch in batches:
            there = moved(batch, device_of(network))
            with clear(), undisturbed(network), inference(network), _watching(network, self.name) as seen:
                network(*there.args, **there.kwargs)
            yield [mapped(Tensor.cpu, call) for call in seen.calls if not _is_empty(call)]

    def notes(self) -> list[str]:
        """What the user should know of the way in which the part is called."""
        rows, examples = rows_of(self.example), rows_of(self.outer)
        kind, notes = type(self.whole).__name__, []
        if rows is not None and examples is not None and rows != examples:
            notes.append(
                f"part '{self.name}' gets {rows} rows for {examples} of the example input: their number may depend on "
                "the data, and MACs are counted for these rows"
            )
        if self.calls > 1:
            notes.append(
                f"{kind} calls part '{self.name}' {self.calls} times on the example input: the part's own MACs are "
                "those of one call"
            )
        return notes

    def check(self, structure: Structure, seed: int = 0) -> None:
        """Check that nothing outside depends on what is pruned inside: on weights, sizes, attributes of the part.

        The whole network runs with its part sliced by random keep sets of `structure`, whose outputs are replaced by
        the dense part's. The network's own outputs must then be the dense network's. With the part's certificate, by
        which it returns the same sliced as masked, this makes the whole network the same, too, whatever it decides by
        the values of the part's outputs. Raises ModelError if it is not.
        """
        mask = random_mask(structure, np.random.default_rng(seed))
        sliced = self.within(slice_model(self.module, structure, mask))
        inside, wanted = self._outputs(copy_model(self.whole))
        kind = type(self.whole).__name__
        remedy = "something outside reads its weights or sizes; choose a part that holds all that does"
        try:
            slim_inside, found = self._outputs(sliced, inside)
        except Exception as error:  # the user's forward may raise anything on a size that it did not expect
            check_resources(error)
            raise ModelError(
                f"{kind} fails once the channels of its part '{self.name}' are sliced ({reason_of(error)}): {remedy}"
            ) from error
        if not _same_shapes(slim_inside, inside):
            raise ModelError(
                f"{kind} calls its part '{self.name}' otherwise, or gets other shapes, once it is sliced: {remedy}"
            )
        if not _close(found, wanted):
            raise ModelError(
                f"{kind} gives other outputs once its part '{self.name}' is sliced, though the part's outputs are the "
                f"same: {remedy}"
            )

    def _outputs(self, network: nn.Module, instead: list[Any] | None = None) -> tuple[list[Any], Any]:
        """The outputs of the part, call by call, and of the network. `instead`: what replaces those of the part."""
        inside: list[Any] = []

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            inside.append(cloned(output))
            return None if instead is None else cloned(instead[min(len(inside), len(instead)) - 1])

        handle = network.get_submodule(self.name).register_forward_hook(leave)
        example = self.outer.cloned()
        with undisturbed(self.whole), inference(network):
            torch.manual_seed(0)  # the same random numbers for both networks
            outputs = network(*example.args, **example.kwargs)
        handle.remove()
        return inside, outputs


@dataclass
class _Seen:
    """What a run of the whole network shows of its part."""

    calls: list[Example] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)  # modules of the part that are called outside of its calls
    called: list[str] = field(default_factory=list)  # all modules that are called
    depth: int = 0

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.depth += 1
        if self.depth == 1:
            with torch.inference_mode(False):  # the copies must be ordinary tensors
                self.calls.append(Example(cloned(args), cloned(kwargs)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1

    def inner(self, path: str, module: nn.Module, args: Any) -> None:
        if self.depth == 0:
            self.outside.append(path)

    def any(self, path: str, module: nn.Module, args: Any) -> None:
        self.called.append(path)


@contextmanager
def _watching(network: nn.Module, name: str) -> Iterator[_Seen]:
    """Watch the calls of a part inside the block."""
    seen, part = _Seen(), network.get_submodule(name)
    with ExitStack() as hooks:
        for path, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(seen.any, path)).remove)
        for path, module in part.named_modules():
            if module is not part:
                hooks.callback(module.register_forward_pre_hook(partial(seen.inner, path)).remove)
        # The user's own hooks on the part run when it is called alone, too: the arguments are those before them.
        hooks.callback(part.register_forward_pre_hook(seen.enter, prepend=True, with_kwargs=True).remove)
        hooks.callback(part.register_forward_hook(seen.leave, always_call=True).remove)
        yield seen


def _submodule(whole: nn.Module, name: str) -> nn.Module:
    """The submodule of this name. Raises ModelError with the nearest names if there is none."""
    kind = type(whole).__name__
    modules: dict[str, nn.Module] = dict(whole.named_modules(remove_duplicate=False))
    if not name:
        raise ModelError("part is empty: name a submodule, such as backbone, or leave it out for the whole network")
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=_NAMED) or [child for child, _ in whole.named_children()]
        raise ModelError(f"{kind} has no part '{name}'; the nearest are {_listed(near)}")
    module = modules[name]
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        around = name.rpartition(".")[0]
        choices = [*(f"{name}.{child}" for child, _ in module.named_children()), *([around] if around else [])]
        raise ModelError(
            f"part '{name}' is a {type(module).__name__}, which holds modules and is never called itself; name one of "
            f"them, or one around it: {_listed(choices[: _NAMED - 1] + choices[-1:])}"
        )
    return module


def _refuse_shared(whole: nn.Module, module: nn.Module, paths: tuple[str, ...], kind: str) -> None:
    """Raise ModelError if the rest of the network holds a tensor of the part."""
    inside = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    prefixes = tuple(f"{path}." for path in paths)
    tensors = [*whole.named_parameters(remove_duplicate=False), *whole.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if id(tensor) in inside and not name.startswith(prefixes):
            raise ModelError(
                f"part '{paths[0]}' of {kind} shares '{name}' with the rest of the network: pruned in one place, they "
                "would no longer be the same; choose a part that holds all uses of it"
            )


def _refuse_shapes(calls: list[Example], name: str, kind: str) -> None:
    """Raise ModelError for calls without tensors, with empty ones, or in several shapes."""
    shapes = [_shapes(call) for call in calls]
    if not shapes[0][0]:
        raise ModelError(f"{kind} calls part '{name}' without a tensor; choose a part that takes tensors")
    if any(_is_empty(call) for call in calls):
        raise ModelError(
            f"on the example input, part '{name}' of {kind} gets the empty tensors {_listed(map(str, shapes[0][0]))}; "
            "give an example input on which it gets something"
        )
    other = next((each for each in shapes if each != shapes[0]), None)
    if other is not None:
        raise ModelError(
            f"{kind} calls part '{name}' {len(calls)} times on the example input, with tensors {shapes[0][0]} and "
            f"{other[0]}: it has no single cost; choose a part that is called in one shape"
        )


def _never_called(module: nn.Module, name: str, kind: str, called: list[str]) -> str:
    """The message for a part that is never called, with the nearest modules that are."""
    related = [path for path in called if path and (name.startswith(f"{path}.") or path.startswith(f"{name}."))]
    near = related or difflib.get_close_matches(name, [path for path in called if path], n=_NAMED)
    instead = f"called are {_listed(dict.fromkeys(near))}" if near else "choose another part"
    return f"{kind} never calls its part '{name}' on the example input (not by its forward, at least); {instead}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join([*names][:_NAMED]) or "none"


def _tensors(example: Example) -> list[Tensor]:
    leaves = tree_leaves((example.args, dict(example.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _shapes(example: Example) -> tuple[list[list[int]], Any]:
    """The shapes of a call's tensors, and how they are nested."""
    return [list(tensor.shape) for tensor in _tensors(example)], tree_flatten((example.args, dict(example.kwargs)))[1]


def _is_empty(example: Example) -> bool:
    return any(tensor.numel() == 0 for tensor in _tensors(example))


def takes_images(example: Example) -> bool:
    """Whether the only argument is a list of images [C, H, W], as torchvision's detectors take them."""
    if len(example.args) != 1 or example.kwargs or not isinstance(example.args[0], list):
        return False
    return all(isinstance(image, Tensor) and image.ndim == 3 for image in example.args[0])


def rows_of(example: Example) -> int | None:
    """The number of examples in a call: images in a list, or the length of the first tensor; None if neither is."""
    if takes_images(example):
        return len(example.args[0])
    return next((len(tensor) for tensor in _tensors(example) if tensor.ndim), None)


def _same_shapes(found: list[Any], wanted: list[Any]) -> bool:
    def shapes(outputs: list[Any]) -> list[Any]:
        return [leaf.shape for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    return len(found) == len(wanted) and shapes(found) == shapes(wanted)


def _close(found: Any, wanted: Any) -> bool:
    """Whether two outputs hold the same tensors."""
    pairs = [[leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in (found, wanted)]
    if [leaf.shape for leaf in pairs[0]] != [leaf.shape for leaf in pairs[1]]:
        return False
    for ours, theirs in zip(*pairs, strict=True):
        numbers = theirs.is_floating_point() or theirs.is_complex()
        finite = theirs[theirs.isfinite()].abs() if numbers else theirs.new_empty(0)
        scale = float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(ours, theirs, rtol=0.0, atol=CLOSE * scale, equal_nan=numbers):
            return False
    return True
