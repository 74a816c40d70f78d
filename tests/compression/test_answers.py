"""What networks answer on the test split: counted once, class by class, with pictures of what is lost."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from amc.compression.answers import SHOWN, SIDE, FinalScore
from amc.compression.scoring.evaluator import Evaluator, PairedEvaluator, final_score
from amc.zoo.images import ImageSet

CLASSES = 4


class Told(nn.Module):
    """Answers what the first pixel of an image says, but for `wrong` pixels: those give the next class."""

    def __init__(self, *wrong: int) -> None:
        super().__init__()
        self.wrong, self.calls = torch.tensor(wrong, dtype=torch.int64), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        number = x[:, 0, 0, 0].round().long()
        answers = (number + torch.isin(number, self.wrong)) % CLASSES
        return nn.functional.one_hot(answers, CLASSES).float()


def images(count: int = 40, *, channels: int = 3, side: int = 8, **settings: Any) -> ImageSet:
    """Image i is of class i % 4, and its first pixel is its number."""
    pixels = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0, 0] = torch.arange(count)
    return ImageSet(pixels, torch.arange(count) % CLASSES, **settings)


def judged(source: Any, **networks: nn.Module) -> FinalScore:
    score = FinalScore(Evaluator(source, batch_size=7))
    for which, network in networks.items():
        value, warnings = score(network, which)
        assert (value, warnings) == final_score(Evaluator(source), network, which)
    return score


def test_counts_are_those_of_each_class_and_every_image_is_scored_once() -> None:
    dense, slim = Told(1, 2), Told(2, 4, 8, 9)
    score = FinalScore(Evaluator(images(), batch_size=10))
    score(dense, "dense"), score(slim, "slim")
    assert (dense.calls, slim.calls) == (5, 4)  # four batches; at first one more shows how images are laid out
    record = score.dense_record()
    assert record is not None
    assert (record["images"], record["classes"], record["names"]) == (40, [10] * 4, [])
    assert record["dense"]["right"] == [10, 9, 9, 10]
    found = score.with_answers(record, "slim", "slim")["slim"]
    assert found["right"] == [8, 9, 9, 10]
    assert found["lost"] == [2, 1, 0, 0]  # 4, 8 and 9; 1 is gained, and 2 was lost before
    assert [(each["image"], each["label"], each["answer"]) for each in found["examples"]] == [
        (4, 0, 1), (8, 0, 1), (9, 1, 2),
    ]  # fmt: skip


def test_the_pictures_are_those_of_the_lost_images() -> None:
    source = images()
    score = judged(source, dense=Told(), slim=Told(5, 30))
    record = score.dense_record()
    assert record is not None
    examples = score.with_answers(record, "slim", "slim")["slim"]["examples"]
    for each, number in zip(examples, (5, 30), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(each["picture"])))
        assert (shown.mode, shown.size) == ("RGB", (8, 8))
        raw = source.images[number]
        wanted = ((raw - raw.min()) / (raw.max() - raw.min()) * 255).round().to(torch.uint8)
        assert shown.tobytes() == wanted.permute(1, 2, 0).numpy().tobytes()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_large_pictures_are_made_small(channels: int, mode: str) -> None:
    score = judged(images(8, channels=channels, side=100), dense=Told(), slim=Told(0))
    record = score.dense_record()
    assert record is not None
    (example,) = score.with_answers(record, "slim", "slim")["slim"]["examples"]
    shown = Image.open(io.BytesIO(base64.b64decode(example["picture"])))
    assert (shown.mode, shown.size) == (mode, (SIDE, SIDE))


def test_inputs_that_are_no_pictures_have_none() -> None:
    score = judged(images(8, channels=2), dense=Told(), slim=Told(0))
    record = score.dense_record()
    assert record is not None
    assert score.with_answers(record, "slim", "slim")["slim"]["examples"][0]["picture"] is None


def test_few_lost_images_are_shown_and_every_class_has_its_turn() -> None:
    score = judged(images(80), dense=Told(), slim=Told(*range(0, 80, 4), 1, 2))
    record = score.dense_record()
    assert record is not None
    examples = score.with_answers(record, "slim", "slim")["slim"]["examples"]
    assert len(examples) == SHOWN
    assert [each["label"] for each in examples].count(0) == SHOWN - 2
    assert {1, 2} < {each["image"] for each in examples}


def test_a_later_network_is_compared_with_the_dense_answers_on_record() -> None:
    earlier = judged(images(), dense=Told(3), slim=Told(3, 4))
    record = earlier.dense_record()
    assert record is not None
    record = earlier.with_answers(record, "slim", "slim")
    later = judged(images(), tuned=Told(4, 6))
    found = later.with_answers(record, "finetuned", "tuned")
    assert found["finetuned"]["lost"] == [1, 0, 1, 0]
    assert {name: found[name] for name in record} == record
    other = judged(images(36), tuned=Told(4))  # other images
    assert other.with_answers(found, "finetuned", "tuned") == record
    assert later.with_answers(found, "finetuned", "never scored") == record


def test_the_error_of_a_score_is_that_of_the_same_images() -> None:
    score = judged(images(), dense=Told(1, 2), slim=Told(2, 4, 8, 9))
    record = score.dense_record()
    assert record is not None
    paired = PairedEvaluator(Evaluator(images()), Told(1, 2))(Told(2, 4, 8, 9))
    assert score.error("slim", record) == paired.standard_error > 0
    assert score.error("never scored", record) is None
    assert judged(images(36), slim=Told(4)).error("slim", record) is None


def test_scores_that_judge_no_single_image_have_no_answers() -> None:
    own = FinalScore(lambda network: 0.5)
    assert own(Told(), "dense") == (0.5, [])
    assert own.dense_record() is None
    averaged = FinalScore(Evaluator(images(), score="balanced-accuracy"))
    assert averaged(Told(), "dense")[0] == 1
    assert averaged.dense_record() is None
    assert averaged.with_answers({"images": 1, "slim": {}}, "slim", "slim") == {"images": 1}


def test_a_network_without_a_score_has_a_warning_and_no_answers() -> None:
    class Broken(Told):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    score = FinalScore(Evaluator(images()))
    value, warnings = score(Broken(), "dense")
    assert value is None
    assert warnings[0].startswith("the dense network has no test score: ")
    assert score.dense_record() is None


@pytest.mark.parametrize(("names", "told"), [("abcd", list("abcd")), ("abc", [])])
def test_classes_have_the_names_that_the_data_gives_all_of_them(names: str, told: list[str]) -> None:
    score = judged(images(classes=tuple(names)), dense=Told())
    record = score.dense_record()
    assert record is not None
    assert record["names"] == told


def test_data_that_cannot_be_read_again_have_no_pictures() -> None:
    class Once(ImageSet):
        def chosen(self, parts: Iterable[Tensor]) -> Any:
            raise OSError("the folder is gone")

    source = images()
    evaluator = Evaluator(Once(source.images, source.labels))
    evaluator._source = Once(source.images, source.labels)  # as if it were too large for memory
    score = FinalScore(evaluator)
    score(Told(), "dense"), score(Told(4), "slim")
    record = score.dense_record()
    assert record is not None
    (example,) = score.with_answers(record, "slim", "slim")["slim"]["examples"]
    assert (example["image"], example["picture"]) == (4, None)


@pytest.mark.parametrize("classes", [10, "abcd", None, {"a": 1}])
def test_an_attribute_that_names_no_classes_is_left_alone(classes: object) -> None:
    class Batches(list[Any]):
        pass

    source = images()
    batches = Batches([(source.images, source.labels)])
    batches.classes = classes  # type: ignore[attr-defined]
    assert Evaluator(batches).classes == ()


def test_top5_judges_an_image_by_five_answers_and_shows_the_first() -> None:
    class Ranked(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

        def forward(self, x: Tensor) -> Tensor:
            """Class c of ten is the answer of this rank, counted from 0."""
            number = x[:, 0, 0, 0].round().long() % CLASSES
            places = (torch.arange(10) - number[:, None] + self.rank) % 10
            return -places.float()

    score = FinalScore(Evaluator(images(), score="top5"))
    assert score(Ranked(4), "dense")[0] == 1
    assert score(Ranked(5), "slim")[0] == 0
    record = score.dense_record()
    assert record is not None
    found = score.with_answers(record, "slim", "slim")["slim"]
    assert found["lost"] == [10] * 4 + [0] * 6
    assert {(each["answer"] - each["label"]) % 10 for each in found["examples"]} == {5}
