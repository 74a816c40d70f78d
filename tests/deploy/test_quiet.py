"""The output of converters is hidden."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from amc.deploy.quiet import silenced


def test_output_is_hidden_returned_and_restored_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced() as said:
        sys.stdout.write("python\n")
        os.write(1, b"native out\n")
        os.write(2, b"native err\n")
        logging.getLogger("converter").error("log")
        warnings.warn("old", stacklevel=1)
        text = said()
    sys.stdout.write("after\n")
    sys.stderr.write("after\n")
    assert capfd.readouterr() == ("after\n", "after\n")
    assert {"native out", "native err"} <= set(text.split("\n"))


def test_restored_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), silenced():
        raise ValueError("x")
    os.write(1, b"heard\n")
    assert capfd.readouterr().out == "heard\n"
    assert logging.root.manager.disable < logging.ERROR
