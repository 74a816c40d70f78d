"""Recurrent layers and cells: one hidden size for all gates, directions and layers of a module.

A hidden unit whose gates have zero weights and biases stays at zero if it starts at zero: the state of an LSTM, a GRU
or a plain RNN is then a product with zero, or tanh or relu of zero. So masking and slicing agree, and units may be
removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, LayerUse, Tracked
from amc.structure.rules.registry import operator_name, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
OVER_TIME = "a recurrent layer runs over time and batch"
PROJECTED = "torch recognises a projected LSTM by its two widths, which must stay unequal"
ZEROS = ("zeros", "new_zeros", "zeros_like")
MOVES = ("expand", "repeat", "clone", "contiguous", "to", "_to_copy", "detach", "alias", "unsqueeze", "squeeze")


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The parameters of one layer in one direction."""

    input: Tracked  # [gates * hidden, inputs]
    hidden: Tracked  # [gates * hidden, width]
    biases: tuple[Tracked, ...]  # [gates * hidden]
    projection: Tracked | None = None  # [width, hidden] of an LSTM with proj_size


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(ctx: Context, x: Tracked, *args: Any, **_: Any) -> Any:
    """x [T, N, I], or [N, T, I] with batch_first -> all outputs [T, N, directions * width], and the last states.

    Packed input is x [steps, I], without a time dimension.
    """
    packed = ctx.argument("batch_sizes") is not None
    hx, params, has_biases, layers = args[int(packed) : 4 + int(packed)]
    state = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    directions = 2 if ctx.argument("bidirectional") else 1
    matrices = _matrices(params, has_biases, directions * layers)
    gates = GATES[operator_name(_target(ctx))]
    for ids in x.ids[:-1]:
        ctx.lock(ids, OVER_TIME)
    width, hidden = _sizes(ctx, matrices, gates)
    entering = x.ids[-1]
    for layer in range(layers):
        for each in matrices[directions * layer : directions * (layer + 1)]:
            _layer(ctx, each, entering, width, hidden, gates, x.shape[:-1])
        entering = None if width is None else np.tile(width, directions)
    for place, tensor in enumerate(state):
        _start(ctx, tensor, width if place == 0 else hidden, place)
    steps: Dims = (None,) * (x.rank - 1)
    return [(*steps, entering), *((None, None, ids) for ids in (width, hidden)[: len(state)])]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(ctx: Context, x: Tracked, hx: Any, w_ih: Tracked, w_hh: Tracked, *biases: Tracked | None, **_: Any) -> Any:
    """x [N, I], state [N, H] -> the next state, of an LSTM with the next cell."""
    state = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    each = _Matrices(w_ih, w_hh, tuple(bias for bias in biases if bias is not None))
    gates = GATES[operator_name(_target(ctx)).removesuffix("_cell")]
    for ids in x.ids[:-1]:
        ctx.lock(ids, OVER_TIME)
    width, hidden = _sizes(ctx, [each], gates)
    _layer(ctx, each, x.ids[-1], width, hidden, gates, x.shape[:-1])
    for place, tensor in enumerate(state):
        _start(ctx, tensor, width, place)
    dims: Dims = (*x.ids[:-1], width)
    return [dims, dims] if len(state) == 2 else dims


def _target(ctx: Context) -> Any:
    assert ctx.node is not None
    return ctx.node.target


def _matrices(params: Sequence[Tracked], has_biases: bool, count: int) -> list[_Matrices]:
    each = len(params) // count
    return [
        _Matrices(part[0], part[1], tuple(part[2:4]) if has_biases else (), part[-1] if each % 2 else None)
        for part in (params[place : place + each] for place in range(0, each * count, each))
    ]


def _sizes(ctx: Context, matrices: Sequence[_Matrices], gates: int) -> tuple[Ids | None, Ids | None]:
    """Ids of the output's width and of the hidden units, tied over all gates, layers and directions.

    Both are equal unless the LSTM has a projection.
    """
    width, projection = matrices[0].hidden.ids[1], matrices[0].projection
    if projection is not None:
        for each in matrices:
            for tensor in (each.hidden, each.projection, *each.biases):
                for ids in tensor.ids if tensor is not None else ():
                    ctx.lock(ids, PROJECTED)
            ctx.lock(each.input.ids[0], PROJECTED)
        return width, projection.ids[1]
    for each in matrices:
        ctx.tie(width, each.hidden.ids[1])
        for tensor in (each.input, each.hidden, *each.biases):
            ctx.tie(ctx.tie_across(tensor.ids[0], gates, outer=False), width)
    return width, width


def _layer(
    ctx: Context,
    each: _Matrices,
    entering: Ids | None,
    width: Ids | None,
    hidden: Ids | None,
    gates: int,
    steps: tuple[int, ...],
) -> None:
    """Tie one layer to what enters it; record its matrices and their cost."""
    entering = ctx.tie(entering, each.input.ids[1])
    rows = None if hidden is None else np.tile(hidden, gates)
    for matrix, columns, out in (
        (each.input, entering, rows),
        (each.hidden, width, rows),
        (each.projection, hidden, width),
    ):
        if matrix is not None:
            _record(ctx, matrix, columns, out)
            ctx.cost((*steps, *matrix.shape), (*(None for _ in steps), out, columns), layer=len(ctx.layers) - 1)


def _record(ctx: Context, matrix: Tracked, input_ids: Ids | None, output_ids: Ids | None) -> None:
    ctx.layers.append(
        LayerUse(
            module=ctx.module,
            kind="recurrent",
            weight=str(matrix.name) if matrix.name in ctx.parameters else "",
            bias=None,
            input_ids=() if input_ids is None else (input_ids,),
            output_ids=() if output_ids is None else (output_ids,),
            inputs=matrix.shape[1],
            outputs=matrix.shape[0],
            input_dims=(1,),
            order=(0, 1),
            kernel=(),
            stride=(),
            groups=1,
            tied_across=False,
            input_size=(),
        )
    )


def _start(ctx: Context, state: Tracked, width: Ids | None, place: int) -> None:
    """Tie an initial state: a unit must start at zero to stay there.

    torch's own modules size their zeros by their weights. Zeros in a user's forward take their size from an attribute,
    which a slice updates, or from a literal, which the certificate checks.
    """
    origin = _origin(ctx, place)
    if state.ids[-1] is None and origin is not None:
        ctx.at(origin).counted(width, state.shape[-1], place=-1)
    else:
        ctx.tie(state.ids[-1], width)
    for ids in state.ids[:-1]:
        ctx.lock(ids, OVER_TIME)


def _origin(ctx: Context, place: int) -> Node | None:
    """The operator that makes the zeros of the initial state; None if it starts from anything else."""
    hx = ctx.argument("hx")
    node = hx[place] if isinstance(hx, (list, tuple)) else hx
    while isinstance(node, Node) and operator_name(node.target) in MOVES:
        node = node.args[0]
    return node if isinstance(node, Node) and operator_name(node.target) in ZEROS else None
