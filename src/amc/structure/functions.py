"""Functions that a copied network holds: hooks, patched methods, and functions in other attributes.

`copy.deepcopy` shares functions and weak references. A hook of the copy would fill the user's own list, and a patched
method that calls the old method would run the user's own network. Here each function gets a twin that refers to copies.
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
    """Twins of functions. `memo` comes from the `copy.deepcopy` that made the network."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._twins: dict[FunctionType, FunctionType] = {}

    def replace_(self, model: nn.Module) -> None:
        """Replace every user function that the modules hold by its twin, in place."""
        for module in model.modules():
            attributes = vars(module)
            for name, value in [*attributes.items()]:
                twin = self._replaced(value)
                if twin is not value:
                    attributes[name] = twin

    def _replaced(self, value: Any) -> Any:
        """The value with twins for functions; containers are changed in place."""
        if isinstance(value, FunctionType):
            original = getattr(value, "_torchdynamo_orig_callable", None)  # of a function that torch.compile wraps
            return self._twin(value) if original is None else self._copied(original)
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
        """The function on copies of the values that it encloses; itself if it refers to nothing mutable."""
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
        """A deep copy that refers to the copied network, not to the user's; the value itself if it cannot be copied."""
        if isinstance(value, FunctionType):
            return self._replaced(value)
        try:
            copied = copy.deepcopy(value, self._memo)
        except Exception:  # locks, files, modules …: shared, as deepcopy shares functions
            return value
        return self._replaced(copied)


def _global_state(function: FunctionType, memo: dict[int, Any]) -> dict[str, Any]:
    """Global names of the function, with their values, that hold something mutable or a module of the network."""
    used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return {
        name: value
        for name, value in used.items()
        if isinstance(value, _CONTAINERS) or (isinstance(value, nn.Module) and id(value) in memo)
    }


def _keeps_state(function: FunctionType) -> bool:
    """Whether the function assigns global names or has a mutable default."""
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
