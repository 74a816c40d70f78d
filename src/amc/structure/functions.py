"""Functions that a copied network carries: hooks, patched methods, and whatever else is kept in an attribute.

`copy.deepcopy` shares functions and weak references. Then a hook of the copy fills the user's own list, and a method
that was patched with a function around the old one runs the user's own network. Here each gets a twin, which refers
to copies.
"""

from __future__ import annotations

import copy
import dis
import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from amc.structure.source import is_users

_CONTAINERS = (dict, list, set, bytearray, deque, Tensor)


class FunctionTwins:
    """Twins of functions; `memo` is that of the `copy.deepcopy` that made the network."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._twins: dict[FunctionType, FunctionType] = {}

    def replace_(self, model: nn.Module) -> None:
        """Give every function of the user's that the modules hold its twin, in place."""
        for module in model.modules():
            attributes = vars(module)
            for name, value in [*attributes.items()]:
                twin = self._replaced(value)
                if twin is not value:
                    attributes[name] = twin

    def _replaced(self, value: Any) -> Any:
        """The value with twins for functions; containers are changed in place."""
        if isinstance(value, FunctionType):
            compiled = getattr(value, "_torchdynamo_orig_callable", None)  # of torch.compile: as it is written
            return self._twin(value) if compiled is None else self._copied(compiled)
        if isinstance(value, functools._lru_cache_wrapper):
            inner = self._copied(value.__wrapped__)
            return value if inner is value.__wrapped__ else functools.lru_cache(**value.cache_parameters())(inner)
        if isinstance(value, weakref.ref):
            target = self._memo.get(id(value()))
            return value if target is None else weakref.ref(target)
        if isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            twin = self._twin(value.__func__)
            return value if twin is value.__func__ else MethodType(twin, value.__self__)
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            for key, item in [*value.items()]:
                twin = self._replaced(item) if isinstance(item, FunctionType | MethodType) else item
                if twin is not item:
                    value[key] = twin
        elif type(value) is list:
            value[:] = [self._replaced(item) if isinstance(item, FunctionType | MethodType) else item for item in value]
        return value

    def _twin(self, function: FunctionType) -> FunctionType:
        """The function on copies of what it encloses; itself if it refers to nothing that could be changed."""
        if function in self._twins:
            return self._twins[function]
        kept = _global_state(function, self._memo) if is_users(function.__code__.co_filename) else {}
        if not (function.__closure__ or kept or _keeps_state(function)):
            return function
        cells = tuple(CellType() for _ in function.__closure__ or ())
        scope = function.__globals__ | {name: self._copied(value) for name, value in kept.items()}
        twin = FunctionType(function.__code__, scope, function.__name__, None, cells)
        self._twins[function] = twin
        twin.__dict__.update(function.__dict__)
        twin.__defaults__ = self._copied(function.__defaults__)
        twin.__kwdefaults__ = self._copied(function.__kwdefaults__)
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(twin, name, getattr(function, name))
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self._copied(old.cell_contents)
            except ValueError:  # nothing is assigned to that name yet
                continue
        return twin

    def _copied(self, value: Any) -> Any:
        """A deep copy, in which the copied network takes the place of the user's; itself if it cannot be copied."""
        if isinstance(value, FunctionType):
            return self._replaced(value)
        try:
            made = copy.deepcopy(value, self._memo)
        except Exception:  # locks, files, modules …: shared, as deepcopy shares functions
            return value
        return self._replaced(made)


def _global_state(function: FunctionType, memo: dict[int, Any]) -> dict[str, Any]:
    """Global names of the function that hold something it could change, or a module of the network."""
    found = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, _CONTAINERS) or (isinstance(value, nn.Module) and id(value) in memo)
    }


def _keeps_state(function: FunctionType) -> bool:
    """Whether it assigns global names, or has a default that it could change."""
    if not is_users(function.__code__.co_filename):
        return False
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return any(isinstance(value, _CONTAINERS) for value in defaults) or _assigns_globals(function.__code__)


def _names(code: CodeType) -> set[str]:
    return {name for part in _codes(code) for name in part.co_names}


def _assigns_globals(code: CodeType) -> bool:
    return any(step.opname == "STORE_GLOBAL" for part in _codes(code) for step in dis.get_instructions(part))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    inner: Iterable[Any] = code.co_consts
    for constant in inner:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
