"""Batches as loaders give them, for networks as they are called."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import amc
from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.evaluator import Evaluator
from amc.errors import DataError
from amc.pruning import calibrate
from amc.structure import inspect
from amc.structure.batches import Reader, limited, mapped, picked, size_of
from amc.structure.trace import Example
from tests.tiny import EXAMPLE, compress, images, labelled, tiny

X = torch.arange(24.0).reshape(3, 2, 2, 2)
META = torch.arange(15.0).reshape(3, 5)
IDS = torch.arange(12).reshape(3, 4)
MASK = torch.ones(3, 4, dtype=torch.bool)
Y = torch.tensor([0, 1, 1])
Pair = namedtuple("Pair", "image label")

ONE = X[:1]
TWO = (X[:1], META[:1])
NAMED = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
NESTED = (X[:1], {"ids": IDS[:1], "more": [META[:1]]})


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize(
    ("example", "batch", "args", "kwargs"),
    [
        (ONE, (X, Y), (X,), {}),
        (ONE, [X, Y], (X,), {}),
        (ONE, Pair(X, Y), (X,), {}),
        (ONE, ((X,), Y), (X,), {}),
        (ONE, {"image": X, "label": Y}, (X,), {}),
        (ONE, {"pixel_values": X, "labels": Y}, (X,), {}),
        (ONE, {"image": X, "target": Y, "path": ["a", "b", "c"]}, (X,), {}),
        (ONE, {"image": X, "index": Y, "label": Y}, (X,), {}),
        (ONE, ({"image": X}, Y), (X,), {}),
        (ONE, (X.numpy(), Y.numpy()), (X,), {}),
        (ONE, (X.double(), [0, 1, 1]), (X,), {}),
        (ONE, (X.half(), Y), (X,), {}),
        (ONE.half(), (X, Y), (X.half(),), {}),
        (TWO, ((X, META), Y), TWO_ALL := (X, META), {}),
        (TWO, [[X, META], Y], TWO_ALL, {}),
        (TWO, (X, META, Y), TWO_ALL, {}),
        (NAMED, ({"input_ids": IDS, "attention_mask": MASK}, Y), (), {"input_ids": IDS, "attention_mask": MASK}),
        (NAMED, {"labels": Y, "attention_mask": MASK, "input_ids": IDS, "extra": META}, (),
         {"input_ids": IDS, "attention_mask": MASK}),
        (NAMED, UserDict({"input_ids": IDS, "attention_mask": MASK, "label": Y}), (),
         {"input_ids": IDS, "attention_mask": MASK}),
        ({"x": ONE}, (X, Y), (), {"x": X}),
        ({"x": ONE, "labels": Y[:1]}, {"x": X, "labels": Y}, (), {"x": X, "labels": Y}),
        (NESTED, ((X, {"ids": IDS, "more": [META]}), Y), (X, {"ids": IDS, "more": [META]}), {}),
        (NESTED, (X, {"ids": IDS, "more": (META,)}, Y), (X, {"ids": IDS, "more": [META]}), {}),
        ((NAMED,), ({"input_ids": IDS, "attention_mask": MASK}, Y), ({"input_ids": IDS, "attention_mask": MASK},), {}),
        ([ONE, META[:1]], ([X, META], Y), ([X, META],), {}),
        (Example((ONE,), {"meta": META[:1]}), (Example((X,), {"meta": META}), Y), None, None),
    ],
)  # fmt: skip
def test_inputs_and_labels_are_told_apart(example: Any, batch: Any, args: Any, kwargs: Any) -> None:
    reader = Reader.of(example)
    if args is None:  # an Example in place of the inputs has no place for labels
        assert reader.inputs(batch[0]) == batch[0]
        return
    inputs, labels = reader.labelled(batch)
    assert same(inputs.args, args)
    assert same(dict(inputs.kwargs), kwargs)
    assert same(labels.long(), Y)
    again = reader.inputs(batch)
    assert same(again.args, args)
    assert same(dict(again.kwargs), kwargs)
    assert same(reader.inputs(again).args, args)  # what was taken apart stays so


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        ((X, Y), (X,), {}), (((X, META), Y), (X, META), {}), ({"a": IDS, "labels": Y}, (), {"a": IDS}),
        (({"a": IDS}, Y), (), {"a": IDS}), ((UserDict({"a": IDS}), Y), (), {"a": IDS}),
        ((X.to(torch.uint8), Y), (X.to(torch.uint8),), {}), ((X.numpy(), Y), (X,), {}),
    ],
)  # fmt: skip
def test_without_an_example_the_first_part_is_the_input(batch: Any, args: Any, kwargs: Any) -> None:
    inputs, labels = Reader().labelled(batch)
    assert same(inputs.args, args)
    assert same(dict(inputs.kwargs), kwargs)
    assert same(labels, Y)


@pytest.mark.parametrize("batch", [X, [X], (X,), {"image": X}, (X, "no label", 3), {"x": X, "path": ["p"] * 3}])
def test_calibration_needs_no_labels(batch: Any) -> None:
    assert same(Reader.of(ONE).inputs(batch).args, (X,))


@pytest.mark.parametrize(
    ("example", "batch", "message"),
    [
        (ONE, (X.to(torch.uint8), Y), r"images are uint8, 0 to 255, and the network takes float32; .*images.float"),
        (ONE, (X.long(), Y), "a batch has int64 where the example input has float32"),
        (NAMED, ({"input_ids": IDS.float(), "attention_mask": MASK}, Y), "a batch has float32 where .* has int64"),
        (ONE.to(torch.uint8), (X, Y), "a batch has float32 where the example input has uint8"),
        (ONE, (X[0], Y), r"a tensor \[2, 2, 2\] where the example input has \[1, 2, 2, 2\]; give batches .*DataLoader"),
        (ONE, Y, r"a tensor \[3\] where"),
        (ONE, ((X, META), Y), r"is a tuple of \(tuple, Tensor \[3\]\), and by its example input the network takes"),
        (TWO, (X, Y), "a tensor .* where the example"),
        (TWO, X, r"is a Tensor \[3, 2, 2, 2\], and by its example input the network takes a tuple of"),
        (TWO, {"a": X, "b": META}, "has a, b, and an example input without names does not show which of them"),
        (ONE, {"a": X, "b": META}, "has a, b, and an example input .*give example_input as a dict"),
        (NAMED, {"input_ids": IDS}, "has input_ids, and by its example input the network also takes attention_mask"),
        (NAMED, (IDS, MASK, Y), "by its example input the network takes a dict of input_ids, attention_mask"),
        (ONE, "text", "a calibration batch is a str; give tensors"),
        (ONE, {"x": 1}, "a calibration batch is a dict; give tensors"),
        (ONE, None, "a calibration batch is a NoneType; give tensors"),
        (ONE, (), "a calibration batch is empty"),
        (ONE, (np.array(["a"]), Y), "torch cannot take; give tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(example: Any, batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        Reader.of(example).inputs(batch)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"is a Tensor \[3, 2, 2, 2\] without labels; the loader must give \(images, labels\) tensors"),
        ({"image": X}, "is a dict of image without labels; .* a dict with the key labels"),
        ((X, META, Y), "without labels"),
        ((X, Y[:2]), "a batch has 3 images and 2 labels; give one label per image"),
        ((X, torch.tensor(1)), "a batch has 3 images and 1 labels"),
        ((X, ["cat", "dog", "cat"]), "the labels of a batch are a list of"),
        ((X, {"a": Y}), "the labels of a batch are a dict of a"),
    ],
)
def test_invalid_labels_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Reader.of(ONE).labelled(batch)


def test_a_batch_in_place_of_batches_is_the_only_one() -> None:
    for source in (X, X.numpy(), {"image": X}, [X], [(X, Y)], (X, Y), (X.numpy(), Y.numpy())):
        assert [same(Reader.of(ONE).inputs(batch).args, (X,)) for batch in Reader.of(ONE).batches(source)] == [True]
    assert len(list(Reader.of(ONE).batches((X, X)))) == 2
    stacked = torch.stack([X, X])
    assert len(list(Reader.of(ONE).batches(stacked))) == 2


def test_the_first_images_are_taken_through_the_whole_structure() -> None:
    batch = (X, {"ids": IDS, "more": [META]}, Y)
    kept = limited([batch, batch, batch], 5, Reader.of(NESTED))
    assert [size_of(inputs) for inputs in kept] == [3, 2]
    assert same(kept[1].args, (X[:2], {"ids": IDS[:2], "more": [META[:2]]}))
    again = limited(kept, 4, Reader.of(NESTED))
    assert [size_of(inputs) for inputs in again] == [3, 1]
    table = torch.zeros(7, 2)  # shared by all images
    chosen = picked(Example((X, table, 2.5), {}), torch.tensor([True, False, True]))
    assert same(chosen.args, (X[[0, 2]], table, 2.5))
    assert same(mapped(lambda tensor: tensor + 1, Example((X, "a"), {"m": META})).kwargs["m"], META + 1)
    with pytest.raises(DataError, match="no tensor with a batch dimension"):
        size_of(Example((3,), {}))


class TwoInputs(nn.Module):
    """An image and its metadata, by position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.mix = nn.Linear(4 + 3, 4)

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat([self.body(image), meta], 1))
        return out


