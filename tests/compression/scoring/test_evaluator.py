from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc.compression.scoring.batchnorm import reestimate_batchnorm_
from amc.compression.scoring.evaluator import (
    Evaluator,
    PairedEvaluator,
    as_evaluator,
)
from amc.errors import DataError, EvaluationError
from amc.search.statistics import Measured, PairedDrop
from amc.structure.modes import evaluating
from amc.zoo import ImageSet
from tests.threads import one_thread

__all__ = ["one_thread"]  # for every test of this file

CLASSES = 4


class FirstPixels(nn.Module):
    """Logits are the first pixels of the image, so the label is known by construction."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES]


def labelled(count: int = 40, wrong: int = 10) -> tuple[Tensor, Tensor]:
    """Images whose largest pixel is at their label, but for the last `wrong`."""
    labels = torch.arange(count) % CLASSES
    images = torch.zeros(count, 1, 2, 2)
    images.view(count, 4)[torch.arange(count), labels] = 1.0
    labels = labels.clone()
    labels[count - wrong :] = (labels[count - wrong :] + 1) % CLASSES
    return images, labels


class TestEvaluator:
    @pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
    def test_accuracy_is_the_share_of_right_answers(self, batch_size: int) -> None:
        assert Evaluator(ImageSet(*labelled()), batch_size=batch_size)(FirstPixels()) == 30 / 40

    def test_a_loader_and_a_list_give_the_same(self) -> None:
        images, labels = labelled()
        loader = DataLoader(TensorDataset(images, labels), batch_size=12)
        assert Evaluator(loader)(FirstPixels()) == 0.75
        assert Evaluator([(images[:30], labels[:30]), (images[30:], labels[30:])])(FirstPixels()) == 0.75

    def test_a_loader_is_read_once(self) -> None:
        reads = 0

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal reads
            reads += 1
            yield labelled()

        evaluator = Evaluator(batches())
        assert [evaluator(FirstPixels()) for _ in range(3)] == [0.75] * 3
        assert reads == 1

    def test_a_set_too_large_to_keep_gives_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", 100)
        evaluator = Evaluator(ImageSet(*labelled()), batch_size=7)
        assert [evaluator(FirstPixels()), evaluator(FirstPixels())] == [0.75, 0.75]

    def test_modes_and_weights_are_left_alone(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.9)).train()
        model[1].eval()  # a mode of its own
        before = {key: value.clone() for key, value in model.state_dict().items()}
        evaluator = Evaluator(ImageSet(*labelled()))
        assert evaluator(model) == evaluator(model)  # no dropout
        assert [part.training for part in model] == [True, False, True, True]
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_bfloat16_is_used_if_asked_for(self) -> None:
        seen = []

        class Spy(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                out = super().forward(x.flatten(1))
                seen.append(out.dtype)
                return out

        Evaluator(ImageSet(*labelled()), autocast=True)(Spy(4, CLASSES))
        Evaluator(ImageSet(*labelled()))(Spy(4, CLASSES))
        tried = torch.float32  # once for each evaluator: whether the network takes images in channels-last format
        assert seen == [tried, torch.bfloat16, tried, torch.float32]

    @pytest.mark.parametrize("source", [[], [(torch.zeros(0, 1, 2, 2), torch.zeros(0))]])
    def test_empty_set(self, source: list[tuple[Tensor, Tensor]]) -> None:
        with pytest.raises(DataError, match="empty"):
            Evaluator(source)

    def test_batches_of_another_kind(self) -> None:
        with pytest.raises(DataError, match=r"must give \(images, labels\)"):
            Evaluator([torch.zeros(3, 1, 2, 2)])  # type: ignore[list-item]
        with pytest.raises(DataError, match="3 images and 2 labels"):
            Evaluator([(torch.zeros(3, 1, 2, 2), torch.zeros(2))])

    def test_nan_logits(self) -> None:
        images, labels = labelled()
        images[17] = float("nan")
        with pytest.raises(EvaluationError, match="NaN"):
            Evaluator([(images, labels)])(FirstPixels())

    def test_output_that_is_no_logits(self) -> None:
        with pytest.raises(EvaluationError, match=r"\[40, 1, 2, 2\] for 40 images"):
            Evaluator(ImageSet(*labelled()))(nn.Identity())

    def test_which_images_are_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [True] * 30 + [False] * 10
        for limit in (1 << 30, 100):  # kept, and read anew each time
            monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", limit)
            evaluator = Evaluator(ImageSet(*labelled()), batch_size=7)
            correct = evaluator.correct(FirstPixels())
            assert correct.dtype == torch.bool
            assert correct.tolist() == expected
            assert len(evaluator) == 40
            assert evaluator(FirstPixels()) == 0.75

    @pytest.mark.parametrize("limit", [1 << 30, 100])
    @pytest.mark.parametrize("batches", [[41], [1, 1, 39], [7] * 5 + [6], None])
    def test_halves_hold_every_image_once(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, batches: list[int] | None
    ) -> None:
        monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", limit)
        images, labels = labelled(41, wrong=11)
        source = ImageSet(images, labels)
        whole = Evaluator(
            source if batches is None else zip(images.split(batches), labels.split(batches), strict=True),
            batch_size=4,
        )
        correct = whole.correct(FirstPixels())
        first, second = whole.divided(0.5)
        assert (len(first), len(second)) == (21, 20)
        halves = [half.correct(FirstPixels()) for half in (first, second)]
        assert sum(int(half.sum()) for half in halves) == int(correct.sum()) == 30
        assert all(
            torch.equal(half.correct(FirstPixels()), right) for half, right in zip((first, second), halves, strict=True)
        )
        assert torch.equal(whole.correct(FirstPixels()), correct)

    @pytest.mark.parametrize("limit", [1 << 30, 1])
    @pytest.mark.parametrize("order", ["classes in turn", "class by class"])
    def test_halves_have_their_share_of_every_class(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, order: str
    ) -> None:
        """Every other image of ten classes in turn would be those of five classes."""
        monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", limit)
        labels = torch.arange(10).repeat(40) if order == "classes in turn" else torch.arange(10).repeat_interleave(40)
        images = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
        images[:, 0, 0, 0] = labels.to(torch.uint8)
        seen = []
        for half in Evaluator(ImageSet(images, labels), batch_size=16).divided(0.5):
            counts = torch.bincount(torch.cat([batch[1] for batch in half._batches()]), minlength=10)
            assert counts.min() >= 10
            assert counts.max() <= 30
            seen.append(counts)
        assert torch.equal(seen[0] + seen[1], torch.full((10,), 40))

    @pytest.mark.parametrize("limit", [1 << 30, 1])
    def test_one_image_has_no_halves(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        monkeypatch.setattr("amc.compression.scoring.evaluator.KEEP_FLOAT_BYTES", limit)
        with pytest.raises(DataError, match="one image cannot be divided"):
            Evaluator(ImageSet(*labelled(1, wrong=0))).divided(0.5)


class TestPairedEvaluator:
    def test_score_comes_with_the_error_of_its_difference(self) -> None:
        class Shifted(FirstPixels):
            """Right where the other is wrong and the label is the next one: on the last ten images."""

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).roll(1, dims=1)

        images, labels = labelled()
        evaluate = PairedEvaluator(Evaluator(ImageSet(images, labels)), FirstPixels())
        assert (evaluate.dense_score, evaluate.images) == (0.75, 40)
        same, other = evaluate(FirstPixels()), evaluate(Shifted())
        assert isinstance(same, Measured)
        assert (same, same.standard_error) == (0.75, 2 / 40)  # the guard alone: sqrt(4) / 40
        assert evaluate.compare(Shifted()) == PairedDrop(40, lost=30, gained=10)
        assert (other, other.standard_error) == (0.25, PairedDrop(40, 30, 10).standard_error)

    def test_it_passes_as_a_score_and_so_does_a_callables_own_error(self) -> None:
        evaluate = PairedEvaluator(Evaluator(ImageSet(*labelled())), FirstPixels())
        assert as_evaluator(evaluate) is evaluate
        score = as_evaluator(lambda module: Measured(0.5, 0.01))(FirstPixels())
        assert isinstance(score, Measured)
        assert score.standard_error == 0.01


class TestAsEvaluator:
    def test_every_kind(self) -> None:
        images, labels = labelled()
        evaluator = Evaluator(ImageSet(images, labels))
        assert as_evaluator(evaluator) is evaluator
        for source in (
            ImageSet(images, labels),
            [(images, labels)],
            DataLoader(TensorDataset(images, labels)),
        ):
            assert as_evaluator(source)(FirstPixels()) == 0.75
        assert as_evaluator(lambda module: torch.tensor(-3.5))(FirstPixels()) == -3.5  # type: ignore[arg-type,return-value]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high", torch.zeros(2)])
    def test_values_that_are_no_score(self, value: object) -> None:
        with pytest.raises(EvaluationError, match="evaluate returned"):
            as_evaluator(lambda module: value)(FirstPixels())  # type: ignore[arg-type,return-value]

    def test_what_the_callable_raises_passes_through(self) -> None:
        def fail(module: nn.Module) -> float:
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            as_evaluator(fail)(FirstPixels())

    @pytest.mark.parametrize("value", ["0.7", True, None])
    def test_what_is_no_number_is_refused(self, value: object) -> None:
        with pytest.raises(EvaluationError, match=f"returned a {type(value).__name__}; it must return a number"):
            as_evaluator(lambda _: value)(FirstPixels())  # type: ignore[arg-type,return-value]

    def test_something_else(self) -> None:
        with pytest.raises(EvaluationError, match="evaluate is a int"):
            as_evaluator(3)  # type: ignore[arg-type]


class TestReestimateBatchnorm:
    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3))

    def test_statistics_are_the_means_over_the_batches(self) -> None:
        model = self.network()
        batches = [torch.randn(5, 2, 4, 4), 3 + 2 * torch.randn(5, 2, 4, 4)]
        with torch.no_grad():
            inside = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
        reestimate_batchnorm_(model, batches)
        first = model[1]
        assert isinstance(first, nn.BatchNorm2d)
        torch.testing.assert_close(first.running_mean, torch.stack([x.mean(1) for x in inside]).mean(0))
        torch.testing.assert_close(first.running_var, torch.stack([x.var(1) for x in inside]).mean(0))
        assert first.num_batches_tracked is not None
        assert int(first.num_batches_tracked) == 2

    def test_every_image_counts_the_same(self) -> None:
        batches = [torch.randn(6, 2, 4, 4), 3 + 2 * torch.randn(2, 2, 4, 4)]
        model = self.network()[:2]
        with torch.no_grad():
            inside = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
        reestimate_batchnorm_(model, batches)
        torch.testing.assert_close(model[1].running_mean, torch.cat(inside, 1).mean(1))
        torch.testing.assert_close(model[1].running_var, 0.75 * inside[0].var(1) + 0.25 * inside[1].var(1))

    def test_a_single_image_at_the_end_is_left_out(self) -> None:
        torch.manual_seed(0)
        whole, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)  # of one image it has no variance
        batch = torch.randn(8, 3)
        reestimate_batchnorm_(whole, [batch])
        reestimate_batchnorm_(model, [batch, torch.randn(1, 3), torch.randn(0, 3)])
        assert torch.equal(model.running_mean, whole.running_mean)
        assert torch.equal(model.running_var, whole.running_var)

    def test_nothing_else_changes(self) -> None:
        model = self.network()
        model[3].eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        reestimate_batchnorm_(model, [(torch.randn(8, 2, 2, 2), torch.zeros(8))])
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        names = ("running_mean", "running_var", "num_batches_tracked")
        assert changed == {f"{i}.{name}" for i in (1, 3) for name in names}
        assert [part.training for part in model] == [True, True, True, False]
        assert [model[1].momentum, model[3].momentum] == [0.1, 0.3]

    def test_modes_come_back_after_an_error(self) -> None:
        model = self.network()
        with pytest.raises(RuntimeError):
            reestimate_batchnorm_(model, [torch.randn(8, 5, 2, 2)])
        assert all(part.training for part in model)
        assert model[1].momentum == 0.1

    def test_no_batches(self) -> None:
        model = self.network()
        model[1].running_mean.fill_(7)
        with pytest.raises(DataError, match="at least one batch"):
            reestimate_batchnorm_(model, [])
        assert model[1].running_mean.tolist() == [7, 7, 7]

    def test_frozen_and_absent_batch_norms(self) -> None:
        reestimate_batchnorm_(nn.BatchNorm2d(2, track_running_stats=False), [torch.randn(2, 2, 2, 2)])
        reestimate_batchnorm_(nn.Conv2d(2, 2, 1), [])


def test_evaluating_restores_every_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    inside = []

    def fail() -> None:
        with evaluating(model):
            inside.extend(part.training for part in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [False, False, False]
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
