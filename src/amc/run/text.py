"""Quantities and lines as a person reads them."""

from amc.errors import one_line

DASH = "–"  # shown for a missing value
LINE = 120  # largest length of a `repr`, characters


def short(text: str) -> str:
    """`text` as one line of at most `LINE` characters; what does not fit gives way to "…"."""
    return one_line(text, LINE)


def format_count(value: float | None) -> str:
    """Text such as "20.47 M", "272.5 k" or "512": four digits and a power of 1000."""
    if value is None:
        return DASH
    rounded = float(f"{value:.4g}")  # round first, so that 999,999 is 1 M and not 1000 k
    for scale, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(rounded) >= scale:
            scaled = rounded / scale
            return f"{scaled:.{max(0, 4 - len(str(int(abs(scaled)))))}f}{suffix}"
    return f"{value:g}"


def format_bytes(value: float | None) -> str:
    """Text such as "1.079 MB", in powers of 1000 as in budgets."""
    text = format_count(value)
    return text if value is None else f"{text}{'' if text[-1].isalpha() else ' '}B"
