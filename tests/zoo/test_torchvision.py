import importlib
import importlib.util
import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from amc.errors import ModelError
from amc.zoo import _torchvision

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="the extra 'vision' is not installed"
)


def _run(program: str) -> str:
    """Standard output of a fresh interpreter: what is imported here must not decide the outcome."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match=r"torchvision is not installed; pip install 'amc-compress\[vision\]'"):
        _torchvision.import_torchvision()


def test_other_failures_of_the_import_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::roi_align does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="roi_align"):
        _torchvision.import_torchvision()


@needs_torchvision
def test_networks_work_in_a_fresh_process() -> None:
    output = _run("""
        import torch
        from amc.zoo._torchvision import import_torchvision
        torchvision = import_torchvision()
        assert import_torchvision() is torchvision
        import torchvision.transforms.v2
        network = torchvision.models.squeezenet1_1(num_classes=7).eval()
        print(tuple(network(torch.zeros(1, 3, 64, 64)).shape))
    """)
    assert output == "(1, 7)"


@needs_torchvision
def test_spawned_workers_can_unpickle_a_torchvision_data_set() -> None:
    output = _run("""
        from torch.utils.data import DataLoader
        from amc.zoo._torchvision import PortableDataset, import_torchvision
        torchvision = import_torchvision()
        data = torchvision.datasets.FakeData(
            3, (3, 8, 8), 2, transform=torchvision.transforms.PILToTensor()
        )
        loader = DataLoader(
            PortableDataset(data), batch_size=3, num_workers=1, multiprocessing_context="spawn"
        )
        images, labels = next(iter(loader))
        print(tuple(images.shape), len(labels))
    """)
    assert output == "(3, 3, 8, 8) 3"
