"""Scores by name, each against a count by hand, and every shape of labels and outputs: right or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn

from amc.compression.scoring.evaluator import Evaluator, PairedEvaluator, as_evaluator
from amc.compression.scoring.metrics import torchmetrics
from amc.compression.settings import SearchConfig
from amc.errors import AmcError, EvaluationError
from amc.run.settings.scores import SCORES, get_score

N, C = 8, 4


class Answers(nn.Module):
    """Gives what it gets: the images are the outputs."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


def score(outputs: Any, labels: Any, name: str = "top1", wrap: Callable[[Tensor], Any] = lambda x: x) -> float:
    """Of outputs given in two batches."""
    outputs, labels = torch.as_tensor(outputs), torch.as_tensor(labels)
    half = max(1, len(outputs) // 2)
    batches = list(zip(outputs.split(half), labels.split(half), strict=True))
    return Evaluator(batches, score=name)(Answers(wrap))


def logits_of(answers: list[int], classes: int = C) -> Tensor:
    """Logits whose largest is at the answer; the others fall with their distance to it."""
    places = torch.arange(classes)
    return torch.stack([2.0 - (places - answer).abs().float() for answer in answers])


ANSWERS = [0, 1, 2, 3, 0, 1, 2, 2]
LABELS = [0, 1, 2, 3, 1, 2, 3, 3]  # four of eight right
LOGITS = logits_of(ANSWERS)
ONE_HOT = nn.functional.one_hot(torch.tensor(LABELS), C)


class TestTopOne:
    @pytest.mark.parametrize(
        "labels",
        [
            torch.tensor(LABELS), torch.tensor(LABELS).unsqueeze(1), torch.tensor(LABELS).float(), ONE_HOT,
            torch.tensor(LABELS, dtype=torch.uint8), torch.tensor(LABELS).double().unsqueeze(1), ONE_HOT.float(),
            ONE_HOT.bool(),
        ],
        ids=["[N]", "[N, 1]", "float", "one-hot", "uint8", "double [N, 1]", "float one-hot", "bool one-hot"],
    )  # fmt: skip
    def test_every_way_to_write_a_class(self, labels: Tensor) -> None:
        assert score(LOGITS, labels) == 4 / 8

    def test_column_of_labels_is_not_broadcast(self) -> None:
        """[N] == [N, 1] compares every image with every label: 14 of the 8 "right", which gave 1.75."""
        labels = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]).unsqueeze(1)
        outputs = logits_of([1, 1, 1, 1, 0, 1, 1, 0], 2)
        assert score(outputs, labels) == 4 / 8
        outputs = logits_of([1, 1, 1, 1, 0, 1, 1, 1], 2)
        assert score(outputs, labels) == 3 / 8

    @pytest.mark.parametrize("kind", [torch.long, torch.float, torch.bool])
    def test_one_hot_labels_of_as_many_images_as_classes(self, kind: torch.dtype) -> None:
        hot = nn.functional.one_hot(torch.tensor([0, 1, 3, 2]), 4).to(kind)
        assert Evaluator([(logits_of([0, 1, 2, 3]), hot)])(Answers()) == 2 / 4

    @pytest.mark.parametrize("shape", [(N,), (N, 1)])
    @pytest.mark.parametrize("kind", [torch.long, torch.float, torch.bool])
    def test_one_logit_is_above_zero_or_not(self, shape: tuple[int, ...], kind: torch.dtype) -> None:
        outputs = torch.tensor([-2.0, -1, -0.5, 0, 0.5, 1, 2, 3]).reshape(shape)  # no, no, no, no, then yes
        labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0]).to(kind)
        assert score(outputs, labels) == 5 / 8
        assert score(outputs, labels.unsqueeze(1)) == 5 / 8

    def test_one_image_whose_logit_lost_its_dimension(self) -> None:
        assert Evaluator([(torch.tensor([3.0]), torch.tensor([1]))])(Answers(lambda x: x.squeeze())) == 1

    def test_a_sigmoid_at_the_end_is_refused_not_thresholded_at_zero(self) -> None:
        outputs = torch.tensor([-2.0, -1, 1, 2]).sigmoid()
        with pytest.raises(EvaluationError, match=r"all lie in \[0, 1\]: they look like probabilities"):
            score(outputs, [0, 0, 1, 1])
        assert score(torch.zeros(4), [0, 0, 0, 1]) == 3 / 4  # a dead network says no to all

    def test_truth_values_for_two_classes(self) -> None:
        assert score(logits_of([0, 1, 1, 0], 2), torch.tensor([False, True, False, False])) == 3 / 4
        with pytest.raises(EvaluationError, match="labels are true or false, and the network has 4 classes"):
            score(LOGITS, torch.tensor(LABELS).bool())

    @pytest.mark.parametrize("label", [4, 255, -1, -100])
    def test_a_label_out_of_range(self, label: int) -> None:
        with pytest.raises(EvaluationError, match=f"label {label} is out of range: the network has classes 0 to 3"):
            score(LOGITS, [*LABELS[:-1], label])

    def test_labels_of_something_else(self) -> None:
        for labels, message in [
            (ONE_HOT | ONE_HOT.roll(1, 1), "several classes or none, .*; choose score macro-f1 or auroc"),
            (torch.zeros(N, C), "several classes or none"),
            (torch.rand(N, C, generator=torch.Generator().manual_seed(0)), "a label is .*, which is no class"),
            (torch.tensor(LABELS) + 0.5, "a label is 0.5, which is no class; .* choose score mse"),
            (torch.full((N,), torch.nan), "a label is nan"),
            (torch.zeros(N, 3), r"labels \[4, 3\] do not belong to logits \[4, 4\]"),
            (2 * ONE_HOT, r"labels \[4, 4\] are not all 0 or 1"),
            (torch.zeros(N, C, 2), r"labels \[4, 4, 2\] do not belong"),
            (torch.zeros(N, dtype=torch.complex64), "labels are complex"),
        ]:
            with pytest.raises(EvaluationError, match=message):
                score(LOGITS, labels)

    def test_segmentation_is_sent_to_its_score(self) -> None:
        outputs, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
        with pytest.raises(EvaluationError, match=r"gives \[1, 3, 4, 4\] for labels \[1, 4, 4\].*choose score miou"):
            score(outputs, labels)

    def test_answers_in_place_of_logits(self) -> None:
        with pytest.raises(EvaluationError, match=r"gives int64 \[4\] for 4 images, not logits"):
            score(torch.tensor(ANSWERS), LABELS)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: (x, x.flip(1)), lambda x: [x], lambda x: {"logits": x, "aux": x.flip(1)}, lambda x: {"out": x},
            lambda x: {"answer": x}, lambda x: Output(x), lambda x: ((x, x.flip(1)), x.flip(1)),
            lambda x: {"loss": 1.0, "scores": x},
        ],
    )  # fmt: skip
    def test_logits_among_other_outputs(self, wrap: Callable[[Tensor], Any]) -> None:
        assert score(LOGITS, LABELS, wrap=wrap) == 4 / 8

    @pytest.mark.parametrize(
        ("wrap", "message"),
        [
            (lambda x: {"a": x, "b": x}, "gives a, b, and none is named logits"),
            (lambda x: None, "gives a NoneType, not logits"),
            (lambda x: (), "gives a tuple, not logits"),
            (lambda x: (x.sum(), x), r"gives \[\] for 4 images"),
            (lambda x: x[:, :, None].expand(-1, -1, 5), r"gives \[4, 4, 5\] for 4 images"),
            (lambda x: x[:2], r"gives \[2, 4\] for 4 images"),
        ],
    )
    def test_outputs_whose_logits_cannot_be_told(self, wrap: Callable[[Tensor], Any], message: str) -> None:
        with pytest.raises(EvaluationError, match=message):
            score(LOGITS, LABELS, wrap=wrap)


