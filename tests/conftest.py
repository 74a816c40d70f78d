"""What every test shares."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: networks this small are slower on two threads
os.environ["AMC_CACHE"] = tempfile.mkdtemp(prefix="amc-cache-")  # latency tables of tests are of no use to others

import hypothesis
import pytest
import torch

from tests.ray_cluster import nodes  # noqa: F401 -- a fixture

atexit.register(shutil.rmtree, os.environ["AMC_CACHE"], ignore_errors=True)

# CI repeats itself: the same examples every time. Elsewhere hypothesis goes on looking.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
