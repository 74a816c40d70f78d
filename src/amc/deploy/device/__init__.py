"""Times models on another machine: a board over HTTP, or an Android phone over adb.

`server` runs on the board; `client` and `adb` run on the host; `protocol` defines what they exchange. docs/device.md
explains how to use them.
"""

from amc.deploy.device.protocol import Device, DeviceError, DeviceInfo, Model, Request, TensorSpec

__all__ = ["Device", "DeviceError", "DeviceInfo", "Model", "Request", "TensorSpec"]
