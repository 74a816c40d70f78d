"""Workers: the same scores as in one process, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.pool import ATTEMPTS, Pool
from amc.compression.scoring.workers.processes import Processes
from amc.compression.settings import SearchConfig
from amc.errors import AmcError, EvaluationError, ResourceError, RunError
from amc.pruning import Pruner
from amc.structure import inspect
from tests.threads import one_thread  # noqa: F401 -- a fixture: workers have one thread, and sums depend on it
from tests.tiny import EXAMPLE, compress, tiny

WHOLE, SMALL = (10, 12, 8), (4, 5, 8)


def scorer(evaluate: Any) -> PolicyScorer:
    model = tiny().eval()
    return PolicyScorer(Pruner(model, inspect(model, EXAMPLE)), evaluate)


def processes(scorer: PolicyScorer, workers: int, timeout: float | None = None) -> tuple[Pool, Processes]:
    staff = Processes(scorer, workers)
    return Pool(scorer, staff, timeout=timeout), staff


def pooled(scorer: PolicyScorer, workers: int, timeout: float | None = None) -> Pool:
    return processes(scorer, workers, timeout)[0]


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def sizes(network: nn.Module) -> float:
    print("a user's function prints")  # noqa: T201 -- on the standard output, where the answers go
    return 1.0 / size(network)


def if_small(action: Any, network: nn.Module) -> float:
    """Does something instead of scoring a small network."""
    if size(network) < 500:
        action()
    return sizes(network)


def policies() -> list[tuple[int, ...]]:
    return [(a, b, 7) for a in (8, 9, 10) for b in (10, 11, 12)]


def test_a_search_is_the_same_to_the_byte_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (None, 1, 3):
        compress(tiny(), run_dir=tmp_path / str(workers), batch=3, workers=workers, baselines=("uniform",))
    names = ("journal.jsonl", "journal-uniform.jsonl", "model.safetensors", "policy.json")
    for name in names:
        first, *others = ((tmp_path / str(workers) / name).read_bytes() for workers in (None, 1, 3))
        assert others == [first, first], name


def test_a_search_goes_on_with_other_workers_and_with_no_other_batch(tmp_path: Path) -> None:
    whole = compress(tiny(), run_dir=tmp_path / "whole", batch=3, baselines=("none",))
    compress(tiny(), run_dir=tmp_path / "part", batch=3, workers=2, baselines=("none",))
    journal = tmp_path / "part" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    (tmp_path / "part" / "summary.json").unlink()
    go_on = partial(compress, tiny(), run_dir=tmp_path / "part", resume=True, baselines=("none",))
    with pytest.raises(RunError, match="was started with batch 3, not 2"):
        go_on(batch=2)
    assert go_on(batch=3, workers=1, score_timeout=60).search == whole.search
    assert journal.read_bytes() == (tmp_path / "whole" / "journal.jsonl").read_bytes()


def test_each_policy_gets_its_own_score_and_what_a_function_prints_disturbs_nobody() -> None:
    here = scorer(sizes)
    with pooled(scorer(sizes), 2) as pool:
        pool.begin(policies())
        for policy in reversed(policies()):
            assert pool.scored(policy).score == here(policy)
        assert pool.scored(WHOLE).score == here(WHOLE)  # was not announced


class Warns:
    """Its engine has a warning for each size of network, and one for all."""

    def __init__(self) -> None:
        self.engine: Any = None

    def __call__(self, network: nn.Module) -> float:
        told = self.engine.warnings
        told += [text for text in (f"size {size(network) // 20}", "for all") if text not in told]
        return sizes(network)


def test_warnings_come_in_the_order_of_the_policies_whoever_scores_them_first() -> None:
    def made() -> PolicyScorer:
        evaluate = Warns()
        warning = scorer(evaluate)
        evaluate.engine = warning.engine
        return warning

    here, there = made(), made()
    with pooled(there, 3) as pool:
        pool.ready()
        pool.begin(policies())
        for policy in policies():
            assert pool.scored(policy).score == here(policy)
    assert there.engine.warnings == here.engine.warnings
    assert len(here.engine.warnings) > 3


def test_a_worker_that_dies_is_replaced_and_its_policy_is_scored_again() -> None:
    killed = []
    pool, staff = processes(scorer(partial(if_small, partial(time.sleep, 0.3))), 1)
    with pool:
        (worker,) = staff.workers

        def kill() -> None:
            process = worker._process
            assert process is not None
            killed.append(process)
            process.kill()

        pool.begin([WHOLE])
        pool.scored(WHOLE)
        timer = threading.Timer(0.1, kill)
        timer.start()
        assert pool.scored(SMALL).score == scorer(sizes)(SMALL)
        timer.join()
        assert worker._process is not killed[0]


def test_a_policy_that_no_worker_survives_fails_and_the_others_do_not() -> None:
    with pooled(scorer(partial(if_small, partial(os._exit, 7))), 2) as pool:
        pool.begin([SMALL, *policies()])
        with pytest.raises(EvaluationError, match=f"^{ATTEMPTS} workers died of it, the last ended with exit code 7$"):
            pool.scored(SMALL)
        assert [pool.scored(policy).score for policy in policies()] == [scorer(sizes)(policy) for policy in policies()]


def test_a_policy_that_takes_too_long_fails() -> None:
    with pooled(scorer(partial(if_small, partial(time.sleep, 600))), 1, timeout=1.5) as pool:
        pool.begin([SMALL, WHOLE])
        with pytest.raises(EvaluationError, match=r"^its score took more than 1\.5 seconds \(score-timeout\)$"):
            pool.scored(SMALL)
        assert pool.scored(WHOLE).score == scorer(sizes)(WHOLE)


def refuse(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("no such thing"), EvaluationError, "ValueError: no such thing"),
        (MemoryError("much"), ResourceError, "the machine is out of memory"),
    ],
)
def test_errors_are_those_of_one_process(error: Exception, kind: type[AmcError], words: str) -> None:
    with pooled(scorer(partial(if_small, partial(refuse, error))), 1) as pool, pytest.raises(kind, match=words):
        pool.scored(SMALL)


def test_what_cannot_be_sent_to_a_worker_is_refused_before_the_search(tmp_path: Path) -> None:
    lock = threading.Lock()

    def evaluate(network: nn.Module) -> float:
        with lock:
            return sizes(network)

    with pytest.raises(AmcError, match=r"the search cannot be sent to workers .*lock.*, or leave out workers"):
        compress(tiny(), evaluate=evaluate, workers=1)


def test_a_function_of_the_users_script_goes_to_a_worker_without_its_script(tmp_path: Path) -> None:
    """The script has no `if __name__ == "__main__"`: a worker that ran it again would never end."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom torch import nn\nfrom tests.tiny import compress, tiny\n"
        "print('once')\n"
        "class Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.inner = tiny()\n"
        "    def forward(self, x):\n        return self.inner(x)\n"
        "offset = 0.25\n"
        "result = compress(Wrapped(), evaluate=lambda net: offset, workers=2, batch=2, episodes=2)\n"
        "print(result.search.best.score)\n"
    )
    root = Path(__file__).parents[4]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    done = subprocess.run(
        [os.sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.split() == ["once", "0.25"], done.stderr


def test_no_worker_and_no_file_outlives_its_pool() -> None:
    pool, staff = processes(scorer(partial(if_small, partial(time.sleep, 600))), 2)
    with pool:
        pool.begin([SMALL, WHOLE])
        pool.scored(WHOLE)  # the other worker still sleeps
    ended = [worker._process for worker in staff.workers]
    assert all(process is not None and process.wait() == -signal.SIGKILL for process in ended)
    assert not staff.folder.exists()


def test_a_worker_whose_pool_was_killed_ends_and_cleans_up() -> None:
    pool, staff = processes(scorer(sizes), 1)
    with pool:
        pool.ready()
        process = staff.workers[0]._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()  # as the system does when the pool's process is killed
        assert process.wait() == 0
        assert not staff.folder.exists()


def test_workers_that_are_killed_end_the_search_and_fail_no_policy() -> None:
    killed = partial(if_small, partial(signal.raise_signal, signal.SIGKILL))
    message = r"out of memory \(3 workers were killed by SIGKILL\)"
    with pooled(scorer(killed), 1) as pool, pytest.raises(ResourceError, match=message):
        pool.scored(SMALL)


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (3.0, r"^4 workers may need 3\.7 GB of memory, and 3\.0 GB are free; ask for 2 at most$"),
        (1.0, r"1\.0 GB are free; leave workers out$"),
    ],
)
def test_workers_that_do_not_fit_into_memory_are_refused(monkeypatch: Any, free: float, words: str) -> None:
    monkeypatch.setattr("amc.compression.scoring.workers.processes.free_memory", lambda: int(free * 1e9))
    with pytest.raises(AmcError, match=words):
        compress(tiny(), batch=4, workers=4)


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"workers": 10_000}, {"batch": 0}, {"score_timeout": 0}, {"score_timeout": -1.0}]
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AmcError, match=f"^{next(iter(settings)).replace('_', '.')} "):
        SearchConfig(**settings)


def test_a_worker_that_cannot_start_ends_the_search_and_fails_no_policy(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ResourceError, match=r"a worker cannot be started \(it ended with exit code 1\) in episode 0"):
        compress(tiny(), run_dir=tmp_path / "run", workers=1, baselines=("none",))
    monkeypatch.undo()
    assert compress(tiny(), run_dir=tmp_path / "run", resume=True, baselines=("none",)).search.failed == 0
