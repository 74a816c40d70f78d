import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc.compression.scoring.evaluator import Evaluator
from amc.errors import AmcError, EvaluationError
from amc.recovery import DivergenceError, EpochRecord, FineTuneConfig, StepRecord, finetune, learning_rate
from amc.zoo import create_model, load_data, load_weights, model_info
from tests.recovery.samples import same, small_network, state, stripes


class TestSchedule:
    def test_warm_up_then_cosine(self) -> None:
        config = FineTuneConfig(lr=0.8, warmup=0.2)
        rates = [learning_rate(step, 10, config) for step in range(1, 11)]
        assert rates[:3] == [0.4, 0.8, 0.8]
        cosine = [0.4 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
        assert rates[2:] == pytest.approx(cosine)
        assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)

    def test_without_warm_up(self) -> None:
        assert learning_rate(1, 4, FineTuneConfig(lr=0.1, warmup=0.0)) == 0.1
        assert learning_rate(1, 1, FineTuneConfig(lr=0.1)) == 0.1

    def test_each_optimiser_has_its_own_default(self) -> None:
        assert (FineTuneConfig().peak_lr, FineTuneConfig().decay) == (0.05, 1e-4)
        adamw = FineTuneConfig(optimiser="adamw")
        assert (adamw.peak_lr, adamw.decay) == (1e-3, 0.01)
        recovered = FineTuneConfig().resolved(recovered=True)
        assert (recovered.lr, recovered.weight_decay) == (0.02, 1e-4)
        assert adamw.resolved(recovered=True) == adamw.resolved()
        assert FineTuneConfig(lr=0.3).resolved(recovered=True).lr == 0.3
        given = FineTuneConfig(optimiser="adamw", lr=0.2, weight_decay=0.0)
        assert (learning_rate(1, 1, given), given.decay) == (0.2, 0.0)


