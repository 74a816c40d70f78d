"""The prediction whether XNNPACK uses its sparse kernels; docs/sparse.md says how it was checked on arm64."""

import importlib.util

import pytest

from amc.deploy.formats.sparse_kernels import sparse_kernels
from amc.deploy.formats.sparse_tflite import sparsify_tflite
from tests.deploy.tflite_toys import Toy, mobile

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert")
POINTWISE = 64 * 16 + 2 * 64 * 64  # weights of the three 1x1 convolutions
CLASSIFIER = 32 * 64


def test_a_sparse_mobile_network_is_taken():
    verdict = sparse_kernels(mobile(0.9))
    assert (verdict.used, verdict.wrong, verdict.reason) == (True, False, "")
    zeros = round(0.9 * 64 * 16) + 2 * round(0.9 * 64 * 64)
    counts = [(3, zeros, POINTWISE), (4, zeros + round(0.9 * CLASSIFIER), POINTWISE + CLASSIFIER)]
    assert (verdict.layers, verdict.zeros, verdict.weights) == min(counts, key=lambda count: count[1] / count[2])


def test_the_verdict_is_the_same_for_the_dense_and_the_sparse_file():
    for sparsity in (0.6, 0.9):
        assert sparse_kernels(sparsify_tflite(mobile(sparsity))) == sparse_kernels(mobile(sparsity))


@pytest.mark.parametrize(("sparsity", "used"), [(0.6, False), (0.66, False), (0.67, True), (0.8, True)])
def test_more_than_two_thirds_of_the_weights_must_be_zero(sparsity, used):
    verdict = sparse_kernels(mobile(sparsity))
    assert verdict.used is used
    assert not verdict.wrong
    assert used or "not more than two thirds" in verdict.reason


def test_a_denser_classifier_counts_and_a_sparser_one_does_not():
    verdict = sparse_kernels(mobile(0.8, classifier=0.0))  # 80% of 9,216 of 11,264 weights: 65.5%
    assert not verdict.used
    assert verdict.zeros == round(0.8 * 64 * 16) + 2 * round(0.8 * 64 * 64)
    assert "classifier" in verdict.reason
    assert sparse_kernels(mobile(0.9, classifier=0.0)).used  # 73.6%
    verdict = sparse_kernels(mobile(0.64, classifier=0.98))  # with the classifier 70%
    assert not verdict.used
    assert "64.0% of the weights of its 1x1 convolutions are zero" in verdict.reason


def test_a_first_layer_of_stride_1_keeps_the_kernels_off():
    verdict = sparse_kernels(mobile(0.9, stem_stride=1))
    assert (verdict.used, verdict.wrong) == (False, False)
    assert verdict.reason.startswith("CONV_2D 3x3 of stride 1 has no sparse kernel")


def test_an_input_that_goes_straight_to_a_1x1_convolution_keeps_the_kernels_off():
    toy = Toy((1, 8, 8, 32))
    toy.sparsity = 0.9
    verdict = sparse_kernels(toy.conv(64).mean().write())
    assert (verdict.used, verdict.wrong) == (False, False)
    assert verdict.reason.startswith("the input goes straight to CONV_2D 1x1 of stride 1")


@pytest.mark.parametrize(
    ("middle", "culprit"),
    [
        (lambda toy: toy.pool(), "MAX_POOL_2D"),
        (lambda toy: toy.conv(64, 3), "CONV_2D 3x3 of stride 1"),
        (lambda toy: toy.conv(64, 1, 2), "CONV_2D 1x1 of stride 2"),
        (lambda toy: toy.depthwise(7), "DEPTHWISE_CONV_2D 7x7 of stride 1"),
    ],
)
def test_an_operator_without_a_kernel_for_the_layout_makes_the_file_unsafe(middle, culprit):
    verdict = sparse_kernels(mobile(0.9, middle=middle))
    assert (verdict.used, verdict.wrong) == (False, True)
    assert culprit in verdict.reason


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_kernels_of_3_and_5_fit(kernel):
    assert sparse_kernels(mobile(0.9, middle=lambda toy: toy.depthwise(kernel))).used


def test_a_result_that_also_leaves_the_stretch_is_reported():
    toy = Toy((1, 16, 16, 3)).pad().conv(16, 3, 2, same=False)
    toy.sparsity = 0.9
    branch = toy.conv(64).last
    toy.conv(64).mean()
    end, toy.last = toy.last, branch
    side = toy.pool().last
    toy.last = end
    data = toy.write()
    assert side != end
    verdict = sparse_kernels(data)
    assert (verdict.used, verdict.wrong) == (False, True)
    assert verdict.reason.endswith("also goes to MAX_POOL_2D, outside of the stretch")


def test_a_network_without_a_mean_is_not_taken():
    toy = Toy((1, 8, 8, 32))
    toy.sparsity = 0.9
    assert "no mean over height and width" in sparse_kernels(toy.conv(64).write()).reason
