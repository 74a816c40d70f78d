"""The end of a search: its most promising policies are measured with more effort, and one of them is taken."""

from amc.compression.selection.base import Choice, Selection, Trial, choose

__all__ = ["Choice", "Selection", "Trial", "choose"]
