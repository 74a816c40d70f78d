"""A Ray cluster of two nodes on this machine, with a core each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
STORE = 10**8  # bytes of a node's objects


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """The cluster; tests may add nodes."""
    utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SOURCES)  # the processes of a node inherit it
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        there = utils.Cluster(initialize_head=True, head_node_args=head)
        there.add_node(num_cpus=1, object_store_memory=STORE)
        yield there
        there.shutdown()
