"""`amc device …`: this machine times models for another one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from amc.cli.common import JsonFlag, err, out, print_json, reported
from amc.deploy.device.stop import Stop

app = typer.Typer(help="Time models on this machine for a host elsewhere.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def device() -> None:
    """Time models on this machine for a host elsewhere."""


@app.command()
@reported
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on. 127.0.0.1: this machine only, for instance by an SSH tunnel.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token, created if missing (default: a new token, shown once).")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest request, bytes.")] = 512 << 20,
    max_seconds: Annotated[float, typer.Option(help="Longest measurement, after its runtime is loaded.")] = 300.0,
    max_memory: Annotated[int, typer.Option(help="Most memory of one measurement, bytes; 0: no limit.")] = 0,
    queue: Annotated[int, typer.Option(help="Most measurements that may wait.")] = 32,
    verbose: Annotated[bool, typer.Option(help="Show every request.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Wait for models and time them; Ctrl-C ends it. See docs/device.md."""
    with _stop_on_signals() as stop:
        from amc.deploy.device.limits import Limits
        from amc.deploy.device.server import DeviceServer, StoppedError
        from amc.deploy.device.token import make_token_file, new_token

        limits = Limits(
            body_bytes=max_bytes, spool_bytes=max(4 * max_bytes, 1 << 20), run_seconds=max_seconds,
            data_bytes=max_memory, queue=queue,
        )  # fmt: skip
        token = new_token() if token_file is None else make_token_file(token_file)
        log = _note if verbose else lambda line: None
        with (
            suppress(StoppedError),
            closing(DeviceServer(token, host=host, port=port, limits=limits, log=log, stop=stop)) as server,
        ):
            if not server.is_private:
                _warn(server.url)
            _announce(server.url, dict(server.info.runtimes), token, token_file, as_json)
            server.serve_forever()
        _say("amc: the device server has ended")


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that is set by Ctrl-C, SIGTERM and the end of the terminal.

    The signals raise no exception, so they cannot interrupt the clean-up. Ignored signals stay ignored.
    """
    with Stop() as stop:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        for number in ours:
            signal.signal(number, lambda *_: stop.set())
        try:
            yield stop
        finally:
            for number in ours:  # the process is about to exit
                signal.signal(number, signal.SIG_IGN if stop.is_set() else before[number])


def _say(line: str) -> None:
    err.print(line, markup=False, emoji=False, soft_wrap=True)


def _note(line: str) -> None:
    with suppress(OSError):  # a log that cannot be written, on a full disk for instance, does not end the server
        _say(line)


def _warn(url: str) -> None:
    _say(
        f"amc: warning: {url} can be reached from other machines, and the connection is not encrypted: whoever can "
        f"read it can read the token and the models; leave --host out and use an SSH tunnel, or trust the network"
    )


def _announce(url: str, runtimes: dict[str, str], token: str, token_file: Path | None, as_json: bool) -> None:
    if as_json:
        record: dict[str, Any] = {"url": url, "runtimes": runtimes}
        print_json(record | ({"token": token} if token_file is None else {"token_file": str(token_file)}))
        sys.stdout.flush()  # the reader of a pipe waits for it, and this process goes on
        return
    out.print(f"listening on {url}", soft_wrap=True)
    out.print("runtimes: " + ", ".join(f"{name} {version}" for name, version in runtimes.items()), soft_wrap=True)
    if token_file is None:
        out.print("on the host, set the token (it is shown this once):", soft_wrap=True)
        out.print(f"  export AMC_DEVICE_TOKEN={token}", soft_wrap=True, markup=False)
    else:
        out.print(f"token: in {token_file}", soft_wrap=True, markup=False)
