"""`--sparse` goes to LiteRT only, and a real fine-grained network is stored in fewer bytes, with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amc.cli.jobs.export import default_name
from amc.deploy.export import export
from amc.deploy.extras import MissingExtraError
from amc.deploy.formats import get_format
from amc.errors import AmcError
from amc.pruning.methods import MethodOptions, create_method
from amc.structure import inspect
from amc.zoo import create_model


def test_only_litert_has_sparse_weights() -> None:
    assert get_format("litert", sparse=True).suffixes == (".tflite",)
    with pytest.raises(AmcError, match="format onnx has no sparse weights; leave sparse out, or choose litert"):
        get_format("onnx", sparse=True)


def test_a_sparse_file_does_not_replace_the_dense_one() -> None:
    names = {default_name("litert", (".tflite",), half=half, sparse=sparse) for half in (0, 1) for sparse in (0, 1)}
    assert names == {"model.tflite", "model-fp16.tflite", "model-sparse.tflite", "model-sparse-fp16.tflite"}


@pytest.mark.slow
def test_a_fine_grained_network_is_smaller_and_passes_the_parity_check(tmp_path: Path) -> None:
    model, example = create_model("digits_cnn").eval(), torch.zeros(1, 1, 8, 8)
    method = create_method("fine-grained", model, inspect(model, example), MethodOptions(max_sparsity=0.9))
    slim = method.builder(None).build([decision.choices[0] for decision in method.decisions])
    try:
        files = [export(slim, example, tmp_path / f"{n}.tflite", format="litert", sparse=n) for n in (0, 1)]
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    assert files[1].bytes < 0.6 * files[0].bytes
    assert files[1].errors["random"] <= files[1].tolerance
