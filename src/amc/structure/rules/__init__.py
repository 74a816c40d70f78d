"""Operator rules: how channel ids flow through each ATen operator.

`apply_rule(target)` finds the rule. Operators that torch tags as pointwise share one rule. An operator without a rule
locks the channels that flow into it; its cost is torch's own count. Rules of users (`own`) come first.
"""

from amc.structure.rules import (  # noqa: F401  (each registers its rules)
    attention,
    layers,
    products,
    recurrent,
    reductions,
    reshapes,
    shapes,
)
from amc.structure.rules.registry import apply_rule

__all__ = ["apply_rule"]
