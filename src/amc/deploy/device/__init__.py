"""Timing models on a machine that is not this one: a board over HTTP, an Android phone over adb.

`server` runs on the board, `client` and `adb` on the host; `protocol` is what they agree on. docs/device.md explains
how to use them.
"""

from amc.deploy.device.protocol import Device, DeviceError, DeviceInfo, Model, Request, TensorSpec

__all__ = ["Device", "DeviceError", "DeviceInfo", "Model", "Request", "TensorSpec"]
