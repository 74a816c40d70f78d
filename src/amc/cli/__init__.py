"""`amc …`: the command line, and the only package that prints.

Exit codes: 0 done, 2 the user's input is wrong (one line: what, which value, what to do), 1 a fault of ours,
130 interrupted, 143 terminated.
"""


def main() -> None:
    """Entry point of the `amc` command."""
    from amc.cli.app import main as run  # here: a package that is imported for its jobs needs no command line

    run()
