"""Workers that are actors of a Ray cluster: on any of its nodes, one core (or GPU) each.

The network, the tables of its layers and the images go through Ray's object store: to each node once. An actor that
dies is replaced, wherever there is room; nodes may come and go. Ray itself is imported only when a search asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from amc.compression.scoring.engine.memory import LIMIT
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.actor import Scoring, here
from amc.compression.scoring.workers.pool import Keep, Worker
from amc.compression.scoring.workers.processes import PROCESS
from amc.compression.scoring.workers.sending import write_scorer
from amc.errors import AmcError, ResourceError
from amc.run.cores import usable_cores
from amc.run.provenance import CPU

AUTO = "auto"
TRY = 30.0  # seconds for a cluster to answer at all
NO_ROOM = 600.0  # seconds that a search waits for a first place in a cluster
POLL = 0.5  # seconds between looks at a place that is not there yet
LEAVE = 60.0  # seconds for an actor without work to remove its file
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # of instructions; for all nodes as here
START = "start one with `ray start --head`, or give the HOST:PORT of its head (docs/ray.md)"


def load_ray() -> Any:
    """The package. Raises AmcError if it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise AmcError(
            "package ray is not installed; run: pip install -c constraints.txt 'amc-compress[ray]'"
        ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster that this process is connected to."""

    address: str
    nodes: int
    cores: int
    gpus: int

    def room(self, device: torch.device) -> int:
        """How many actors have room, at least 1."""
        return max(1, self.gpus if device.type == "cuda" else self.cores)

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"{self.nodes} node{'s' * (self.nodes > 1)} with {self.cores} cores{gpus}"


def check_cluster(address: str) -> None:
    """Raise AmcError unless a cluster answers there, within half a minute: `ray.init` might wait for many."""
    if load_ray().is_initialized():
        return
    address = _spelled(address)
    if address != AUTO:
        _check_answers(address)
    with connected(address):
        pass


@contextmanager
def connected(address: str) -> Iterator[Place]:
    """The cluster at `address` (HOST:PORT, or "auto": the one that this machine belongs to).

    A connection that the caller has made already is used, and left open. Raises AmcError if Ray cannot connect.
    """
    ray = load_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, _spelled(address))
    try:
        there, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
        yield Place(address, len(nodes), int(there.get("CPU", 0)), int(there.get("GPU", 0)))
    finally:
        if ours:
            ray.shutdown()


def _spelled(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, namespace="amc", log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # whatever Ray says of versions, addresses and its own processes
        raise AmcError(f"no Ray cluster at '{address}' ({_first_line(error)}); {START}") from None


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise AmcError(f"ray must be auto or HOST:PORT, such as 192.168.0.5:6379; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=TRY).close()
    except OSError as error:
        raise AmcError(f"no Ray cluster at '{address}' ({_first_line(error)}); {START}") from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY, check=False)
    except subprocess.TimeoutExpired:
        raise AmcError(f"what answers at '{address}' is no Ray cluster; {START}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AmcError(f"no Ray cluster at '{address}' ({reason}); {START}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of an error's text, which is where Ray has the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


class Cluster:
    """Actors for one search, and what they all get."""

    def __init__(self, scorer: PolicyScorer, workers: int, *, device: torch.device = CPU) -> None:
        """`device`: of the networks. Raises AmcError if something of the scorer cannot be sent to another process."""
        ray = load_ray()
        written = io.BytesIO()
        write_scorer(scorer, written)
        content = written.getbuffer()
        shared = _Shared(
            ray=ray,
            content=ray.put(np.frombuffer(content, dtype=np.uint8)),
            digest=hashlib.sha256(content).hexdigest(),
            device=device.type,
            memory=LIMIT // min(workers, usable_cores()),
        )
        self.workers = [_Actor(shared) for _ in range(workers)]

    def close(self) -> None:
        """Nothing is left: Ray forgets the object with the last actor."""


@dataclass
class _Shared:
    """What all actors of a search have in common."""

    ray: Any
    content: Any  # a reference
    digest: str
    device: str
    memory: int
    first: bool = True  # whether no actor has ever had a place

    @property
    def options(self) -> dict[str, Any]:
        """What an actor asks of its node."""
        gpus = {"num_gpus": 1} if self.device == "cuda" else {}
        limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
        return {
            "num_cpus": 1, "memory": PROCESS, "scheduling_strategy": "SPREAD", "max_restarts": 0, **gpus,
            **({"runtime_env": {"env_vars": limits}} if limits else {}),
        }  # fmt: skip


class _Actor(Worker):
    """One actor; a new one takes its place when it dies."""

    def __init__(self, shared: _Shared) -> None:
        self._shared, self._ray = shared, shared.ray
        self._actor: Any = None
        self._end = ""
        self._warnings: list[str] = []
        self._closed, self._busy = threading.Event(), False
        self.slow = self.blameless = False

    def start(self) -> None:
        """Wait for a place, unless the actor has one.

        Raises ResourceError if the cluster has had no place for any actor in ten minutes, if a node has another
        version, or if it cannot load the search.
        """
        while self._actor is None:
            if self._closed.is_set():
                raise ResourceError("the workers have ended")
            shared = self._shared
            made = self._ray.remote(**shared.options)(Scoring)
            actor = made.remote(list(filter(None, sys.path)), shared.memory, shared.device)
            placed = False
            try:
                node = self._waited(actor.here.remote())
                placed = True
                _check_versions(node)
                fault = self._waited(actor.load.remote(shared.content, shared.digest))
                if fault:
                    raise ResourceError(
                        f"node {node['name']} cannot load the search ({', '.join(fault.values())}); what the search "
                        "imports and reads must be there too, at the same path"
                    )
            except self._ray.exceptions.RayActorError as error:
                if error.actor_init_failed:  # as without amc on its node
                    raise ResourceError(f"the Ray cluster cannot start a worker: {last_line(error)}") from None
                continue  # its node has gone meanwhile
            except BaseException:
                self._end_of(actor, idle=placed)
                raise
            if self._closed.is_set():
                self._end_of(actor, idle=True)
                continue
            self._warnings = _warnings(node)
            self._actor, shared.first = actor, False

    def ask(self, policy: Keep, timeout: float | None) -> dict[str, Any] | None:
        """The answer for a policy; None if the actor or its node dies, or is killed after `timeout` seconds."""
        self.slow = self.blameless = False
        errors = self._ray.exceptions
        actor, self._busy = self._actor, True
        try:
            found: dict[str, Any] = self._ray.get(actor.answer.remote(policy), timeout=timeout)
        except errors.GetTimeoutError:
            self.slow = True
        except errors.ActorUnavailableError:  # its node, or the connection to it
            self.blameless = True
        except errors.RayActorError as error:
            self._end = str(error)
            self.blameless = "its node has died" in self._end
        else:
            self._busy = False
            return {**found, "warnings": [*self._warnings, *found.get("warnings", ())]}
        self._actor, self._busy = None, False
        with suppress(Exception):  # it may be dead
            self._ray.kill(actor)
        return None

    @property
    def killed(self) -> bool:
        """Whether Ray ended the process because its node's memory was full; of other signals it tells nothing."""
        return "low on memory" in self._end

    def end(self) -> str:
        """How the actor died, in words."""
        return "when its process ended (the logs of Ray on its node may say why)"

    def close(self) -> None:
        """Kill the actor, now and for good; one that has nothing to do removes its file first."""
        self._closed.set()
        actor = self._actor
        if actor is None:
            return
        self._end_of(actor, idle=not self._busy)

    def _end_of(self, actor: Any, *, idle: bool) -> None:
        with suppress(Exception):  # its node may be gone, or the connection
            if idle:
                self._ray.get(actor.leave.remote(), timeout=LEAVE)
        with suppress(Exception):
            self._ray.kill(actor)

    def _waited(self, reference: Any) -> Any:
        """The result of an actor that may have to wait for a place. Raises ResourceError if none comes."""
        began = time.monotonic()
        while not self._ray.wait([reference], timeout=POLL)[0]:
            if self._closed.is_set():
                raise ResourceError("the workers have ended")
            if self._shared.first and time.monotonic() - began > NO_ROOM:
                wanted = "a core and a GPU" if self._shared.device == "cuda" else "a core"
                raise ResourceError(
                    f"no node of the Ray cluster has had {wanted} and {PROCESS / 1e9:.1f} GB to spare for "
                    f"{NO_ROOM / 60:.0f} minutes; add nodes (ray start --address), or end other jobs"
                )
        return self._ray.get(reference)


def _check_versions(node: dict[str, str]) -> None:
    """Raise ResourceError if a node has other versions than this machine."""
    for name in ("amc", "torch", "Python"):
        theirs, ours = node[name], here()[name]
        if theirs != ours:
            raise ResourceError(
                f"node {node['name']} has {name} {theirs}, and this machine {ours}; install the same on both"
            )


def _warnings(node: dict[str, str]) -> list[str]:
    """Why scores of a node may differ from those of this machine."""
    theirs, ours = node["instructions"], here()["instructions"]
    if theirs == ours:
        return []
    return [
        f"nodes have other instructions ({theirs}, and here {ours}), so the last digits of a score depend on its node; "
        "ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY make them alike"
    ]