@dataclass
class Output:
    """As the networks of transformers have it."""

    logits: Tensor
    loss: Tensor | None = None


class TestTopFive:
    def test_a_label_among_the_five_largest(self) -> None:
        outputs = torch.arange(10.0).expand(4, 10)  # 5 to 9 are the largest
        assert score(outputs, [5, 9, 4, 7], "top5") == 3 / 4
        assert score(outputs, nn.functional.one_hot(torch.tensor([5, 9, 4, 7]), 10), "top-5") == 3 / 4

    def test_equal_logits_are_no_success(self) -> None:
        assert score(torch.zeros(100, 20), torch.arange(100) % 20, "top5") == 5 / 20

    @pytest.mark.parametrize("classes", [2, 5])
    def test_so_few_classes_are_always_right(self, classes: int) -> None:
        with pytest.raises(EvaluationError, match=f"has {classes} classes, so top-5 is always right"):
            score(torch.zeros(4, classes), [0, 0, 1, 1], "top5")

    def test_two_networks_are_compared_image_by_image(self) -> None:
        evaluator = Evaluator([(torch.arange(10.0).expand(4, 10), torch.tensor([5, 9, 4, 7]))], score="top5")
        assert evaluator.correct(Answers()).tolist() == [True, True, False, True]
        assert PairedEvaluator(evaluator, Answers()).compare(Answers(lambda x: -x)).lost == 3
        assert PairedEvaluator(evaluator, Answers()).compare(Answers(lambda x: -x)).gained == 1


