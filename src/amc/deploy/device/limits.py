"""What a device server allows."""

from __future__ import annotations

from dataclasses import dataclass, fields

from amc.deploy.device.protocol import DeviceError


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows."""

    body_bytes: int = 512 << 20  # of one request
    spool_bytes: int = 2 << 30  # of all requests that wait
    queue: int = 32  # measurements that wait
    connections: int = 128
    run_seconds: float = 300.0  # of one measurement
    data_bytes: int = 0  # memory of one measurement; 0: no limit
    request_seconds: float = 10.0  # for a request to arrive, its body apart
    body_rate: int = 64 << 10  # bytes a second that a body must reach on average
    wait_seconds: float = 30.0  # longest wait of one GET

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 0 or (value == 0 and item.name != "data_bytes"):
                raise DeviceError(f"the limit {item.name} must be positive, got {value}")
