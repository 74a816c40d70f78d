"""A part of a network: what the whole calls it with, the whole with another in its place, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import amc
from amc.errors import DataError, ModelError
from amc.structure import inspect, mask_model, slice_model
from amc.structure.certificate import random_mask
from amc.structure.part import Part, rows_of
from amc.structure.trace import Example, ExampleError
from tests.detector import Detector, scenes

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Body(nn.Module):
    """[N, 3, 8, 8] -> [N, 4, 8, 8] with 6 channels inside, which can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


class Around(nn.Module):
    """Calls its body as the function says; `how` gets the network and the images."""

    def __init__(self, how: Callable[[Any, Tensor], Any], body: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.how = body or Body(), how
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def looped(net: Any, x: Tensor) -> Any:
    """A loop of a length that depends on the values, which torch.export does not follow."""
    features = net.body(x)
    return [net.head(each.mean((1, 2))) for each in features if float(each.mean()) > -100]


class Inputs(nn.Module):
    """Takes a tensor, a dict and a keyword, and returns nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor, more: dict[str, Tensor], *, scale: Tensor) -> dict[str, Any]:
        y = (self.one(x) + self.two(more["deep"]) * scale).relu()
        return {"maps": [self.out(y)], "size": (self.out(y * 2), 3)}


def nested(net: Any, x: Tensor) -> Any:
    found = net.body(x, {"deep": x.flip(0)}, scale=torch.tensor(0.5))
    return [each + 1 for each in found["maps"]] if float(found["size"][0].sum()) > -1e9 else None


def under_inference_mode(net: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return net.body(x) * (1 if float(x.sum()) > -1e9 else 2)


class Named(nn.Module):
    """The same body under two names, called by both: twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.left = Body()
        self.right = self.left

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) - self.right(x.flip(0)) if float(x.sum()) > -1e9 else x


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def run(network: nn.Module, *args: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors(network.eval()(*args))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "a loop over values": (lambda: Around(looped), "body", IMAGE),
    "nested inputs and outputs": (lambda: Around(nested, Inputs()), "body", IMAGE),
    "under inference mode": (lambda: Around(under_inference_mode), "body", IMAGE),
    "two names": (Named, "left", IMAGE),
    "a list of images": (Detector, "backbone", [*scenes(2, 0)[0]]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_with_its_part_sliced_equals_the_whole_with_its_part_masked(name: str) -> None:
    make, path, example = NETWORKS[name]
    network = make().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    part = Part.of(network, (example,), path)
    structure = inspect(part.module, part.example)
    assert structure.groups
    part.check(structure)
    for seed in range(3):
        mask = random_mask(structure, np.random.default_rng(seed))
        sliced = part.within(slice_model(part.module, structure, mask))
        masked = part.within(mask_model(part.module, structure, mask))
        ours, theirs = run(sliced, example), run(masked, example)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert type(sliced) is type(network)
        assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_part_is_found_under_each_of_its_names() -> None:
    part = Part.of(Named(), IMAGE, "right")
    assert (part.paths, part.calls) == (("left", "right"), 2)
    slim = part.within(nn.Identity())
    assert isinstance(slim.left, nn.Identity)
    assert slim.left is slim.right


def test_inputs_are_recorded_from_the_calls_of_the_whole() -> None:
    part = Part.of(Around(nested, Inputs()), IMAGE, "body")
    ((call,), (other,)) = part.inputs([Example.of(IMAGE), Example.of(IMAGE[:1])])
    assert torch.equal(call.args[0], IMAGE)
    assert torch.equal(call.args[1]["deep"], IMAGE.flip(0))
    assert float(call.kwargs["scale"]) == 0.5
    assert other.args[0].shape[0] == 1
    assert not torch.is_inference(Part.of(Around(under_inference_mode), IMAGE, "body").example.args[0])


def test_the_arguments_are_those_before_the_users_own_hooks_which_run_in_the_part() -> None:
    network = Around(looped)
    network.body.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    part = Part.of(network, IMAGE, "body")
    assert torch.equal(part.example.args[0], IMAGE)
    wanted = [each.clone() for each in run(network, IMAGE)]
    for one, other in zip(run(part.within(part.module), IMAGE), wanted, strict=True):
        assert torch.equal(one, other)


def test_the_structure_of_a_part_is_that_of_the_module_alone() -> None:
    found = amc.inspect(Around(looped), IMAGE, part="body")
    assert found.macs == 2 * 8 * 8 * 9 * (3 * 6 + 6 * 4)
    assert [(group.name, group.size) for group in found.groups] == [("first", 6)]
    assert [(item.name, str(item.lock)) for item in found.locked] == [("second", "network output")]
    assert amc.inspect(Around(looped), IMAGE, part="body", lock=("first",)).groups == ()
    with pytest.raises(ModelError, match=r"torch\.export cannot trace Around"):
        amc.inspect(Around(looped), IMAGE)


def test_a_policy_of_a_part_is_applied_within_the_whole(tmp_path: Any) -> None:
    network = Around(looped).eval()
    policy = amc.Policy.of({"first": [0, 2, 5]}, sizes={"first": 6}, part="body")
    policy.save(tmp_path / "policy.json")
    again = amc.Policy.load(tmp_path / "policy.json")
    assert again == policy
    assert amc.Policy.from_json({"method": "channel", "groups": []}).part is None
    slim: Any = amc.apply_policy(network, IMAGE, again)
    assert type(slim) is Around
    assert torch.equal(slim.body.first.weight, network.body.first.weight[[0, 2, 5]])
    masks = amc.Policy((amc.pruning.LayerPolicy("first", 162, 40),), "fine-grained", "body")
    masked: Any = amc.apply_policy(network, IMAGE, masks)
    assert int((masked.body.first.weight != 0).sum()) == 40
    assert torch.equal(masked.head.weight, network.head.weight)


def test_a_part_that_gets_other_numbers_of_rows_says_so() -> None:
    def per_place(net: Any, x: Tensor) -> Any:
        return net.head(x.flatten(2).transpose(1, 2).reshape(-1, 3)[:, [0, 1, 2, 0]])

    part = Part.of(Around(per_place), IMAGE, "head")
    assert rows_of(part.example) == 2 * 64
    assert part.notes() == [
        "part 'head' gets 128 rows for 2 of the example input: their number may depend on the data, and MACs are "
        "counted for these rows"
    ]
    assert Part.of(Around(looped), IMAGE, "body").notes() == []
    assert "calls part 'left' 2 times" in Part.of(Named(), IMAGE, "left").notes()[0]


def test_a_call_with_nothing_is_left_out() -> None:
    def bright(net: Any, x: Tensor) -> Any:
        return net.body(x[x.mean((1, 2, 3)) > 0])

    part = Part.of(Around(bright), IMAGE, "body")
    dark, mixed = -torch.ones(2, 3, 8, 8), torch.cat([-torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    assert [[len(call.args[0]) for call in calls] for calls in part.inputs([*map(Example.of, (dark, mixed))])] == [
        [],
        [1],
    ]


class Container(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Body()])
        self.unused = Body()

    def forward(self, x: Tensor) -> Any:
        return self.blocks[0](x)


def tied() -> nn.Module:
    network = Around(looped)
    network.twin = nn.Conv2d(3, 6, 3)
    network.twin.weight = network.body.first.weight
    return network


def twice(net: Any, x: Tensor) -> Any:
    return net.body(x).mean(), net.body(x[:, :, ::2, ::2]).mean()


def outside(net: Any, x: Tensor) -> Any:
    return net.body(x).mean() + net.body.first(x).mean()


def reads_weight(net: Any, x: Tensor) -> Any:
    return net.body(x) * net.body.first.weight.mean()


def reads_size(net: Any, x: Tensor) -> Any:
    return net.body(x) + torch.zeros(6)[: net.body.first.out_channels].reshape(6)[0]


def empty(net: Any, x: Tensor) -> Any:
    return net.body(x[:0])


def without(net: Any, x: Tensor) -> Any:
    net.body.forward = lambda *_: x
    return net.body(3)


BAD: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "empty": (lambda: Around(looped), "", "part is empty: name a submodule, such as backbone"),
    "unknown": (lambda: Around(looped), "bdy", "Around has no part 'bdy'; the nearest are body"),
    "of a wrapper": (lambda: nn.DataParallel(Around(looped)), "module.body", "has no part 'module.body'; the nearest"),
    "a container": (Container, "blocks", "is a ModuleList, which holds modules .* name one .*: blocks.0"),
    "never called": (Container, "unused", "never calls its part 'unused' on the example input"),
    "never called, inside": (Container, "unused.first", "never calls its part 'unused.first'"),
    "several shapes": (lambda: Around(twice), "body", r"2 times .* \[\[2, 3, 8, 8\]\] and \[\[2, 3, 4, 4\]\]"),
    "called inside": (lambda: Around(outside), "body", "calls 'body.first' outside of its part 'body'"),
    "shared weights": (tied, "body", "part 'body' of Around shares 'twin.weight' with the rest"),
    "nothing": (lambda: Around(empty), "body", r"gets the empty tensors \[0, 3, 8, 8\]"),
    "no tensor": (lambda: Around(without), "body", "calls part 'body' without a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_part_is_refused_in_one_line(name: str) -> None:
    make, part, message = BAD[name]
    with pytest.raises(ModelError, match=message) as refusal:
        Part.of(make(), IMAGE, part)
    assert "\n" not in str(refusal.value)


def test_the_example_must_fit_the_whole_network() -> None:
    with pytest.raises(ExampleError, match="Around does not take the example input"):
        Part.of(Around(looped), torch.zeros(1, 5, 8, 8), "body")
    with pytest.raises(DataError, match="Around fails on a calibration batch"):
        list(Part.of(Around(looped), IMAGE, "body").inputs([Example.of(torch.zeros(1, 5, 8, 8))]))


@pytest.mark.parametrize("how", [reads_weight, reads_size])
def test_a_network_that_reads_the_inside_of_its_part_is_refused(how: Callable[..., Any]) -> None:
    """The part itself is sound alone; only the whole shows it."""
    part = Part.of(Around(how), IMAGE, "body")
    structure = inspect(part.module, part.example)
    assert amc.certify(part.module, structure, part.example)[1].passed
    with pytest.raises(ModelError, match=r"once .*part 'body'.*something outside reads its weights or sizes"):
        part.check(structure)


def test_random_numbers_of_the_whole_are_the_same_with_every_part() -> None:
    def noisy(net: Any, x: Tensor) -> Any:
        return net.body(x) + torch.rand(1)

    part = Part.of(Around(noisy), IMAGE, "body")
    state = torch.get_rng_state()
    part.check(inspect(part.module, part.example))
    assert torch.equal(state, torch.get_rng_state())


def test_nan_in_the_outputs_is_no_difference() -> None:
    def undefined(net: Any, x: Tensor) -> Any:
        return net.body(x).mean() * math.nan

    part = Part.of(Around(undefined), IMAGE, "body")
    part.check(inspect(part.module, part.example))
