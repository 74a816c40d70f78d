"""Settings of a wrong kind or out of range, from Python and on the command line: one line with the rule."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amc.compression.settings import SearchConfig
from amc.errors import AmcError
from amc.recovery import FineTuneConfig
from tests.commands import amc

CONFIGS = (SearchConfig, FineTuneConfig)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--seed", 2**64), "seed must be at least 0 and below 2^63, got 18446744073709551616"),
        (("--schedule", "0.5,0.4", "--seed", 2**64), "seed must be at least 0 and below 2^63"),
        (
            ("--time-limit", "0"),
            "time-limit must be a time such as 90s, 30m or 1.5h, above 0 and at most 10,000,000s, got",
        ),
        (("--time-limit", "soon"), "time-limit must be a time such as 90s, 30m or 1.5h, above 0"),
        (("--patience", "0"), "patience must be at least 1, got 0"),
        (("--schedule", "0.5,0.4", "--time-limit", "-5m"), "time-limit must be a time such as 90s, 30m or 1.5h"),
        (("--method", "2:5"), "method 2:5 leaves every layer as it is, conv1 (its 1 inputs per group are no multiple"),
        (("--method", "blocks:999x999"), "leaves every layer as it is, conv1 (it is a single unit of this pattern)"),
        (("--budget", "macs<=50%,"), "budget 'macs<=50%,' is malformed: it has a comma too many"),
    ],
)
def test_a_mistake_is_one_line_with_the_rule(options: tuple[object, ...], complaint: str, tmp_path: Path) -> None:
    assert complaint in amc("search", "digits_cnn", "--out", "run", *options, cwd=tmp_path).complaint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seed": 2**64}, "seed is out of range: 18446744073709551616; it must be at least 0 and below 2^63"),
        ({"optimiser": "lion"}, "optimiser is out of range: lion; it must be sgd or adamw"),
        ({"precision": "float8"}, "precision is out of range: float8; it must be float32, bfloat16 or float16"),
        ({"lr": 0}, "lr is out of range: 0.0; it must be above 0 and finite"),
        ({"label_smoothing": 1}, "label_smoothing is out of range: 1.0; it must be in [0, 1)"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"optimiser": ["sgd"]}, "optimiser must be text, got ['sgd']"),
    ],
)
def test_fine_tuning_is_refused_with_the_rule(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AmcError) as refusal:
        FineTuneConfig(**settings)
    assert str(refusal.value) == f"fine-tuning {complaint}"


@pytest.mark.parametrize("config", CONFIGS)
def test_no_setting_takes_what_is_neither_text_nor_number(config: type[SearchConfig | FineTuneConfig]) -> None:
    for field in dataclasses.fields(config):
        with pytest.raises(AmcError, match=f"{field.name} must be "):
            config(**{field.name: object()})


def test_numbers_of_numpy_are_taken_as_pythons() -> None:
    search = SearchConfig(
        episodes=np.int64(5),
        seed=np.uint8(7),
        max_sparsity=np.float32(0.5),
        bf16=np.True_,
        lock=["a", "b.*"],  # type: ignore[arg-type]
    )
    assert search == SearchConfig(episodes=5, seed=7, max_sparsity=0.5, bf16=True, lock=("a", "b.*"))
    tuning = FineTuneConfig(epochs=np.int32(2), lr=np.float64(0.25), momentum=np.int64(0))
    assert tuning == FineTuneConfig(epochs=2, lr=0.25, momentum=0.0)
    for config in (search, tuning):
        assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_the_largest_seed_is_one_that_every_generator_takes(config: type[SearchConfig | FineTuneConfig]) -> None:
    assert config(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(AmcError, match="seed"):
        config(seed=2**63)
