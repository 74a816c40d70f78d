"""What a GPU needs, without one: the meta device stands for it, and a network that runs out of memory for its size."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.compression.scoring.engine.base import TorchEngine
from amc.compression.scoring.engine.gpu import InParts, Resident
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.workers.processes import gpus_of
from amc.structure.batches import layout_for
from amc.structure.trace import Example

META = torch.device("meta")
BATCH = Example.of(torch.zeros(4, 3, 8, 8))


def bytes_of(count: int) -> Any:
    return lambda device: count


def test_inputs_are_moved_once() -> None:
    resident = Resident(bytes_of(1 << 20))
    first, again = resident.on(BATCH, META), resident.on(BATCH, META)
    assert first.args[0].device == META
    assert again.args[0] is first.args[0]
    assert resident.on(first, META).args[0] is first.args[0], "what is there stays"


def test_inputs_without_room_stay_where_they_are() -> None:
    one = BATCH.args[0].nbytes
    resident = Resident(bytes_of(3 * one))  # half of it holds one batch
    other = Example.of(torch.ones(4, 3, 8, 8))
    assert resident.on(BATCH, META).args[0].device == META
    assert resident.on(other, META).args[0] is other.args[0]
    assert resident.on(BATCH, META).args[0].device == META
    resident.forget()
    assert resident.on(other, META).args[0].device == META


def test_another_process_gets_none_of_them() -> None:
    resident = Resident(bytes_of_a_megabyte)
    resident.on(BATCH, META)
    small = pickle.loads(pickle.dumps(resident))
    assert not small._known
    assert small.on(BATCH, META).args[0].device == META


def bytes_of_a_megabyte(device: torch.device) -> int:
    return 1 << 20


class Small(nn.Module):
    """Runs out of memory, as a GPU does, for more than `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, list[int]()
        self.linear = nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.seen.append(len(x))
        out: Tensor = self.linear(x.flatten(1))
        return out


@pytest.mark.parametrize(("most", "parts"), [(8, [7]), (4, [4, 3]), (3, [2, 2, 2, 1]), (1, [1] * 7)])
def test_a_batch_that_does_not_fit_is_scored_in_parts(most: int, parts: list[int]) -> None:
    torch.manual_seed(0)
    net, images, labels = Small(most).eval(), torch.randn(7, 3, 8, 8), torch.randint(5, (7,))
    score = Evaluator([(images, labels)])
    score.fit_layout_(net)
    net.seen.clear()
    found = score(net)
    assert net.seen[-len(parts) :] == parts
    assert found == int((net.linear(images.flatten(1)).argmax(1) == labels).sum()) / 7
    net.seen.clear()
    score(net)
    assert net.seen == parts, "the next batch is not tried whole again"
    assert len(score.engine.warnings) == {7: 0, 4: 1, 2: 2, 1: 3}[parts[0]]


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with TorchEngine().running(Small(0).eval()) as run, pytest.raises(torch.OutOfMemoryError):
        run(BATCH)


@dataclass
class Opaque:
    logits: Tensor


def in_parts(answer: Any) -> Any:
    """The output of a network that takes two images at most."""

    def call(inputs: Example) -> Any:
        if len(inputs.args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(inputs.args[0])

    return InParts().run(call, BATCH)


def test_outputs_of_parts_are_joined() -> None:
    found = in_parts(lambda x: {"logits": (x, [x + 1]), "loss": torch.tensor(3.0), "cache": None})
    torch.testing.assert_close(found["logits"][0], BATCH.args[0])
    torch.testing.assert_close(found["logits"][1][0], BATCH.args[0] + 1)
    assert (found["loss"], found["cache"]) == (3.0, None)


def test_outputs_that_cannot_be_joined_are_no_score() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="Opaque, cannot be joined"):
        in_parts(Opaque)


@pytest.mark.parametrize(
    ("device", "workers", "indices"),
    [("cpu", 2, [None, None]), ("cuda:0", 5, [0, 1, 2, 0, 1]), ("cuda:2", 3, [2, 2, 2])],
)
def test_workers_are_dealt_to_the_gpus(
    device: str, workers: int, indices: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpus_of(torch.device(device), workers) == indices


class OnGpu(nn.Sequential):
    """Says that it is on a GPU."""

    def parameters(self, recurse: bool = True) -> Any:
        return iter([type("Parameter", (), {"device": torch.device("cuda:0")})()])


@pytest.mark.parametrize(("groups", "layout"), [(1, torch.channels_last), (3, torch.contiguous_format)])
def test_grouped_convolutions_are_contiguous_on_a_gpu(groups: int, layout: torch.memory_format) -> None:
    convolution = nn.Conv2d(3, 3, 3, groups=groups)
    assert layout_for(OnGpu(convolution), lambda inputs: inputs, BATCH) == layout
    assert layout_for(nn.Sequential(convolution), lambda inputs: inputs, BATCH) == torch.channels_last


def test_a_fingerprint_does_not_depend_on_the_batches_of_a_device() -> None:
    class Images:
        def __len__(self) -> int:
            return 600

        def batches(self, batch_size: int) -> Any:
            images = torch.arange(600.0).reshape(600, 1, 1, 1)
            return zip(images.split(batch_size), torch.zeros(600, dtype=torch.long).split(batch_size), strict=True)

    small, large = (Evaluator(Images(), batch_size=size).fingerprint() for size in (64, 512))
    assert small == large
    own = [Evaluator(list(Images().batches(size))).fingerprint() for size in (64, 512)]
    assert own[0] == small
    assert own[1] != small, "the user's own batches are as they came"
