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
from torch import nn
from torch.overrides import TorchFunctionMode

from amc.structure.calls import SIZED, Calls, call_of

PATCHED = "_forward_without_bounds"

Call = tuple[str, str]  # a module's path and the name of a call
Place = tuple[str, str, int]  # and the place of a number in it


class BoundForward:
    """The forward of a module in which some calls get other numbers than the source computes."""

    def __init__(self, module: nn.Module, calls: Calls) -> None:
        before = vars(module).get("forward")
        # The module may be bound already, in a slice of which this is a slice.
        self.before: Calls = before.calls if isinstance(before, BoundForward) else {}
        if before is not None and not isinstance(before, BoundForward):  # the user's own
            vars(module)[PATCHED] = before  # where a copy of the network finds it
        self.module = module
        self.calls: Calls = {
            **self.before,
            **{call: {**self.before.get(call, {}), **numbers} for call, numbers in calls.items()},
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # Dynamo does not run modes that look at frames
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own forward."""
        with _Binding(self.calls):
            return self._own(*args, **kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        patched = vars(self.module).get(PATCHED)
        return type(self.module).forward(self.module, *args, **kwargs) if patched is None else patched(*args, **kwargs)


def bind_(network: nn.Module, calls: Mapping[str, Calls]) -> None:
    """Bind numbers in the modules of these paths, **in place**."""
    for path, mine in calls.items():
        module = network.get_submodule(path)
        module.forward = BoundForward(module, mine)


@dataclass
class Watch:
    """The arguments, flat, that a network gives in the calls of some modules, each call as often as it is made.

    None stands for an argument that is no number.
    """

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
        with _Watching(self):
            return self._own(*args, **kwargs)


class _Active(threading.local):
    """The bindings of the modules that are running, the innermost last: its calls are its own."""

    def __init__(self) -> None:
        self.bindings: list[_Binding] = []


_active = _Active()


class _Binding(TorchFunctionMode):
    """Puts numbers into the calls that are bound."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        # Most modules need sizes alone; then the other calls need not be named.
        self.every = any(isinstance(number, float) for numbers in calls.values() for number in numbers.values())

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
            if self.concerns(call):
                leaves = [*_leaves((args, kwargs))]
                self.put_(call, leaves)
                args, kwargs = _nested((args, kwargs), iter(leaves))
        return func(*args, **kwargs)

    def concerns(self, call: str) -> bool:
        """Whether the call has anything to put."""
        return call in self.calls

    def put_(self, call: str, leaves: list[Any]) -> None:
        """Put the numbers of the call into its arguments, in place."""
        for place, number in self.calls.get(call, {}).items():
            leaves[place] = number


class _Watching(_Binding):
    """The same, and notes what every call gave before."""

    def __init__(self, forward: _WatchedForward) -> None:
        super().__init__(forward.calls)
        self.forward, self.every = forward, True

    def concerns(self, call: str) -> bool:
        return bool(call)

    def put_(self, call: str, leaves: list[Any]) -> None:
        for place, number in self.forward.before.get(call, {}).items():
            leaves[place] = number
        given = tuple(each if isinstance(each, (int, float)) else None for each in leaves)
        self.forward.watch.given.setdefault((self.forward.path, call), []).append(given)
        super().put_(call, leaves)


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
