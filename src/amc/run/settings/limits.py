"""Limits and rankings of pruning, shared by the settings of a search and the methods."""

from typing import Literal

Ranking = Literal["magnitude", "elimination"]

MAX_SPARSITY = 0.8  # of a group's channels, or of a convolution's weights (arXiv 1802.03494, section 4)
MAX_SPARSITY_LINEAR = 0.98  # of a linear layer's weights (same section)
CONFIDENCE = 0.8  # one-sided, of a bound on a loss of accuracy; docs/accuracy.md explains why it is not 0.95
