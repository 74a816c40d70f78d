"""Networks in two pieces: the cut, what is remembered, and when torch takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from amc.compression.scoring.engine.memory import Memory
from amc.compression.scoring.engine.network import MakeRunner, PiecewiseEngine, agree
from amc.compression.scoring.engine.pieces import Piece, in_pieces, place_to_cut
from amc.compression.scoring.engine.program import Kind, UnfitError, record
from amc.compression.scoring.engine.torch_piece import TorchPiece
from amc.structure.trace import Example
from amc.zoo import create_model
from tests.structure.toys import image
from tests.threads import one_thread  # noqa: F401 -- a fixture

IMAGES = 6


def network(first: float = 1.0, last: float = 1.0) -> nn.Module:
    """Two convolutions and a classifier: 4x8x8 between the first two, 2x4x4 behind the second one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3, 2, 1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] *= first
        model[5].weight[0, 0] *= last
    return model


class Counting:
    """Makes pieces in torch, and counts how often each runs: of the first and of the last piece."""

    def __init__(self) -> None:
        self.runs = {True: 0, False: 0}  # by whether the piece takes images

    def __call__(self, piece: Piece, kinds: Mapping[int, Kind], constants: Mapping[int, Tensor]) -> TorchPiece:
        counts, first = self.runs, kinds[piece.inputs[0]].shape[1] == 3

        class Counted(TorchPiece):
            def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
                counts[first] += 1
                return super().__call__(tensors)

        return Counted(piece, kinds, constants)


def engine(make: MakeRunner = TorchPiece, limit: int = 1 << 20) -> PiecewiseEngine:
    return PiecewiseEngine("engine", make, network(), batch(), images=IMAGES, limit=limit)


def batch(seed: int = 0) -> Example:
    return Example.of(torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))


def outputs(on: PiecewiseEngine, model: nn.Module, *batches: Example, held: bool = True) -> Tensor:
    with on.running(model, held=held) as run:
        return torch.cat([run(each) for each in batches])


def direct(model: nn.Module, *batches: Example) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(each.args[0].clone()) for each in batches])


def test_the_cut_is_narrow_and_fits() -> None:
    program = record(network(), batch())
    place = place_to_cut(program, most=4 * 32)  # bytes an image: 2x4x4 numbers
    assert place is not None
    head, tail = in_pieces(program, place)
    assert head is not None
    assert [program.kinds[number].shape for number in tail.inputs] == [(2, 32)]
    assert head.outputs == tail.inputs
    assert place_to_cut(program, most=4 * 5 - 1) is None  # not even the five logits
    assert in_pieces(program, None)[0] is None


def test_a_cut_where_little_must_be_kept_is_better_than_one_a_little_later() -> None:
    """MobileNet-V1-0.5 is cut behind its strided depthwise convolution, whose output is half as large as the next."""
    torch.manual_seed(0)
    program = record(create_model("mobilenet_v1_050").eval(), Example.of(torch.randn(3, 3, 32, 32)))
    _, tail = in_pieces(program, place_to_cut(program, most=1 << 20))
    assert [program.kinds[number].shape for number in tail.inputs] == [(2, 32, 16, 16)]


def test_a_tensor_that_is_overwritten_later_is_no_cut() -> None:
    program = record(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 3)), batch())
    assert [in_pieces(program, place)[0] is None for place in (1, 2)] == [True, False]


def test_a_view_of_what_is_overwritten_later_is_no_cut() -> None:
    program = record(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(128, 3)), batch())
    assert [in_pieces(program, place)[0] is None for place in (1, 2, 3)] == [True, True, False]


def test_a_residual_stream_is_cut_between_its_blocks_only() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x).sigmoid()
            return x + self.b(x).sigmoid()

    program = record(Blocks(), batch())
    assert len(program.ops) == 6
    assert [place for place in range(7) if in_pieces(program, place)[0] is not None] == [3]


def test_networks_that_begin_alike_share_it_and_give_what_they_give_alone() -> None:
    counting, batches = Counting(), (batch(1), batch(2))
    on = engine(counting)
    counting.runs = {True: 0, False: 0}
    for model in (network(), network(last=2.0), network(last=3.0)):
        assert torch.equal(outputs(on, model, *batches), direct(model, *batches))
    checks = 3  # of each network against torch
    assert counting.runs == {True: checks + 2, False: checks + 3 * 2}
    assert on.warnings == []


@pytest.mark.parametrize("other", ["weight", "images", "not held"])
def test_nothing_is_shared_where_anything_differs(other: str) -> None:
    counting = Counting()
    on = engine(counting)
    outputs(on, network(), batch(1))
    counting.runs = {True: 0, False: 0}
    model = network(first=1 + 1e-6) if other == "weight" else network()
    images = batch(2) if other == "images" else batch(1)  # the same values in other memory are other images, too
    found = outputs(on, model, images, held=other != "not held")
    assert torch.equal(found, direct(model, images))
    assert counting.runs[True] == 2  # the check, and the batch


