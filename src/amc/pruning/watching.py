"""Records the inputs of every layer while a network runs: torch's calls that contract a parameter with an activation.

A weight is recognised as the parameter itself or a view of it (`w.t()`, `w.mT`, `w[None]`), in modules, functions and
operators alike. The inputs of a layer are [groups, samples, inputs per group * kernel], sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amc.structure import Layer, products
from amc.structure.products import Layout, Product

Seen = Callable[[str, Tensor], None]  # weight name, [groups, samples, columns]

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_CELLS = {torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell}


class Watch(TorchFunctionMode):
    """Calls `seen` with the inputs of each of `layers`, by weight name; `parameters`: of the network that runs.

    At most `positions` places of every example are sampled: output positions, tokens or time steps.
    """

    def __init__(
        self, layers: Mapping[str, Layer], parameters: Mapping[str, Tensor], seen: Seen, positions: int, seed: int
    ) -> None:
        super().__init__()
        self.layers, self.seen, self.positions = layers, seen, positions
        self.names = {id(parameters[name]): name for name in layers}
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._linear(*args, **kwargs)
        elif func in (torch.conv1d, torch.conv2d, torch.conv3d):
            self._convolution(*args, **kwargs)
        elif func in _RECURRENT and not kwargs:
            self._recurrent(func, *args)
        elif func in _CELLS:
            self._cell(*args, **kwargs)
        elif func in _PRODUCTS:
            self._product(*_PRODUCTS[func](*args, **kwargs))
        elif func is torch.einsum:
            for factors in _einsum(*args, **kwargs):
                self._product(*factors)
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self._product(products.linear(input.ndim), input, weight)

    def _product(self, product: Product, a: Tensor, b: Tensor) -> None:
        if _is_parameter(a) and _is_parameter(b):
            return  # a weight that is computed
        for weight, x, way in ((b, a, product), (a, b, product.swapped)):
            name = self._name(weight)
            axes = _axes(weight) if name is not None else None
            if name is None or axes is None:
                continue
            layout = products.weight_layout(way, axes, _base(weight).shape)
            if layout is not None and layout.order == self.layers[name].order:
                self.seen(name, self._rows(_entering(way, layout, x.detach(), weight)))

    def _recurrent(self, func: Any, x: Tensor, hx: Any, params: Any, *settings: Any) -> None:
        """For each layer: its input, and its own output one step before."""
        if not isinstance(params, (list, tuple)) or not any(map(self._name, params)):
            return  # packed input comes with its batch sizes in between
        has_biases, layers, _, _, bidirectional, batch_first = settings
        x = x.transpose(0, 1) if batch_first else x
        state = hx if isinstance(hx, (list, tuple)) else [hx]
        directions = 2 if bidirectional else 1
        each = len(params) // (layers * directions)
        for layer in range(layers):
            first = layer * directions
            start = [part[first : first + directions] for part in state]
            mine = params[first * each : (first + directions) * each]
            given = tuple(start) if len(start) > 1 else start[0]
            y = func(x, given, mine, has_biases, 1, 0.0, False, bidirectional, False)[0]
            for direction, own in enumerate(y.chunk(directions, dim=-1)):
                ends = [start[0][direction][None], own[1:] if direction else own[:-1]]
                self._steps(mine[each * direction], x)
                self._steps(mine[each * direction + 1], torch.cat(ends[::-1] if direction else ends))
            x = y

    def _cell(self, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> None:
        state = hx[0] if isinstance(hx, (list, tuple)) else hx
        self._steps(w_ih, input[None])
        self._steps(w_hh, state[None])

    def _steps(self, weight: Tensor, x: Tensor) -> None:
        """Record x [T, N, I], the input of the matrix `weight` at every step."""
        name = self._name(weight)
        if name is not None:
            self.seen(name, self._rows(x.detach().transpose(0, 1)[None]))

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        name = self.names.get(id(weight))
        if name is None:
            return
        kernel = weight.shape[2:]
        strides, dilations = _each(stride, len(kernel)), _each(dilation, len(kernel))
        x = _padded(input.detach(), kernel, padding, dilations)
        self.seen(name, self._patches(x, list(zip(x.shape[2:], kernel, strides, dilations, strict=True)), groups))

    def _name(self, weight: Any) -> str | None:
        return self.names.get(id(_base(weight))) if isinstance(weight, Tensor) else None

    def _rows(self, x: Tensor) -> Tensor:
        """[stack, examples, ..., n] -> [stack, samples, n]: at most `positions` rows an example."""
        rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
        most = self.positions * (x.shape[1] if x.ndim > 3 else rows.shape[1])
        if rows.shape[1] <= most:
            return rows
        return rows[:, torch.randperm(rows.shape[1], generator=self.generator)[:most].to(x.device)]

    def _patches(self, x: Tensor, steps: Sequence[tuple[int, int, int, int]], groups: int) -> Tensor:
        """[N, C, spatial...] -> [groups, samples, C/groups * kernel]: what the kernel sees at sampled outputs.

        `steps`: padded size, kernel, stride and dilation of each spatial dimension.
        """
        outputs = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in steps]
        index = torch.zeros(1, 1, 1, dtype=torch.long)
        for (size, kernel, stride, dilation), at in zip(steps, self._sampled(outputs, x.shape[0]), strict=True):
            place = (at * stride)[..., None, None] + torch.arange(kernel) * dilation  # [N, count, 1, kernel]
            index = (index.unsqueeze(-1) * size + place).flatten(2)
        picked = x.flatten(2).mT[torch.arange(x.shape[0])[:, None, None], index.to(x.device)]  # [N, count, K, C]
        patches = picked.flatten(0, 1).mT  # [samples, C, K]
        return patches.reshape(patches.shape[0], groups, -1).transpose(0, 1)

    def _sampled(self, outputs: Sequence[int], images: int) -> list[Tensor]:
        """Coordinates of the sampled outputs, [images, count] a dimension; every output once if they are few."""
        if math.prod(outputs) <= self.positions:
            grid = torch.meshgrid(*(torch.arange(extent) for extent in outputs), indexing="ij")
            return [axis.flatten().expand(images, -1) for axis in grid]
        shape = (images, self.positions)
        return [torch.randint(extent, shape, generator=self.generator) for extent in outputs]


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _padded(x: Tensor, kernel: Sequence[int], padding: Any, dilations: Sequence[int]) -> Tensor:
    """Zero padding, as the convolution adds it. The module adds other kinds of padding before it calls torch."""
    if padding == "same":
        totals = [dilation * (size - 1) for size, dilation in zip(kernel, dilations, strict=True)]
        ends = [(total // 2, total - total // 2) for total in totals]
    else:
        ends = [(size, size) for size in _each(0 if padding == "valid" else padding, len(kernel))]
    # A 1x1 convolution adds none, and F.pad would copy the whole activation all the same.
    return F.pad(x, [size for pair in reversed(ends) for size in pair]) if any(map(any, ends)) else x


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(_base(tensor), nn.Parameter)


def _axes(view: Tensor) -> list[int | None] | None:
    """The parameter's dimension behind each dimension of a view, None for one that repeats or has size one.

    None for a view that merges, splits or cuts dimensions.
    """
    base = _base(view)
    left = {dim: (size, stride) for dim, (size, stride) in enumerate(zip(base.shape, base.stride(), strict=True))}
    left = {dim: extent for dim, extent in left.items() if extent[0] > 1}
    axes: list[int | None] = []
    for extent in zip(view.shape, view.stride(), strict=True):
        axis = next((dim for dim, own in left.items() if own == extent), None)
        if axis is None and extent[0] > 1 and extent[1] > 0:
            return None
        axes.append(axis)
        left.pop(-1 if axis is None else axis, None)
    return None if left else axes


def _entering(product: Product, layout: Layout, x: Tensor, weight: Tensor) -> Tensor:
    """The activation as [stack, ..., inputs], repeated over the stack if it has none."""
    rows = "".join(letter for letter in product.left if letter not in layout.stack + layout.inputs)
    x = x.permute([product.left.index(letter) for letter in layout.stack + rows + layout.inputs])
    x = x.flatten(x.ndim - len(layout.inputs))
    sizes = [weight.shape[product.right.index(letter)] for letter in layout.stack]
    return x.expand(*sizes, *x.shape[len(sizes) :]).flatten(0, len(sizes) - 1) if sizes else x[None]


Factors = tuple[Product, Tensor, Tensor]


def _factors(*args: Any, **kwargs: Any) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _matmul(*args: Any, **kwargs: Any) -> Factors:
    a, b = _factors(*args, **kwargs)[:2]
    return products.matmul(a.ndim, b.ndim), a, b


def _reversed_matmul(b: Tensor, a: Tensor) -> Factors:
    return _matmul(a, b)


def _added_matmul(*args: Any, **kwargs: Any) -> Factors:
    return _matmul(*_factors(*args, **kwargs)[1:])


def _inner(*args: Any, **kwargs: Any) -> Factors:
    a, b = _factors(*args, **kwargs)[:2]
    return products.inner(a.ndim, b.ndim), a, b


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> Factors:
    dims = dims.tolist() if isinstance(dims, Tensor) else dims
    first, second = (range(a.ndim - dims, a.ndim), range(dims)) if isinstance(dims, int) else dims
    return products.tensordot(a.ndim, b.ndim, [*_each(first, 1)], [*_each(second, 1)]), a, b


def _einsum(equation: Any, *operands: Any) -> Iterator[Factors]:
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str):
        return  # written with numbers in place of letters
    terms, out = products.einsum(equation, [operand.ndim for operand in given])
    result, steps = given[0], products.chain(terms, out)
    for product, operand in zip(steps, given[1:], strict=True):
        yield product, result, operand
        if product is not steps[-1]:
            result = torch.einsum(f"{product.left},{product.right}->{product.out}", result, operand)


_PRODUCTS: dict[Any, Callable[..., Factors]] = {
    **dict.fromkeys((torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm, Tensor.addmm_), _added_matmul),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_), _added_matmul),
    **dict.fromkeys((torch.inner, Tensor.inner), _inner),
    Tensor.__rmatmul__: _reversed_matmul,
    torch.tensordot: _tensordot,
}