class ByKeyword(TwoInputs):
    """The same, by keyword."""

    def forward(self, *, pixel_values: Tensor, meta: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(pixel_values, meta)}


def pieces(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, meta = images(count, seed), torch.randn(count, 3, generator=generator)
    return x, meta, torch.randint(4, (count,), generator=generator)


WAYS: list[tuple[type[nn.Module], Any, Callable[[Tensor, Tensor, Tensor], Any]]] = [
    (TwoInputs, (EXAMPLE, torch.zeros(1, 3)), lambda x, meta, y: ((x, meta), y)),
    (TwoInputs, (EXAMPLE, torch.zeros(1, 3)), lambda x, meta, y: [x, meta, y]),
    (TwoInputs, (EXAMPLE, torch.zeros(1, 3)), lambda x, meta, y: (x.numpy(), meta.double().numpy(), y.numpy())),
    (ByKeyword, {"pixel_values": EXAMPLE, "meta": torch.zeros(1, 3)},
     lambda x, meta, y: {"pixel_values": x, "meta": meta, "labels": y}),
    (ByKeyword, {"pixel_values": EXAMPLE, "meta": torch.zeros(1, 3)},
     lambda x, meta, y: ({"pixel_values": x, "meta": meta}, y)),
]  # fmt: skip


def searched(kind: type[nn.Module], example: Any, batch: Callable[[Tensor, Tensor, Tensor], Any]) -> amc.Result:
    torch.manual_seed(0)
    return amc.compress(
        kind(), example, calibration=[batch(*pieces(32, 1)), batch(*pieces(32, 2))],
        evaluate=[batch(*pieces(40, 3)), batch(*pieces(24, 4))], test=[batch(*pieces(40, 5))],
        episodes=3, round_to=1, keep_sets=1, bn_images=48,
    )  # fmt: skip


@pytest.fixture(scope="module")
def grouped() -> amc.Result:
    return searched(*WAYS[0])


@pytest.mark.parametrize(("kind", "example", "batch"), WAYS, ids=["grouped", "flat", "numpy", "dict", "dict and label"])
def test_a_whole_search_takes_the_batches_that_the_network_takes(
    kind: type[nn.Module], example: Any, batch: Callable[[Tensor, Tensor, Tensor], Any], grouped: amc.Result
) -> None:
    """The same data in every form: the same search, to the last bit."""
    result = searched(kind, example, batch)
    x, meta, y = pieces(40, 5)
    with torch.no_grad():
        right = TwoInputs.forward(result.model, x, meta).argmax(1) == y  # type: ignore[arg-type]
    slim = result.summary["slim"]
    assert slim.get("test_recovered", slim["test"]) == int(right.sum()) / 40
    assert result.policy == grouped.policy
    assert result.summary["slim"] == grouped.summary["slim"]
    for name, value in grouped.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value)