class TestOthers:
    def test_balanced_accuracy_by_hand(self) -> None:
        # class 0: 3 of 4; class 1: 1 of 2; class 2: 0 of 2; class 3 does not occur, and is answered once
        labels = [0, 0, 0, 0, 1, 1, 2, 2]
        answers = [0, 0, 0, 1, 1, 0, 3, 0]
        assert score(logits_of(answers), labels, "balanced-accuracy") == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)

    def test_macro_f1_by_hand(self) -> None:
        # 0: 3 right, 2 too many, 1 missed: 6/9; 1: 1 right, 1 too many, 1 missed: 2/4; 2: 0; 3: answered, never true: 0
        labels = [0, 0, 0, 0, 1, 1, 2, 2]
        answers = [0, 0, 0, 1, 1, 0, 3, 0]
        assert score(logits_of(answers), labels, "macro-f1") == pytest.approx((6 / 9 + 2 / 4 + 0 + 0) / 4)

    def test_macro_f1_of_several_labels_by_hand(self) -> None:
        hot = [[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 0]]
        outputs = [[3.0, -1, -1], [1, 1, 1], [-1, -1, 2], [2, 2, -2]]
        # first: yes to 0, 1, 3, true of 0, 3: 4/5; second: 1, 3, true of 1, 3: 1; third: 1, 2, true of 0, 1: 2/4
        assert score(outputs, hot, "f1") == pytest.approx((4 / 5 + 1 + 2 / 4) / 3)

    def test_whether_labels_are_one_hot_is_seen_on_the_whole_set(self) -> None:
        hot = [[1, 0], [0, 1], [1, 1], [1, 0]]  # the first batch alone looks one-hot
        outputs = [[1.0, 2], [-1, 1], [1, 1], [1, -1]]
        # both labels on their own: yes 1, no, 1, 1 against 1, 0, 1, 1: 1; yes 1, 1, 1, no against 0, 1, 1, 0: 4/5
        assert score(outputs, hot, "f1") == pytest.approx((1 + 4 / 5) / 2)

    def test_a_sigmoid_before_several_labels_is_refused(self) -> None:
        with pytest.raises(EvaluationError, match="look like probabilities"):
            score([[0.1, 0.9], [0.8, 0.7]], [[0, 1], [1, 1]], "f1")

    def test_auroc_of_one_logit_by_hand(self) -> None:
        # pairs of a positive and a negative: 3 x 2; ordered rightly: 2 + 2 + 0, and a tie counts half
        assert score([5.0, 3, 1, 2, 1], [1, 1, 1, 0, 0], "auroc") == pytest.approx((2 + 2 + 0.5) / 6)

    def test_auroc_needs_no_sigmoid_and_minds_none(self) -> None:
        outputs = torch.tensor([50.0, 45, 40, 44, -3])  # of which sigmoid makes 1, 1, 1, 1 in 32 bits
        assert score(outputs, [1, 1, 0, 0, 0], "auroc") == 1
        assert score((outputs / 10).sigmoid(), [1, 1, 0, 0, 0], "auroc") == 1

    def test_auroc_of_classes_by_hand(self) -> None:
        p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]])
        labels = [0, 1, 1, 0]
        # class 0: {.7, .6} over {.5, .3}: 1; class 1: {.4, .6} over {.2, .3}: 1; class 2 does not occur
        assert score(p, labels, "auroc") == 1
        assert score(p.log() + 3, labels, "auroc") == 1
        # class 0: {.5, .3} over {.7, .6}: 0; class 1: {.2, .3} over {.4, .6}: 0
        assert score(p, [1, 0, 0, 1], "auroc") == 0

    def test_auroc_of_several_labels_by_hand(self) -> None:
        hot = [[1, 0], [1, 1], [0, 1], [0, 0]]
        outputs = [[3.0, 1], [1, 4], [2, 2], [0, 3]]
        # {3, 1} over {2, 0}: 3 of 4; {4, 2} over {1, 3}: 3 of 4
        assert score(outputs, hot, "auroc") == pytest.approx(3 / 4)

    def test_auroc_of_one_class_alone_is_not_defined(self) -> None:
        with pytest.raises(EvaluationError, match="AUROC is nan on these 4 images: it is not defined there"):
            score([1.0, 2, 3, 4], [1, 1, 1, 1], "auroc")

    def test_mean_iou_by_hand(self) -> None:
        answers = torch.tensor([[[0, 0], [1, 1]], [[1, 2], [2, 2]]])
        labels = torch.tensor([[[0, 0], [1, 255]], [[1, 1], [2, 2]]])  # 255: no class
        outputs = nn.functional.one_hot(answers, 5).permute(0, 3, 1, 2).float()
        # 0: 2 of 2; 1: answered 2 (the third lies on 255), true 3, both 2: 2/3; 2: answered 3, true 2, both 2: 2/3
        for given_labels in (labels, labels.unsqueeze(1), labels.float(), labels.to(torch.uint8)):
            assert score(outputs, given_labels, "miou") == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)

    def test_mean_iou_of_one_logit_a_pixel(self) -> None:
        outputs = torch.tensor([[[[3.0, -1], [2, -2]]]])  # yes, no, yes, no
        labels = torch.tensor([[[1, 0], [0, 0]]])
        assert score(outputs, labels, "miou") == pytest.approx((1 / 2 + 2 / 3) / 2)
        line = score(outputs.flatten(2), labels.flatten(1), "miou")  # of sequences
        assert line == pytest.approx((1 / 2 + 2 / 3) / 2)

    def test_mean_iou_refuses(self) -> None:
        for outputs, labels, message in [
            (torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8), r"got \[1, 3, 4, 4\] and \[1, 8, 8\]; resize"),
            (torch.zeros(2, 3), torch.zeros(2), r"mean IoU has logits \[N, C, H, W\]"),
            (torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3), "label 3 is out of range"),
        ]:
            with pytest.raises(EvaluationError, match=message):
                score(outputs, labels, "miou")

    def test_mean_squared_error_is_a_loss(self) -> None:
        outputs, labels = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 5, 3])
        assert score(outputs, labels, "mse") == -(0 + 0 + 4 + 1) / 4
        for change in (lambda t: t.unsqueeze(1), lambda t: t.reshape(4, 1, 1)):
            assert score(change(outputs), labels, "mse") == -5 / 4
            assert score(outputs, change(labels), "mse") == -5 / 4
        assert score(outputs.reshape(2, 2), labels.long().reshape(2, 2), "mse") == -5 / 4
        uneven = [(outputs[:3], labels[:3]), (outputs[3:], labels[3:])]
        assert Evaluator(uneven, score="mse")(Answers()) == -5 / 4  # a mean over elements, not over batches
        with pytest.raises(EvaluationError, match=r"one shape, got \[2, 2\] and \[2\]"):
            score(outputs.reshape(2, 2).repeat(2, 1), labels, "mse")

    def test_mean_absolute_error_is_a_loss(self) -> None:
        outputs, labels = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 5, 3])
        assert score(outputs, labels, "mae") == -(0 + 0 + 2 + 1) / 4
        assert score(outputs.reshape(2, 2), labels.reshape(2, 2), "MAE") == -3 / 4
        with pytest.raises(EvaluationError, match=r"mean absolute error compares .* got \[2, 2\] and \[2\]"):
            score(outputs.reshape(2, 2).repeat(2, 1), labels, "mae")

    @pytest.mark.parametrize("peak", [1.0, 255.0])
    def test_psnr_is_the_average_over_images(self, peak: float) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = peak * torch.rand(5, 3, 8, 8, generator=generator)
        outputs = labels + peak * torch.tensor([0.01, 0.02, 0.1, 0.2, 0.5]).reshape(5, 1, 1, 1) * torch.randn(
            labels.shape, generator=generator
        )
        psnr = torchmetrics(SCORES["mse"]).functional.image.peak_signal_noise_ratio
        expected = float(psnr(outputs, labels, data_range=peak, dim=(1, 2, 3)))
        assert score(outputs, labels, "psnr") == pytest.approx(expected, rel=1e-5)
        halves = [(outputs[:2], labels[:2]), (outputs[2:], labels[2:])]
        assert Evaluator(halves, score="PSNR")(Answers()) == pytest.approx(expected, rel=1e-5)

    def test_psnr_of_an_image_without_error_is_limited(self) -> None:
        images = torch.rand(2, 1, 4, 4)
        assert score(images, images, "psnr") == 100

    @pytest.mark.parametrize("labels", [torch.full((1, 1, 2, 2), -0.5), torch.full((1, 1, 2, 2), 300.0)])
    def test_psnr_refuses_images_whose_peak_is_unknown(self, labels: Tensor) -> None:
        with pytest.raises(EvaluationError, match="PSNR takes images of 0 to 1, or of 0 to 255"):
            score(labels + 0.1, labels, "psnr")

    @pytest.mark.parametrize("name", sorted(set(SCORES) - {"map"}))  # of boxes: test_boxes.py
    def test_nan_is_refused_by_all(self, name: str) -> None:
        dense = name == "miou"
        outputs = torch.zeros(4, 6, 2, 2) if dense else torch.zeros(4, 6)
        outputs[3] = torch.nan
        labels = (
            torch.zeros(4, 2, 2) if dense else torch.zeros(4, 6) if name in ("mse", "mae", "psnr") else torch.zeros(4)
        )
        with pytest.raises(EvaluationError, match="logits are NaN"):
            score(outputs, labels, name)

    @pytest.mark.filterwarnings("ignore:A single label was found")
    @settings(deadline=None, max_examples=40)
    @given(st.data())
    def test_classes_agree_with_another_library(self, data: st.DataObject) -> None:
        classes, count = data.draw(st.integers(2, 5)), data.draw(st.integers(2, 30))
        number = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
        labels, answers = data.draw(number), data.draw(number)
        outputs = logits_of(answers, classes)
        one_of = list(range(classes))
        seen = sorted(set(labels) | set(answers))
        assert score(outputs, labels, "f1") == pytest.approx(f1_score(labels, answers, labels=seen, average="macro"))
        recalls = [
            sum(a == b == c for a, b in zip(labels, answers, strict=True)) / labels.count(c) for c in set(labels)
        ]
        assert score(outputs, labels, "balanced-accuracy") == pytest.approx(sum(recalls) / len(recalls))
        if set(answers) <= set(labels):
            assert score(outputs, labels, "balanced") == pytest.approx(balanced_accuracy_score(labels, answers))
        if set(labels) == set(one_of):
            p = outputs.double().softmax(1).round(decimals=9)  # equal values are ties, whatever the order of the sum
            expected = roc_auc_score(labels, p if classes > 2 else p[:, 1], multi_class="ovr")
            assert score(outputs, labels, "auroc") == pytest.approx(expected)


