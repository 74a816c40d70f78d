"""Actors of a Ray cluster: the same scores as in one process, whatever becomes of nodes and of the driver."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers import cluster as cluster_module
from amc.compression.scoring.workers.actor import Scoring, SharedFile, folder
from amc.compression.scoring.workers.cluster import Cluster, _warnings, connected
from amc.compression.scoring.workers.pool import ATTEMPTS, Pool
from amc.errors import AmcError, EvaluationError, ResourceError
from amc.pruning import Pruner
from amc.structure import inspect
from tests.ray_cluster import SOURCES, STORE
from tests.threads import one_thread  # noqa: F401 -- a fixture: actors have one thread, and sums depend on it
from tests.tiny import EXAMPLE, compress, tiny

ray = pytest.importorskip("ray")
WHOLE, SMALL = (10, 12, 8), (4, 5, 8)
NAMES = ("journal.jsonl", "journal-uniform.jsonl", "model.safetensors", "policy.json")


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def sizes(network: nn.Module) -> float:
    return 1.0 / size(network)


def if_small(action: Any, network: nn.Module) -> float:
    """Does something instead of scoring a small network."""
    if size(network) < 500:
        action()
    return sizes(network)


def slowly(network: nn.Module) -> float:
    time.sleep(0.2)
    return sizes(network)


def scorer(evaluate: Any) -> PolicyScorer:
    model = tiny().eval()
    return PolicyScorer(Pruner(model, inspect(model, EXAMPLE)), evaluate)


def files(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in NAMES]


def lines(journal: Path) -> int:
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


def test_a_search_is_the_same_to_the_byte_on_a_cluster(nodes: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch": 3, "baselines": ("uniform",)}
    compress(tiny(), run_dir=tmp_path / "here", workers=1, **settings)
    compress(tiny(), run_dir=tmp_path / "there", ray=nodes.address, **settings)
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert not ray.is_initialized()
    assert not list(folder().glob("*.pt"))


def test_nodes_that_die_at_any_moment_change_nothing(nodes: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch": 4, "episodes": 40, "baselines": ("none",), "recover": "none"}
    compress(tiny(), evaluate=slowly, run_dir=tmp_path / "here", workers=1, **settings)
    victims = [nodes.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(5)]
    moments = sorted(random.Random(3).sample(range(1, 30), len(victims)))
    journal, done = tmp_path / "there" / "journal.jsonl", threading.Event()

    def lose() -> None:
        """One node after the other, when so many policies are scored."""
        for moment in moments:
            while not done.wait(0.01) and lines(journal) < moment:
                pass
            nodes.remove_node(victims.pop(), allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        compress(tiny(), evaluate=slowly, run_dir=tmp_path / "there", ray=nodes.address, workers=7, **settings)
    finally:
        done.set()
        thread.join()
    assert not victims
    for name in ("journal.jsonl", "model.safetensors", "policy.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_driver_that_is_killed_goes_on_where_it_was(nodes: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch": 3, "baselines": ("uniform",)}
    compress(tiny(), evaluate=slowly, run_dir=tmp_path / "whole", workers=1, **settings)
    run = tmp_path / "part"
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom tests.tiny import compress, tiny\n"
        "from tests.compression.scoring.workers.test_cluster import slowly\n"
        f"compress(tiny(), evaluate=slowly, run_dir=Path({str(run)!r}), ray={nodes.address!r}, batch=3,"
        " baselines=('uniform',))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": SOURCES})
    journal = run / "journal.jsonl"
    while driver.poll() is None and lines(journal) < 4:
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    compress(tiny(), evaluate=slowly, run_dir=run, resume=True, ray=nodes.address, workers=2, **settings)
    assert files(run) == files(tmp_path / "whole")


def test_a_policy_that_no_actor_survives_fails_and_the_others_do_not(nodes: Any) -> None:
    with connected(nodes.address), Pool(*staffed(partial(if_small, partial(os._exit, 7)), 2)) as pool:
        pool.begin([SMALL, WHOLE])
        with pytest.raises(EvaluationError, match=f"^{ATTEMPTS} workers died of it, the last when its process ended "):
            pool.scored(SMALL)
        assert pool.scored(WHOLE).score == scorer(sizes)(WHOLE)


def test_a_policy_that_takes_too_long_fails_and_errors_are_those_of_one_process(nodes: Any) -> None:
    with connected(nodes.address):
        with Pool(*staffed(partial(if_small, partial(time.sleep, 600)), 1), timeout=2.0) as pool:
            with pytest.raises(EvaluationError, match=r"^its score took more than 2 seconds \(score-timeout\)$"):
                pool.scored(SMALL)
            assert pool.scored(WHOLE).score == scorer(sizes)(WHOLE)
        kinds: list[tuple[Exception, type[AmcError], str]] = [
            (ValueError("no such thing"), EvaluationError, "ValueError: no such thing"),
            (MemoryError("much"), ResourceError, "the machine is out of memory"),
        ]
        for error, kind, words in kinds:
            refusing = staffed(partial(if_small, partial(refuse, error)), 1)
            with Pool(*refusing) as pool, pytest.raises(kind, match=words):
                pool.scored(SMALL)


def test_nodes_that_cannot_take_part_are_named(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cluster_module.here()
    with connected(nodes.address) as place:
        assert (place.nodes, place.cores, place.gpus) == (2, 2, 0)
        monkeypatch.setattr(cluster_module, "here", lambda: {**ours, "torch": "9.9"})
        with (
            Pool(*staffed(sizes, 1)) as pool,
            pytest.raises(ResourceError, match=r"^node .* has torch .* machine 9\.9;"),
        ):
            pool.scored(WHOLE)
        monkeypatch.undo()
        monkeypatch.setattr(cluster_module, "NO_ROOM", 1.0)
        monkeypatch.setattr(cluster_module, "PROCESS", 1 << 60)
        with (
            Pool(*staffed(sizes, 1)) as pool,
            pytest.raises(ResourceError, match=r"^no node of the Ray cluster has had"),
        ):
            pool.scored(WHOLE)


def staffed(evaluate: Any, workers: int) -> tuple[PolicyScorer, Cluster]:
    made = scorer(evaluate)
    return made, Cluster(made, workers)


def refuse(error: BaseException) -> None:
    raise error


def test_other_instructions_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _warnings(cluster_module.here()) == []
    (warning,) = _warnings({**cluster_module.here(), "instructions": "AVX512"})
    assert "the last digits of a score depend on its node" in warning


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:", "127.0.0.1:99999", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(AmcError, match=r"^ray must be auto or HOST:PORT, such as "):
        compress(tiny(), ray=address)


def test_no_cluster_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        AmcError, match=rf"^no Ray cluster at '{closed}' \(.*refused\); start one with `ray start --head`"
    ):
        compress(tiny(), ray=closed)
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(AmcError, match=f"^no Ray cluster at '{closed}' "):
        compress(tiny(), ray="auto")


def test_something_else_at_the_address_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "TRY", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(AmcError, match=rf"'{address}'.*start one with `ray start --head`"):
            compress(tiny(), ray=address)


def test_without_the_extra_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AmcError, match=r"^package ray is not installed; run: pip install .*'amc-compress\[ray\]'$"):
        compress(tiny(), ray="auto")


def test_actors_of_a_node_share_one_file_and_the_last_removes_it(tmp_path: Path) -> None:
    first = SharedFile(tmp_path, "a" * 64, b"content")
    second = SharedFile(tmp_path, "a" * 64, b"other")  # is there already
    assert second.path == first.path
    assert first.path.read_bytes() == b"content"
    first.leave()
    assert second.path.exists()
    second.leave()
    assert not second.path.exists()


def test_files_of_processes_that_were_killed_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{'b' * 64}.pt").write_bytes(b"left by a killed process")
    (tmp_path / f"{'c' * 64}.unfinished").write_bytes(b"half")
    held = SharedFile(tmp_path, "a" * 64, b"content")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [held.path.name]


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = folder()
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o777)
    with pytest.raises(PermissionError, match="is not a folder of this user alone; remove it"):
        folder()
    fault = Scoring([], 0, "cpu").load(b"", "d" * 64)
    assert "is not a folder of this user alone" in fault["error"]
