"""The letters of a product say what torch computes, and what each dimension of a weight is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amc.structure import products
from amc.structure.products import Layout, Product


def by_letters(product: Product, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum(f"{product.left},{product.right}->{product.out}", a, b)


@pytest.mark.parametrize(
    ("left", "right"),
    [((5,), (5,)), ((5,), (5, 3)), ((4, 5), (5,)), ((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((4, 5), (2, 5, 3)),
     ((2, 4, 5), (2, 5, 3)), ((6, 2, 4, 5), (2, 5, 3)), ((2, 4, 5), (6, 2, 5, 3)), ((5,), (2, 5, 3)),
     ((2, 4, 5), (5,))],
)  # fmt: skip
def test_letters_of_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = torch.randn(left, dtype=torch.float64), torch.randn(right, dtype=torch.float64)
    torch.testing.assert_close(by_letters(products.matmul(len(left), len(right)), a, b), a @ b)


def test_letters_of_linear_inner_and_tensordot() -> None:
    x, w = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(by_letters(products.linear(3), x, w), torch.nn.functional.linear(x, w))
    torch.testing.assert_close(by_letters(products.inner(3, 2), x, w), torch.inner(x, w))
    v = torch.randn(5, 3, 4, dtype=torch.float64)
    product = products.tensordot(3, 3, [1, -1], [-2, 0])
    torch.testing.assert_close(by_letters(product, x, v), torch.tensordot(x, v, dims=([1, 2], [1, 0])))
    assert product.contracted == product.left[1:]


@pytest.mark.parametrize(
    ("equation", "ranks", "terms", "output"),
    [("bi, io -> bo", (2, 2), ["bi", "io"], "bo"), ("bi,io", (2, 2), ["bi", "io"], "bo"),
     ("...i,io->...o", (4, 2), ["abci", "io"], "abco"), ("i...,io", (3, 2), ["iab", "io"], "abo"),
     ("...i,...io->...o", (2, 4), ["bi", "abio"], "abo"), ("ii->i", (2,), ["ii"], "i"), ("ba", (2,), ["ba"], "ab")],
)  # fmt: skip
def test_an_equation_is_written_out(equation: str, ranks: tuple[int, ...], terms: list[str], output: str) -> None:
    assert products.einsum(equation, ranks) == (terms, output)


def test_an_einsum_of_several_is_a_chain_of_products() -> None:
    a, b, c, d = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3), (3, 4, 5), (5,), (4, 6)))
    terms, output = ["bi", "ijk", "k", "jo"], "bo"
    result = a
    for product, operand in zip(products.chain(terms, output), (b, c, d), strict=True):
        result = by_letters(product, result, operand)
    torch.testing.assert_close(result, torch.einsum("bi,ijk,k,jo->bo", a, b, c, d))
    assert products.chain(terms, output)[0] == Product("bi", "ijk", "bjk")
    assert products.chain(["ab"], "ba") == []


@pytest.mark.parametrize(
    ("product", "axes", "shape", "expected"),
    [
        (products.matmul(3, 2), (0, 1), (5, 7), Layout("", "N", "K", (1, 0))),  # x @ w
        (products.matmul(3, 2), (1, 0), (7, 5), Layout("", "N", "K", (0, 1))),  # x @ w.t()
        (products.matmul(3, 3), (0, 1, 2), (4, 5, 7), Layout("a", "N", "K", (0, 2, 1))),  # a matrix each
        (products.matmul(3, 3), (None, 0, 1), (5, 7), Layout("", "N", "K", (1, 0))),  # one, repeated
        (products.matmul(2, 2), (1, 2), (1, 5, 7), Layout("", "N", "K", (0, 2, 1))),  # w[0]
        (Product("bhd", "hdo", "bo"), (0, 1, 2), (3, 5, 7), Layout("", "o", "hd", (2, 0, 1))),
        (Product("bd", "dhk", "bhk"), (0, 1, 2), (5, 3, 7), Layout("", "hk", "d", (1, 2, 0))),
        (Product("bi", "io", "b"), (0, 1), (5, 7), None),  # its rows are added up first
        (Product("bi", "i", "bi"), (0,), (5,), None),  # a scale
        (Product("bi", "ii", "bi"), (0, 1), (5, 5), None),  # its diagonal
    ],
)
def test_the_roles_of_a_weights_dimensions(
    product: Product, axes: tuple[int | None, ...], shape: tuple[int, ...], expected: Layout | None
) -> None:
    assert products.weight_layout(product, axes, shape) == expected