class TestFinetune:
    def test_learns(self) -> None:
        data = stripes()
        model = small_network()
        result = finetune(model, data, FineTuneConfig(epochs=15, batch_size=16, lr=0.1))
        assert result.model is model
        assert not model.training
        assert Evaluator(data)(model) > 0.95
        assert result.epochs[-1].loss < 0.5 * result.epochs[0].loss

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        def weights(seed: int) -> Tensor:
            model = small_network()
            torch.manual_seed(torch.seed() % 1000)  # what the global generator holds must not matter
            finetune(model, stripes(64), FineTuneConfig(epochs=2, batch_size=16, seed=seed))
            return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

        assert torch.equal(weights(1), weights(1))
        assert not torch.equal(weights(1), weights(2))

    def test_the_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 2))
        torch.manual_seed(5)
        finetune(model, stripes(32), FineTuneConfig(epochs=1))
        assert torch.equal(torch.rand(3), expected)

    def test_records(self) -> None:
        steps: list[StepRecord] = []
        epochs: list[EpochRecord] = []
        config = FineTuneConfig(epochs=2, batch_size=16, lr=0.1)
        result = finetune(small_network(), stripes(70), config, on_step=steps.append, on_epoch=epochs.append)
        assert [(step.step, step.total_steps, step.epoch) for step in steps] == [
            (i, 8, 1 + (i > 4))
            for i in range(1, 9)  # 70 images: four full batches an epoch
        ]
        assert [step.lr for step in steps] == [learning_rate(i, 8, config) for i in range(1, 9)]
        assert tuple(epochs) == result.epochs
        assert [epoch.epoch for epoch in epochs] == [1, 2]
        assert epochs[1].loss == pytest.approx(sum(step.loss for step in steps[4:]) / 4)
        assert epochs[1].lr == steps[-1].lr

    def test_evaluating_between_epochs_changes_nothing(self) -> None:
        data, scores = stripes(64), []
        watched, alone = small_network(), small_network()
        evaluator = Evaluator(data)
        config = FineTuneConfig(epochs=3, batch_size=16)
        finetune(watched, data, config, on_epoch=lambda record: scores.append(evaluator(watched)))
        finetune(alone, data, config)
        assert len(scores) == 3
        assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))

    def test_a_loader(self) -> None:
        data = stripes()
        loader = DataLoader(TensorDataset(data.images, data.labels), batch_size=32)
        model = small_network()
        result = finetune(model, loader, FineTuneConfig(epochs=10, lr=0.2))
        assert Evaluator(loader)(model) > 0.9
        assert len(result.epochs) == 10

    def test_first_loss_is_smoothed_cross_entropy(self) -> None:
        images, labels = torch.randn(8, 5), torch.arange(8) % 3
        model = nn.Linear(5, 3)
        log_p = model(images).log_softmax(1)
        expected = -(0.8 * log_p[torch.arange(8), labels] + 0.2 * log_p.mean(1)).mean()
        result = finetune(model, [(images, labels)], FineTuneConfig(epochs=1, label_smoothing=0.2))
        assert result.epochs[0].loss == pytest.approx(expected.item())

    def test_first_loss_with_a_teacher(self) -> None:
        images, labels = torch.randn(8, 5), torch.arange(8) % 3
        model, teacher = nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).train()
        p, q = (teacher[0](images) / 2).softmax(1), (model(images) / 2).softmax(1)
        expected = 0.3 * F.cross_entropy(model(images), labels) + 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
        before = copy.deepcopy(teacher.state_dict())
        config = FineTuneConfig(epochs=1, distill=0.7, temperature=2)
        result = finetune(model, [(images, labels)], config, teacher=teacher)
        assert result.epochs[0].loss == pytest.approx(expected.item(), rel=1e-5)
        assert teacher.training
        assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())

    def test_only_weights_decay(self) -> None:
        """With no gradient (all inputs and biases zero) one step multiplies the weights by 1 - lr * decay."""
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, affine=True), nn.Linear(3, 2))
        nn.init.zeros_(model[2].weight)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        config = FineTuneConfig(epochs=1, lr=0.5, weight_decay=0.1, momentum=0.0, warmup=0.0)
        finetune(model, [(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))], config)
        after = list(model.parameters())
        torch.testing.assert_close(after[0].detach(), before[0] * (1 - 0.5 * 0.1))
        assert torch.equal(after[1].detach(), before[1])

    def test_adamw_follows_its_equations(self) -> None:
        """Two steps on a linear layer, written out (Loshchilov and Hutter, algorithm 2)."""
        torch.manual_seed(0)
        model, batch = nn.Linear(3, 2, bias=False), (torch.randn(8, 3), torch.arange(8) % 2)
        weight = model.weight.detach().clone().requires_grad_()
        config = FineTuneConfig(epochs=2, optimiser="adamw", lr=0.1, momentum=0.8, weight_decay=0.3, clip_norm=0)
        m = v = torch.zeros(2, 3)
        for step in (1, 2):
            (gradient,) = torch.autograd.grad(F.cross_entropy(batch[0] @ weight.T, batch[1]), weight)
            rate = learning_rate(step, 2, config)
            m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
            update = (m / (1 - 0.8**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            weight = (weight * (1 - rate * 0.3) - rate * update).detach().requires_grad_()
        finetune(model, [batch], config)
        torch.testing.assert_close(model.weight.detach(), weight.detach())

    def test_what_on_epoch_answers_is_the_score(self) -> None:
        answers = iter([0.25, None])
        config = FineTuneConfig(epochs=2)
        result = finetune(small_network(), stripes(32), config, on_epoch=lambda record: next(answers))
        assert [epoch.score for epoch in result.epochs] == [0.25, None]

    def test_gradient_is_clipped(self) -> None:
        model = nn.Linear(1, 2, bias=False)
        before = model.weight.detach().clone()
        config = FineTuneConfig(epochs=1, lr=1.0, weight_decay=0, momentum=0.0, warmup=0.0, clip_norm=0.25)
        finetune(model, [(torch.full((1, 1), 1e4), torch.tensor([int(before.argmin())]))], config)
        assert float((model.weight.detach() - before).norm()) == pytest.approx(0.25, rel=1e-3)

    def test_divergence_gives_back_the_last_good_weights(self) -> None:
        data = stripes(64)
        good = small_network()
        config = FineTuneConfig(epochs=2, batch_size=16)
        states: list[dict[str, Tensor]] = []

        class Poisoned:
            """The second epoch holds a NaN."""

            epoch = 0

            def __len__(self) -> int:
                return 64

            def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
                self.epoch += 1
                for i, (images, labels) in enumerate(data.training_batches(batch_size, generator)):
                    yield images * (float("nan") if (self.epoch, i) == (2, 3) else 1), labels

        def remember(record: EpochRecord) -> None:
            states.append({key: value.clone() for key, value in good.state_dict().items()})

        with pytest.raises(AmcError, match=r"loss is nan in epoch 2; lower the learning rate \(0\.05\)"):
            finetune(good, Poisoned(), config, on_epoch=remember)
        assert len(states) == 1
        assert all(torch.equal(states[0][key], value) for key, value in good.state_dict().items())

    def test_weights_that_overflow_under_a_finite_loss_are_found(self) -> None:
        model = nn.Linear(1, 2, bias=False)
        before = state(model)
        config = FineTuneConfig(epochs=1, lr=1e30, clip_norm=0, momentum=0.0, warmup=0.0)
        batch = (torch.full((1, 1), 1e19), model.weight.detach().flatten().argmin().reshape(1))
        with pytest.raises(AmcError, match=r"diverged: 'weight' is no longer finite in epoch 1; lower .* \(1e\+30\)"):
            finetune(model, [batch], config)
        assert torch.equal(model.weight.detach(), before["weight"])

    def test_statistics_that_overflow_under_finite_weights_are_found(self) -> None:
        """Weights of 1e22 give activations whose square is above float32; in training 1 / inf = 0 hides that."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2), nn.BatchNorm1d(2, affine=False))
        before = state(model)
        config = FineTuneConfig(
            epochs=1, batch_size=16, lr=1e22, clip_norm=1.0, momentum=0.0, weight_decay=0.0, warmup=0.0
        )
        with pytest.raises(
            DivergenceError, match=r"'2\.running_var' is no longer finite in epoch 1; lower the learning"
        ):
            finetune(model, stripes(32), config)
        assert same(state(model), before)

    @pytest.mark.parametrize("ema", [0.0, 0.5])
    def test_a_network_that_cannot_be_scored_any_more_has_diverged(self, ema: float) -> None:
        """The last step leaves finite weights of about 1e30, and no loss comes after it."""
        data, model = stripes(16), small_network()
        before, evaluator = state(model), Evaluator(data)
        config = FineTuneConfig(epochs=1, batch_size=16, lr=1e30, ema=ema)
        with pytest.raises(
            DivergenceError, match=r"diverged: the network's logits are NaN in epoch 1; lower the .* \(1e\+30\)"
        ) as raised:
            finetune(model, data, config, on_epoch=lambda record: evaluator(model))
        assert isinstance(raised.value.__context__, EvaluationError)
        assert same(state(model), before)

    def test_a_score_that_fails_for_another_reason_is_no_divergence(self) -> None:
        data, model = stripes(16), small_network()
        before = state(model)

        def score(record: EpochRecord) -> float:
            raise EvaluationError("evaluate fails on the fine-tuned network (KeyError: 'fps')")

        with pytest.raises(EvaluationError, match=r"KeyError: 'fps'\); it failed after epoch 1 of fine-tuning"):
            finetune(model, data, FineTuneConfig(epochs=1, batch_size=16), on_epoch=score)
        assert same(state(model), before)

    def test_what_was_infinite_before_may_stay_so(self) -> None:
        model = nn.Linear(5, 3)
        model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
        result = finetune(model, [(torch.randn(8, 5), torch.arange(8) % 3)], FineTuneConfig(epochs=2))
        assert len(result.epochs) == 2

    def test_misuse(self) -> None:
        with pytest.raises(AmcError, match=r"distillation with weight 0\.5 needs a teacher"):
            finetune(small_network(), stripes(8), FineTuneConfig(distill=0.5))
        with pytest.raises(AmcError, match="cannot tell how many batches a generator has"):
            finetune(small_network(), (batch for batch in [(torch.zeros(1), torch.zeros(1))]))
        with pytest.raises(AmcError, match="got no batches"):
            finetune(small_network(), [])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"lr": 0.0},
            {"momentum": 1.0},
            {"warmup": 1.0},
            {"distill": 1.5},
            {"lr": float("nan")},
            {"lr": float("inf")},
            {"optimiser": "adam"},
            {"precision": "float8"},
            {"ema": 1.0},
            {"weight_decay": -0.1},
            {"seed": -1},
        ],
    )
    def test_config_out_of_range(self, wrong: dict[str, object]) -> None:
        with pytest.raises(AmcError, match=next(iter(wrong)) + " is out of range"):
            FineTuneConfig(**{**asdict(FineTuneConfig()), **wrong})  # type: ignore[arg-type]


class Wrapped(nn.Module):
    """A network whose output holds the logits of another in its own way."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.wrap = small_network(), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.network(images))


class Output(dict[str, Tensor]):
    """As of Hugging Face: a mapping with attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


@pytest.mark.parametrize(
    "wrap",
    [lambda x: Output(hidden=2 * x, logits=x), lambda x: (x, 2 * x), lambda x: {"out": x}],
    ids=["attribute", "tuple", "mapping"],
)
def test_logits_are_found_in_what_libraries_return(wrap: Callable[[Tensor], Any]) -> None:
    plain, wrapped = small_network(), Wrapped(wrap)
    config = FineTuneConfig(epochs=1, batch_size=16, distill=0.5)
    finetune(plain, stripes(64), config, teacher=small_network(3))
    teacher = Wrapped(wrap)
    teacher.network = small_network(3)
    finetune(wrapped, stripes(64), config, teacher=teacher)
    assert same(state(plain), state(wrapped.network))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda x: [{"boxes": x, "labels": x}], "gives boxes, labels, and none is named logits"),
        (lambda x: "a text", "gives a str, not logits"),
        (lambda x: x[:, 0], r"gives \[16\] for labels \[16\], and fine-tuning needs logits"),
        (lambda x: x[:, :, None, None], r"gives \[16, 2, 1, 1\] for labels \[16\]"),
        (lambda x: x[:4], r"gives \[4, 2\] for labels \[16\]"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_with_the_remedy(wrap: Callable[[Tensor], Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=f"{words}.*in your own loop$"):
        finetune(Wrapped(wrap), stripes(64), FineTuneConfig(epochs=1, batch_size=16))


def test_a_damaged_digits_network_recovers() -> None:
    info = model_info("digits_cnn")
    assert info is not None
    assert info.weights is not None
    model, data = create_model("digits_cnn"), load_data("digits")
    load_weights(model, info.weights)
    evaluator = Evaluator(data.test)
    dense = evaluator(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.7 * parameter.std() * noise
    damaged = evaluator(model)
    finetune(model, data.train, FineTuneConfig(epochs=4, batch_size=64))
    assert damaged < dense - 0.1
    assert evaluator(model) > dense - 0.03