def test_batch_norms_and_grams_are_those_of_plain_batches() -> None:
    plain = [images(16, 1), images(8, 2)]
    forms: list[list[Any]] = [
        [(x, torch.zeros(len(x))) for x in plain], [[x] for x in plain], [((x,), None) for x in plain],
        [Example((x,), {}) for x in plain], [{"x": x, "labels": torch.zeros(len(x))} for x in plain],
    ]  # fmt: skip
    expected = tiny()
    reestimate_batchnorm_(expected, plain)
    structure = inspect(tiny().eval(), EXAMPLE)
    grams = calibrate(tiny(), structure, plain).grams
    for form in forms:
        model = tiny()
        reestimate_batchnorm_(model, form)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
        )
        found = calibrate(tiny(), structure, form).grams
        assert all(torch.equal(found[name].matrix, grams[name].matrix) for name in grams)


class Items(Dataset[tuple[Tensor, int]]):
    """One image at a time, as a data set gives them."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= 8:
            raise IndexError
        return images(1, index)[0], index % 4

    def __len__(self) -> int:
        return 8


def test_a_data_set_in_place_of_a_loader_is_reported() -> None:
    model = tiny()
    with pytest.raises(DataError, match=r"a tensor \[1, 6, 6\] where .* DataLoader\(dataset, batch_size=64\)"):
        compress(model, calibration=Items())
    with pytest.raises(amc.AmcError, match=r"evaluate is a Items; give .* such as DataLoader\(dataset"):
        compress(model, evaluate=Items())
    assert compress(model, calibration=DataLoader(Items(), 4), evaluate=DataLoader(Items(), 4)).summary["episodes"] == 6


def test_uint8_images_are_refused_before_the_search() -> None:
    model = tiny()
    grey = torch.randint(0, 255, (16, 1, 6, 6), dtype=torch.uint8)
    with pytest.raises(DataError, match="images are uint8"):
        compress(model, calibration=[grey])
    with pytest.raises(DataError, match="images are uint8"):
        compress(model, evaluate=[(grey, torch.zeros(16))])


def test_one_tensor_of_images_calibrates() -> None:
    model = tiny()
    evaluate = labelled(model, 96, 5)
    whole = compress(model, calibration=images(32, 1), evaluate=evaluate)
    assert whole.policy == compress(model, calibration=[images(32, 1)], evaluate=evaluate).policy


def test_evaluation_reads_a_dict_loader() -> None:
    x, meta, y = pieces(30, 7)
    model = ByKeyword().eval()
    with torch.no_grad():
        right = (model(pixel_values=x, meta=meta)["logits"].argmax(1) == y).tolist()
    example = {"pixel_values": EXAMPLE, "meta": torch.zeros(1, 3)}
    batches = [
        {"pixel_values": x[:20], "meta": meta[:20], "labels": y[:20]},
        {"pixel_values": x[20:], "meta": meta[20:], "labels": y[20:]},
    ]
    evaluator = Evaluator(batches, example_input=example)
    assert evaluator.correct(model).tolist() == right
    halves = evaluator.divided(0.5)
    assert sorted(len(half) for half in halves) == [15, 15]
    assert sum(int(half.correct(model).sum()) for half in halves) == sum(right)
