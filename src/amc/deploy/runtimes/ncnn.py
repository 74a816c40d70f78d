"""ncnn on the CPU. It runs one example at a time, so this module removes and adds the batch dimension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amc.deploy.extras import require, version_of
from amc.deploy.quiet import silenced
from amc.deploy.runtimes.base import RuntimeFailure, Session, loading
from amc.deploy.tensors import Tensors

_NARROW = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


class NcnnRuntime:
    """16-bit arithmetic, which is ncnn's default, is on only with `half`; bfloat16 is always off."""

    name = "ncnn"
    format = "ncnn"
    trusted_only = False

    def version(self) -> str:
        """See `Runtime`."""
        return version_of("ncnn", "ncnn")

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """See `Runtime`."""
        package = require("ncnn", "ncnn")
        with loading(self.name, paths[0]), silenced() as printed:
            net = package.Net()
            net.opt.num_threads = threads
            net.opt.use_vulkan_compute = False
            net.opt.use_bf16_storage = False
            for switch in _NARROW:
                setattr(net.opt, switch, half)
            # ncnn parses the text form itself; for another kind of file it returns an error code, not an exception.
            if net.load_param(str(paths[0])) or net.load_model(str(paths[1])):
                lines = printed().split("\n")
                raise RuntimeFailure(f"ncnn cannot load '{paths[0].name}': {lines[0] or 'it is not a network'}")
            return _Session(package, net)


class _Session:
    def __init__(self, package: Any, net: Any) -> None:
        self._package, self._net = package, net
        self._inputs, self._outputs = list(net.input_names()), list(net.output_names())

    def run(self, inputs: Tensors) -> Tensors:
        extractor = self._net.create_extractor()
        for name, value in zip(self._inputs, inputs, strict=True):
            # A copy, because ncnn requires every channel to begin at a multiple of 16 bytes.
            extractor.input(name, self._package.Mat(value[0].numpy()).clone())
        results = []
        for name in self._outputs:
            code, mat = extractor.extract(name)
            if code:
                raise RuntimeError(f"ncnn fails to compute {name} (code {code})")
            results.append(torch.from_numpy(np.array(mat)).unsqueeze(0))
        return tuple(results)

    def close(self) -> None:
        self._net = None
