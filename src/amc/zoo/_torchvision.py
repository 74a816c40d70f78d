"""The one place that imports torchvision, which is optional and does not always import by itself.

A torchvision wheel built for CUDA, beside a CPU build of torch, stops at `operator torchvision::nms does not
exist`: its compiled operators cannot be loaded, and it registers shapes for two of them. Its networks, data
sets and transforms need neither, so on exactly that error the two are declared (without an implementation)
and the import is tried again.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import Dataset

from amc.errors import ModelError

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its library object


def import_torchvision() -> ModuleType:
    """Return the `torchvision` package; raise `ModelError` with the remedy when it is not installed.

    Submodules are loaded with it: `import_torchvision().models`. After the first call in a process a plain
    `import torchvision` works too, for instance in a user's factory.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ModelError("torchvision is not installed; pip install 'amc-compress[vision]'") from error
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error) or _declared:
            raise
    _declare_operators()
    return importlib.import_module("torchvision")


class PortableDataset(Dataset[Any]):
    """A data set that names torchvision, for data-loader workers that are spawned.

    A forked worker has the parent's declarations. A spawned one starts without them, and unpickling the data
    set or its transforms would import torchvision before any `worker_init_fn` is called; unpickling this
    imports it rightly first.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare it

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_portable, (), self.__dict__  # the state is unpickled after the call


def _new_portable() -> PortableDataset:
    import_torchvision()
    return PortableDataset.__new__(PortableDataset)


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    # The failed import left half-initialised submodules behind, which a second import would take for
    # finished.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
