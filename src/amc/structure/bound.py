"""Numbers that a forward computes from the shape of another tensor, and that no attribute holds.

    B, N, C = x.shape                                                       # C is the stream, which stays
    q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads)        # of its heads some go
    q = q * (C // self.num_heads) ** -0.5                                   # and the others keep their scale

A slice binds such numbers: the module runs its own forward, and a function mode puts the right ones into these calls.
`torch.compile` leaves such a module out. This file loads torch's compiler, so import it where a slice needs it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amc.structure.calls import SIZED, Calls, call_of

PATCHED = "_forward_without_bounds"

Call = tuple[str, str]  # a module's path and the name of a call
Place = tuple[str, str, int]  # and the place of a number in it


class BoundForward:
    """The forward of a module in which some calls get other numbers than the source computes."""

    def __init__(self, module: nn.Module, calls: Calls) -> None:
        self.module, self.calls = module, calls
        if "forward" in vars(module):  # one that the user patched; a copy of the network finds it in the module
            vars(module)[PATCHED] = vars(module)["forward"]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # Dynamo does not run modes that look at frames
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own forward."""
        with _Binding(self.calls):
            return self._own(*args, **kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        patched = vars(self.module).get(PATCHED)
        return type(self.module).forward(self.module, *args, **kwargs) if patched is None else patched(*args, **kwargs)


def bind_(network: nn.Module, calls: Mapping[str, Calls]) -> None:
    """Bind numbers in the modules of these paths, **in place**. What was bound to the same calls before is replaced."""
    for path, mine in calls.items():
        module = network.get_submodule(path)
        known = vars(module).get("forward")
        if isinstance(known, BoundForward):
            known.calls = {**known.calls, **mine}
        else:
            module.forward = BoundForward(module, mine)


@dataclass
class Watch:
    """The arguments, flat, that a network gives in the calls of some modules, each call as often as it is made."""

    given: dict[Call, list[Sequence[Any]]] = field(default_factory=dict)

    def wrong(self, calls: Mapping[str, Calls]) -> set[Place]:
        """Those of these numbers that the network gets wrong."""
        return {
            (path, call, place)
            for (path, call), times in self.given.items()
            for place, number in calls.get(path, {}).get(call, {}).items()
            if any(given[place] != number for given in times)
        }


def watch_(network: nn.Module, calls: Mapping[str, Calls]) -> Watch:
    """Bind numbers in place, and note what the forwards of these modules give in their calls."""
    watch = Watch()
    for path, mine in calls.items():
        module = network.get_submodule(path)
        module.forward = _WatchedForward(module, mine, path, watch)
    return watch


class _WatchedForward(BoundForward):
    def __init__(self, module: nn.Module, calls: Calls, path: str, watch: Watch) -> None:
        super().__init__(module, calls)
        self.path, self.watch = path, watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def note(call: str, given: Sequence[Any]) -> None:
            self.watch.given.setdefault((self.path, call), []).append(given)

        with _Binding(self.calls, note):
            return self._own(*args, **kwargs)


class _Active(threading.local):
    """The bindings of the modules that are running, the innermost last: its calls are its own."""

    def __init__(self) -> None:
        self.bindings: list[_Binding] = []


_active = _Active()


class _Binding(TorchFunctionMode):
    """Puts numbers into the calls that are bound."""

    def __init__(self, calls: Calls, note: Callable[[str, Sequence[Any]], None] | None = None) -> None:
        super().__init__()
        self.calls, self.note = calls, note
        # Most modules need sizes alone; then the other calls need not be named.
        self.every = note is not None or any(isinstance(n, float) for call in calls.values() for n in call.values())

    def __enter__(self) -> _Binding:
        _active.bindings.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _active.bindings.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if (self.every or func in SIZED) and (len(args) > 1 or kwargs) and _active.bindings[-1] is self:
            call = call_of(func, sys._getframe(1))
            bound = self.calls.get(call)
            if bound or self.note is not None:
                given = [*_leaves((args, kwargs))]
                if self.note is not None:
                    self.note(call, tuple(None if isinstance(each, Tensor) else each for each in given))
                if bound:
                    for place, number in bound.items():
                        given[place] = number
                    args, kwargs = _nested((args, kwargs), iter(given))
        return func(*args, **kwargs)


def _leaves(value: Any) -> Iterator[Any]:
    """The arguments of a call, those in lists, tuples and dictionaries one by one."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves([*value.values()])
    else:
        yield value


def _nested(value: Any, leaves: Iterator[Any]) -> Any:
    """The same nest with other leaves."""
    if isinstance(value, (tuple, list)):
        items = [_nested(item, leaves) for item in value]
        return tuple(items) if type(value) is tuple else items
    if isinstance(value, dict):
        return {key: _nested(item, leaves) for key, item in value.items()}
    return next(leaves)