def test_images_that_are_not_held_are_not_remembered() -> None:
    on = engine()
    outputs(on, network(), batch(1), held=False)
    assert on.memory.held == 0


def test_memory_drops_what_was_used_least_recently() -> None:
    memory, four = Memory(limit=32), torch.zeros(4)  # 16 bytes
    for key in "ab":
        memory.put(key, [four.clone()])
    assert memory.get("a") is not None
    memory.put("c", [four.clone()])
    assert [memory.get(key) is not None for key in "abc"] == [True, False, True]
    assert (memory.held, memory.hits, memory.misses) == (32, 3, 1)
    memory.put("a", [torch.zeros(8)])  # fills it alone
    assert [memory.get(key) is not None for key in "ac"] == [True, False]
    memory.put("d", [torch.zeros(9)])  # larger than the limit
    assert memory.held == 0


def test_what_is_forgotten_is_computed_again() -> None:
    counting = Counting()
    on = engine(counting)
    outputs(on, network(), batch(1))
    on.forget()
    counting.runs = {True: 0, False: 0}
    assert on.memory.held == 0
    assert torch.equal(outputs(on, network(), batch(1)), direct(network(), batch(1)))
    assert counting.runs[True] == 2  # the check, and the batch


def test_a_view_counts_as_the_memory_that_it_keeps() -> None:
    memory = Memory(limit=1 << 10)
    memory.put("a", [torch.zeros(100)[:2]])
    assert memory.held == 400


def test_a_small_memory_changes_no_output() -> None:
    batches = tuple(batch(seed) for seed in range(4))
    one = 4 * IMAGES * 32  # bytes of a batch behind the second convolution
    on = engine(limit=8 * one)
    on.memory.limit = 2 * one
    for _ in range(2):
        assert torch.equal(outputs(on, network(), *batches), direct(network(), *batches))
        assert on.memory.held <= 2 * one


def test_an_engine_that_disagrees_is_replaced_by_torch_for_this_network_and_it_is_said() -> None:
    class Wrong(TorchPiece):
        """Adds 1% to what depends on a weight that is twice as large as in the dense network."""

        def __init__(self, piece: Piece, kinds: Mapping[int, Kind], constants: Mapping[int, Tensor]) -> None:
            super().__init__(piece, kinds, constants)
            self.factor = 1.01 if any(torch.equal(each, WRONG[5].weight) for each in constants.values()) else 1.0

        def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(self.factor * tensor for tensor in super().__call__(tensors))

    WRONG = network(last=2.0)
    on = engine(Wrong)
    for _ in range(2):
        assert torch.equal(outputs(on, WRONG, batch(1)), direct(WRONG, batch(1)))
    assert on.warnings == ["some networks are scored with torch instead of engine: its outputs differ from torch's"]
    assert torch.equal(outputs(on, network(), batch(1)), direct(network(), batch(1)))


def test_a_network_that_cannot_be_recorded_is_called() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    on = engine()
    assert torch.equal(outputs(on, Branching(), batch(1)), direct(Branching(), batch(1)))
    assert len(on.warnings) == 1
    assert "depends on chance or on the values of a tensor" in on.warnings[0]


def test_a_dense_network_that_cannot_be_recorded_has_no_such_engine() -> None:
    with pytest.raises(UnfitError, match="chance"):
        PiecewiseEngine("engine", TorchPiece, nn.Sequential(nn.RReLU(0.1, 0.2), Noise()), batch(), images=IMAGES)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_weights_that_change_after_a_run_are_seen() -> None:
    on, model = engine(), network()
    before = outputs(on, model, batch(1))
    with torch.no_grad():
        model[5].bias += 1
    assert torch.equal(outputs(on, model, batch(1)), direct(model, batch(1)))
    assert not torch.equal(before, direct(model, batch(1)))
    model[5] = nn.Linear(32, 7)  # other tensors: recorded anew
    assert outputs(on, model, batch(1)).shape == (IMAGES, 7)


def test_agreement_is_up_to_rounding() -> None:
    x = image(batch=2)
    assert agree({"a": x}, {"a": x + 1e-5 * x.abs().max()})
    assert not agree({"a": x}, {"a": x + 2e-4 * x.abs().max()})
    assert not agree({"a": x}, {"b": x})
    assert not agree([x, 1], [x, 2])
    assert not agree(x, x[:1])
    assert not agree(x, x.double())
    holes = x.clone()
    holes[0] = torch.nan
    assert agree(holes, holes.clone())
    assert not agree(x, holes)
    assert agree(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not agree(torch.tensor([1, 2]), torch.tensor([1, 3]))
