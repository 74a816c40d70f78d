"""Products of two tensors (matmul, bmm, tensordot, inner, einsum) in one notation.

Every dimension of both factors and of the result has a letter; the product sums over letters that the result lacks.
If one factor is a weight, `weight_layout` says which of its dimensions run over inputs, outputs and a stack of
matrices. Pure: shapes and letters, no tensors.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = string.ascii_letters


@dataclass(frozen=True, slots=True)
class Product:
    """`left`, `right` -> `out`: one letter a dimension. A dimension of size one meets any other."""

    left: str
    right: str
    out: str

    @property
    def swapped(self) -> Product:
        """The same product with its factors named the other way round."""
        return Product(self.right, self.left, self.out)

    @property
    def contracted(self) -> str:
        """Letters that both factors have and the result lacks, in the order of the left factor."""
        return "".join(letter for letter in self.left if letter in self.right and letter not in self.out)


@dataclass(frozen=True, slots=True)
class Layout:
    """The roles of a weight's dimensions, by letter. `order`: the weight's dimensions as stack, outputs, inputs."""

    stack: str
    outputs: str
    inputs: str
    order: tuple[int, ...]


def matmul(left: int, right: int) -> Product:
    """[..., M, K] @ [..., K, N] by the factors' numbers of dimensions; a vector has K alone."""
    stack = LETTERS[: max(left, right, 2) - 2]
    rows, columns = ("M" if left > 1 else ""), ("N" if right > 1 else "")
    a = (stack[len(stack) - left + 2 :] if left > 1 else "") + rows + "K"
    b = (stack[len(stack) - right + 2 :] if right > 1 else "") + "K" + columns
    return Product(a, b, stack + rows + columns)


def linear(rank: int) -> Product:
    """[..., I], [O, I] -> [..., O]."""
    rows = LETTERS[: rank - 1]
    return Product(rows + "I", "OI", rows + "O")


def inner(left: int, right: int) -> Product:
    """[..., K], [..., K] -> both leading parts."""
    return tensordot(left, right, [left - 1], [right - 1])


def tensordot(left: int, right: int, a: Sequence[int], b: Sequence[int]) -> Product:
    """Contract dimensions `a` of the left factor with `b` of the right one; the result has the others in order."""
    first, second = list(LETTERS[:left]), list(LETTERS[left : left + right])
    for x, y in zip(a, b, strict=True):
        second[y % right] = first[x % left]
    shared = set(first) & set(second)
    return Product("".join(first), "".join(second), "".join(c for c in (*first, *second) if c not in shared))


def einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of every operand and of the result. An ellipsis becomes letters; a missing result is filled in."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in LETTERS if letter not in equation]
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    dots = "".join(spare[: max(widths, default=0)])
    expanded = [_expanded(term, rank, dots) for term, rank in zip(terms, ranks, strict=True)]
    if not arrow:
        letters = "".join(terms).replace(".", "")
        output = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return expanded, output.replace("...", dots)


def chain(terms: Sequence[str], output: str) -> list[Product]:
    """The products of an einsum, from left to right: each takes the result so far and the next operand."""
    steps: list[Product] = []
    left = terms[0]
    for place, term in enumerate(terms[1:], start=1):
        wanted = set(output).union(*terms[place + 1 :])
        last = place == len(terms) - 1
        out = output if last else "".join(letter for letter in dict.fromkeys(left + term) if letter in wanted)
        steps.append(Product(left, term, out))
        left = out
    return steps


def _expanded(term: str, rank: int, dots: str) -> str:
    count = rank - len(term.replace("...", ""))
    return term.replace("...", dots[len(dots) - count :])


def weight_layout(product: Product, axes: Sequence[int | None], shape: Sequence[int]) -> Layout | None:
    """The roles of the right factor's dimensions if it is a weight applied to the left factor; else None.

    `axes`: for each dimension of the factor the dimension of the weight, None for a repeated or an added one.
    `shape`: of the weight itself. A product that sums over a dimension of one factor alone is not a layer.
    """
    axis = dict(zip(product.right, axes, strict=True))
    everything = product.left + product.right
    if len(axis) < len(product.right) or len(set(product.left)) < len(product.left):
        return None  # a diagonal
    if any(everything.count(letter) == 1 and letter not in product.out for letter in everything):
        return None
    inputs = product.contracted
    if not inputs or any(axis[letter] is None for letter in inputs):
        return None
    stack = "".join(letter for letter in product.out if letter in product.left and axis.get(letter) is not None)
    outputs = "".join(letter for letter in product.out if letter not in product.left and axis[letter] is not None)
    order = [axis[letter] for letter in stack + outputs + inputs]
    left_out = [dim for dim in range(len(shape)) if dim not in order]
    if any(shape[dim] > 1 for dim in left_out):
        return None
    return Layout(stack, outputs, inputs, (*left_out, *(dim for dim in order if dim is not None)))
