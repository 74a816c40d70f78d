"""The limits of a device server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from amc.deploy.device.protocol import MAX_FILE_BYTES, MAX_RUN_SECONDS, DeviceError

_MOST = {"body_bytes": MAX_FILE_BYTES, "run_seconds": MAX_RUN_SECONDS}  # the largest values that hosts accept
_MOST_ELSE = (1 << 63) - 1  # the largest integer that any system call accepts
LINGER_SECONDS = 2.0  # time for a client to read its answer before its connection is closed
_OPTIONS = {
    "body_bytes": "--max-bytes", "run_seconds": "--max-seconds", "data_bytes": "--max-memory", "queue": "--queue",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest values that the server allows."""

    body_bytes: int = 512 << 20  # of one request
    spool_bytes: int = 2 << 30  # of all waiting requests
    queue: int = 32  # waiting measurements
    visitors: int = 128  # connections that have not sent the token
    connections: int = 128  # connections that have sent the token
    start_seconds: float = 300.0  # for a measurement's process to start and import its runtime
    run_seconds: float = 300.0  # of one measurement, after its start
    data_bytes: int = 0  # memory of one measurement; 0: no limit
    head_seconds: float = 2.0  # for the request line and the headers to arrive
    request_seconds: float = 10.0  # for a body to arrive, in addition to its bytes / body_rate; for an answer to leave
    body_rate: int = 64 << 10  # least average rate of a body, in bytes per second
    wait_seconds: float = 30.0  # longest wait of one GET

    def __post_init__(self) -> None:
        for item in fields(self):
            value, most = getattr(self, item.name), _MOST.get(item.name, _MOST_ELSE)
            none_is_fine = item.name == "data_bytes" and value == 0
            if not (0 < value <= most or none_is_fine):  # NaN too
                name = _OPTIONS.get(item.name, f"the limit {item.name}")
                rule = "at least 0" if item.name == "data_bytes" else "above 0"
                raise DeviceError(f"{name} must be {rule} and at most {most}, got {value}")
