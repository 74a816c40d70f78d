"""What every test shares."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: networks this small are slower on two threads

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