class TestNames:
    @pytest.mark.parametrize(
        ("spelling", "name"),
        [
            ("top-1", "top1"), ("Top5", "top5"), ("accuracy", "top1"), ("F1", "macro-f1"), ("macro_f1", "macro-f1"),
            ("mIoU", "miou"), ("mean iou", "miou"), ("AUC", "auroc"), ("ROC-AUC", "auroc"), ("MSE", "mse"),
            ("mean squared error", "mse"), ("PSNR", "psnr"), ("mAP", "map"), ("balanced accuracy", "balanced-accuracy"),
        ],
    )  # fmt: skip
    def test_spellings(self, spelling: str, name: str) -> None:
        assert get_score(spelling).name == name
        assert SearchConfig(score=spelling).score == name
        assert SearchConfig.from_json(SearchConfig(score=spelling).to_json()).score == name

    def test_a_misspelt_one(self) -> None:
        with pytest.raises(AmcError, match=r"score 'marco-f1' is unknown; did you mean macro-f1\? known: top1, top5, "):
            SearchConfig(score="marco-f1")
        with pytest.raises(AmcError, match="score '' is unknown; known: top1"):
            get_score("")

    def test_an_old_run_is_scored_as_it_was(self) -> None:
        record = SearchConfig().to_json()
        del record["score"]
        assert SearchConfig.from_json(record).score == "top1"

    @pytest.mark.parametrize("name", ["macro-f1", "auroc", "mse", "miou", "balanced-accuracy"])
    def test_max_drop_counts_single_images(self, name: str) -> None:
        with pytest.raises(AmcError, match=r"max-drop counts the images .*; choose score top1 or top5, or a budget"):
            SearchConfig(score=name, max_drop=1.0)
        with pytest.raises(EvaluationError, match="does not call single images right or wrong"):
            Evaluator([(LOGITS, torch.tensor(LABELS))], score=name).correct(Answers())
        SearchConfig(score="top5", max_drop=1.0)

    def test_an_error_has_no_share_of_right_answers(self) -> None:
        with pytest.raises(AmcError, match="reward r_flops is about a share of right answers, and score mse is none"):
            SearchConfig(score="mse", reward="r_flops")

    @pytest.mark.parametrize(
        ("name", "labels", "exclusive"),
        [
            ("top1", torch.zeros(4), True), ("macro-f1", torch.zeros(4), True), ("auroc", torch.zeros(4, 1), True),
            ("macro-f1", torch.eye(4, 8), True), ("macro-f1", torch.ones(4, 8), False),
            ("auroc", torch.zeros(4, 8), False), ("mse", torch.zeros(4, 8), False), ("psnr", torch.zeros(4, 8), False),
            ("miou", torch.zeros(4, 8), True),
        ],
    )  # fmt: skip
    def test_classes_compete_and_several_labels_do_not(self, name: str, labels: Tensor, exclusive: bool) -> None:
        """Recovery compares logits by their softmax only where one class is right: it does not see a shift of all."""
        assert Evaluator([(torch.rand(4, 8), labels)], score=name).exclusive is exclusive

    def test_a_function_is_its_own_score(self) -> None:
        with pytest.raises(AmcError, match="a function, which is the score itself; leave out score 'auroc'"):
            as_evaluator(lambda module: 0.5, score="auroc")

    @pytest.mark.parametrize("name", SCORES)
    def test_without_torchmetrics_the_extra_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchmetrics", None)
        if not get_score(name).needs_torchmetrics:
            assert Evaluator([(torch.rand(4, 8), torch.zeros(4))], score=name).kind.name == name
            return
        with pytest.raises(EvaluationError, match=rf"score {name} needs .*; pip install 'amc-compress\[metrics\]'"):
            Evaluator([(LOGITS, torch.tensor(LABELS))], score=name)

    @pytest.mark.parametrize(
        ("name", "chance"), [("top1", 1 / 8), ("top5", 5 / 8), ("balanced", 1 / 8), ("auroc", 0.5), ("macro-f1", None)]
    )
    def test_chance(self, name: str, chance: float | None) -> None:
        evaluator = Evaluator([(torch.rand(4, 8), torch.zeros(4))], score=name)
        assert evaluator.chance(Answers()) == chance
        assert Evaluator([(torch.rand(4, 1), torch.zeros(4))]).chance(Answers()) == 1 / 2
