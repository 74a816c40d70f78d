"""Tensors of files: shared, safe to write to, locked while they live, and pickled by name."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amc.errors import RunError
from amc.run.mapped import BY_NAME, file_of, mapped, open_locked, remove_unused

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


def opened(path: Path) -> Tensor:
    descriptor = open_locked(path)
    try:
        return mapped(path, descriptor)
    finally:
        os.close(descriptor)


def test_the_bytes_are_those_of_the_file_and_stay_there(file: Path) -> None:
    tensor, other = opened(file), opened(file)
    assert tensor.dtype == torch.uint8
    assert bytes(tensor.numpy()) == CONTENT
    tensor += 1
    assert tensor[:3].tolist() == [1, 2, 3]
    assert other[:3].tolist() == [0, 1, 2]
    assert file.read_bytes() == CONTENT


def test_a_view_knows_its_file_and_a_copy_has_none(file: Path) -> None:
    tensor = opened(file)
    assert file_of(tensor[100:].view(2, -1).T) == file
    assert file_of(tensor.clone()) is None
    assert file_of(torch.zeros(3)) is None


def test_a_file_is_not_removed_while_a_tensor_of_it_lives(file: Path) -> None:
    view = opened(file)[:10]
    assert not remove_unused(file)
    assert file.exists()
    del view
    gc.collect()
    assert remove_unused(file)
    assert not file.exists()


def test_a_file_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 38)
    tensor = opened(path)
    assert len(tensor) == 1 << 38
    assert tensor[-1] == 0


class TestPickled:
    def test_by_name_without_the_bytes(self, file: Path, tmp_path: Path) -> None:
        images = opened(file)[256 : 256 + 2 * 6 * 5 * 3].view(2, 6, 5, 3).permute(0, 3, 1, 2)
        saved = tmp_path / "saved"
        torch.save({"images": images, "again": images, "own": torch.arange(3)}, saved, pickle_module=BY_NAME)
        assert CONTENT[256:400] not in saved.read_bytes()
        read = torch.load(saved, weights_only=False)
        assert torch.equal(read["images"], images)
        assert read["images"].stride() == images.stride()
        assert file_of(read["images"]) == file
        assert read["again"] is read["images"]
        assert read["own"].tolist() == [0, 1, 2]

    def test_as_usual_with_the_bytes(self, file: Path) -> None:
        """For other machines, which have no such file."""
        data = pickle.dumps(opened(file))
        file.unlink()
        assert bytes(pickle.loads(data).numpy()) == CONTENT

    @pytest.mark.parametrize("replaced", [False, True])
    def test_by_name_of_a_file_that_was_removed_is_an_error_in_one_line(
        self, file: Path, tmp_path: Path, replaced: bool
    ) -> None:
        tensor = opened(file)
        torch.save(tensor, tmp_path / "saved", pickle_module=BY_NAME)
        file.rename(tmp_path / "elsewhere")
        if replaced:
            file.write_bytes(CONTENT)
        with pytest.raises(RunError, match=r"content' was removed while it was in use \(.+\); start or resume again$"):
            torch.load(tmp_path / "saved", weights_only=False)
