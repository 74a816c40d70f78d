"""The options of the commands are the fields of the settings: their names, defaults, types and spellings."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from amc.cli.app import app
from amc.cli.options import OTHER, PanelCommand, takes_settings
from amc.compression.settings import SearchConfig
from amc.compression.sweep_settings import SweepConfig
from amc.deploy.measure import MeasureSettings
from amc.errors import AmcError
from amc.pruning.methods import MethodOptions
from amc.run.settings import (
    CandidateConfig,
    FineTuneConfig,
    Given,
    Option,
    Panel,
    ScheduleConfig,
    SessionConfig,
    Source,
    StudyConfig,
    TimingConfig,
    options_of,
    spelled,
)

ROOT = Path(__file__).parents[2]
COMMANDS: Any = get_command(app)

SETTINGS: dict[str, tuple[type[Any], ...]] = {
    "search": (Source, SearchConfig, ScheduleConfig),
    "sweep": (Source, SearchConfig, SweepConfig),
    "study": (Source, SearchConfig, StudyConfig),
    "finetune": (FineTuneConfig, CandidateConfig, SessionConfig),
    "latency": (TimingConfig,),
}
OWN = {
    "search": {"out_dir", "recipe", "log", "as_json"},
    "sweep": {"out_dir", "recipe", "log", "as_json"},
    "study": {"out_dir", "dry_run", "recipe", "log", "as_json"},
    "finetune": {"run", "recipe", "log", "as_json"},
    "latency": {"target", "weights", "input_shape", "finetuned", "as_json"},
}
ARGUMENTS = {
    "search": ["MODEL", "--out", "RUN"],
    "sweep": ["MODEL", "--out", "RUN"],
    "study": ["MODEL", "--out", "RUN"],
    "finetune": ["RUN"],
    "latency": ["RUN"],
}
NO_OPTION = {  # fields that nobody types
    Source: {"command", "preprocessing", "parent", "repeat", "input_shape"},
    FineTuneConfig: {"momentum"},
    SearchConfig: {"uniform_first"},
}
SPELLINGS = {
    "search": """
        MODEL --out --part --count --weights --data --budget --reward --max-drop --minimise --confidence
        --schedule --round-epochs
        --round-lr --episodes --time-limit --patience --agent --agent-option --baseline --random-share
        --batch --workers --ray --score-timeout --seed --evaluate
        --score --method --round-to --max-sparsity
        --max-sparsity-linear --ranking --reconstruct --no-reconstruct
        --bn-images --bn-rule --calibration-images
        --recover --recover-time --finalists --search-images
        --image-size --bf16 --no-bf16 --engine --certify --lock --only --approximate --no-approximate --runtime
        --latency-threads --device-url --warm-start
        --token-file --device --pretrained --no-pretrained --test --no-test --recipe --log --json
    """,
    "sweep": """
        MODEL --out --part --count --weights --data --metric --from --to --points --budget --reward --max-drop
        --minimise --confidence
        --episodes --time-limit --patience --agent --agent-option --baseline --random-share
        --batch --workers --ray --score-timeout --seed --evaluate --score
        --method --round-to --max-sparsity
        --max-sparsity-linear --ranking --reconstruct --no-reconstruct
        --bn-images --bn-rule --calibration-images
        --recover --recover-time --finalists --search-images
        --image-size --bf16 --no-bf16 --engine --certify --lock --only --approximate --no-approximate --runtime
        --latency-threads --device-url --warm-start
        --token-file --device --pretrained --no-pretrained --test --no-test --recipe --log --json
    """,
    "study": """
        MODEL --out --part --count --dry-run --weights --data --budgets --metrics --methods --rewards --max-drops
        --runtimes --epochs
        --seeds --budget --reward --max-drop --minimise --confidence
        --episodes --time-limit --patience --agent --agent-option --baseline --random-share
        --batch --workers --ray --score-timeout --seed --evaluate --score
        --method --round-to --max-sparsity
        --max-sparsity-linear --ranking --reconstruct --no-reconstruct
        --bn-images --bn-rule --calibration-images
        --recover --recover-time --finalists --search-images
        --image-size --bf16 --no-bf16 --engine --certify --lock --only --approximate --no-approximate --runtime
        --latency-threads --device-url --warm-start
        --token-file --device --pretrained --no-pretrained --test --no-test --recipe --log --json
    """,
    "finetune": """
        RUN --epochs --lr --batch-size --optimiser --optimizer --weight-decay --warmup --label-smoothing --distill
        --temperature --ema --clip-norm --precision --seed --candidates --candidate-epochs --checkpoint-every --restart
        --device --ray --recipe --log --json
    """,
    "latency": """
        MODEL|RUN --runtime --threads --batch --rounds --precision --max-seconds --fp16 --weights --input --finetuned
        --searched --device-url --token-file --json
    """,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An option, and the field that it is made of."""

    command: str
    field: dataclasses.Field[Any]
    annotation: Any
    option: Option

    @property
    def parameter(self) -> Any:
        """What typer made of it."""
        name = self.option.name or self.field.name
        return next(each for each in COMMANDS.commands[self.command].params if each.name == name)

    def parsed(self, *words: str) -> Any:
        """The option's value after these words on the command line."""
        context = COMMANDS.commands[self.command].make_context("amc", [*ARGUMENTS[self.command], *words])
        return context.params[self.parameter.name]


def cases() -> Iterator[Case]:
    for command, kinds in SETTINGS.items():
        for kind in kinds:
            hints, options = get_type_hints(kind), options_of(kind)
            for field in dataclasses.fields(kind):
                if field.name in options and options[field.name].metavar is None:
                    yield Case(command, field, hints[field.name], options[field.name])


every_option = pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.command}-{case.field.name}")


@every_option
def test_an_option_has_the_default_of_its_field(case: Case) -> None:
    default = case.field.default
    if isinstance(default, tuple):
        assert tuple(case.parameter.default) == tuple(case.parsed() or ()) == default
    else:
        assert case.parameter.default == case.parsed() == default


@every_option
def test_an_option_has_the_type_of_its_field(case: Case) -> None:
    """What is written on the command line arrives as a value of that type, or is refused."""
    kind, name = kind_of(case.annotation), case.parameter.opts[0]
    if kind is bool:
        assert case.parsed(name) is True
        assert all(case.parsed(spelling) is False for spelling in case.parameter.secondary_opts)
    elif kind is tuple:
        assert tuple(case.parsed(name, "a", name, "b.*")) == ("a", "b.*")
    elif kind in (int, float):
        text = "7" if kind is int else "0.25"
        assert (case.parsed(name, text), type(case.parsed(name, text))) == (kind(text), kind)
        with pytest.raises(Exception, match="valid") as refusal:
            case.parsed(name, "0.5" if kind is int else "half")
        assert refusal.value.exit_code == 2  # type: ignore[attr-defined]
    elif case.option.is_path:
        assert Path(case.parsed(name, "a/b")) == Path("a/b")
    else:
        assert kind in (str, Literal)
        assert case.parsed(name, "text") == "text"


def kind_of(annotation: Any) -> Any:
    """The class of the values, without None; `Literal` for one of several words."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kind = next(part for part in parts if part is not type(None))
    return get_origin(kind) or kind


@pytest.mark.parametrize("command", SETTINGS)
def test_every_field_is_an_option_and_every_option_a_field(command: str) -> None:
    named = {option.name or field for kind in SETTINGS[command] for field, option in options_of(kind).items()}
    assert {parameter.name for parameter in COMMANDS.commands[command].params} == named | OWN[command]
    for kind in SETTINGS[command]:
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields - set(options_of(kind)) == NO_OPTION.get(kind, set())


@pytest.mark.parametrize("command", SETTINGS)
def test_no_spelling_is_lost(command: str) -> None:
    spellings: set[str] = set()
    for parameter in COMMANDS.commands[command].params:
        is_argument = parameter.param_type_name == "argument"
        spellings |= {parameter.metavar} if is_argument else {*parameter.opts, *parameter.secondary_opts}
    assert spellings == set(SPELLINGS[command].split())


@pytest.mark.parametrize("command", SETTINGS)
def test_every_option_has_help_and_a_known_panel(command: str) -> None:
    for parameter in COMMANDS.commands[command].params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option" and parameter.name not in OWN[command] - {"out_dir", "as_json"}:
            assert parameter.rich_help_panel in set(Panel), parameter.name


@pytest.mark.parametrize(
    ("command", "panels"),
    [
        ("search", ["Arguments", "Budget", "Search", "Data", "Pruning", "Latency", "Output", OTHER]),
        ("finetune", ["Arguments", "Training", "Candidates", "Session", "Output", OTHER]),
        ("latency", ["Arguments", "Latency", "Output", OTHER]),
    ],
)
def test_help_has_a_section_for_each_panel(command: str, panels: list[str]) -> None:
    shown = CliRunner().invoke(app, [command, "--help"]).stdout
    assert re.findall(r"^(\w+):$", shown, re.M) == panels
    assert all(len(line) <= 80 for line in shown.splitlines())
    sections = dict(zip(panels, re.split(r"^\w+:$", shown, flags=re.M)[1:], strict=True))
    for case in (each for each in cases() if each.command == command):
        assert case.option.panel is not None
        assert f"  {case.parameter.opts[0]}" in sections[case.option.panel]


def probe(command: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `command` with the words of a command line; raises what it raises."""
    one = typer.Typer(rich_markup_mode=None)
    one.command(cls=PanelCommand)(takes_settings(command))

    def run(*words: str) -> None:
        outcome = CliRunner().invoke(one, list(words))
        if outcome.exception is not None:
            raise outcome.exception

    return run


def test_a_command_gets_its_settings_or_only_the_given_ones(tmp_path: Path) -> None:
    got: list[Any] = []

    def command(
        source: Source,
        rounds: ScheduleConfig,
        search: Given[SearchConfig],
        place: Annotated[str, typer.Option("--place")] = "here",
    ) -> None:
        got.append((source, rounds, search, place))

    probe(command)("net", "--baseline", "deep", "--baseline", "none", "--certify", "3", "--place", "there")
    source, rounds, search, place = got.pop()
    assert (source, rounds, place) == (Source("net"), ScheduleConfig(), "there")
    assert search == Given(SearchConfig, {"baselines": ["deep", "none"], "keep_sets": 3})  # 3 is also the default
    assert search.make() == SearchConfig(baselines=("deep",), keep_sets=3)
    probe(command)(
        "net", "--weights", str(tmp_path / "a" / ".." / "w"), "--no-test", "--round-epochs", "7", "--device", "cpu"
    )
    source, rounds, search, _ = got.pop()
    assert source == Source("net", weights=str(tmp_path.resolve() / "w"), test=False, device="cpu")
    assert rounds == ScheduleConfig(round_epochs=7)
    assert search.make() == SearchConfig()


def test_a_command_line_gives_the_settings_that_it_is_spelled_from(tmp_path: Path) -> None:
    got: list[Any] = []

    def command(source: Source, config: Given[SearchConfig], rounds: ScheduleConfig) -> None:
        got.append((source, config, rounds))

    weights = str(tmp_path / "a place" / "w.safetensors")
    for source, config, rounds in (
        (Source("net"), SearchConfig(), ScheduleConfig()),
        (
            Source("a net", weights=weights, data="cifar10:/a b", search_images=9, test=False),
            SearchConfig(
                budget="macs<=30%,size<=1MB", baselines=("none",), keep_sets=0, reconstruct=False, bf16=True,
                lock=("a.*", "b c"), time_limit="30m", max_sparsity=0.5, agent_options=("sigma=0.3",), random_share=1.0,
            ),
            ScheduleConfig("0.5,0.3", round_lr=0.01),
        ),
    ):  # fmt: skip
        words = shlex.split(spelled("search", source, config, rounds))
        assert words[:2] == ["amc", "search"]
        probe(command)(*words[2:])
        parsed = got.pop()
        assert (parsed[0], parsed[1].make(), parsed[2]) == (source, config, rounds)
        again = shlex.split(spelled("search", *parsed))
        assert sorted(again) == sorted(words)
    assert (
        spelled("search", Source("net"), Given(SearchConfig, {"episodes": 400}), ScheduleConfig()) == "amc search net"
    )
    assert spelled("finetune NEW", FineTuneConfig(optimiser="adamw")) == "amc finetune NEW --optimiser adamw"


def test_settings_are_checked_before_the_command_runs() -> None:
    def command(config: FineTuneConfig) -> None:
        raise AssertionError(config)

    with pytest.raises(AmcError, match="fine-tuning epochs is out of range: 0; it must be at least 1"):
        probe(command)("--epochs", "0")


def test_what_is_not_given_keeps_its_value() -> None:
    before = FineTuneConfig(epochs=9, lr=0.3, ema=0.9)
    assert Given(FineTuneConfig, {"epochs": 2}).over(before) == FineTuneConfig(epochs=2, lr=0.3, ema=0.9)
    assert Given(FineTuneConfig, {"epochs": 5}).over(before).epochs == 5  # the default, given
    assert Given(FineTuneConfig).over(before) == before
    assert Given.all_of(before).over(FineTuneConfig()) == before


def test_the_agent_is_no_baseline_of_its_own() -> None:
    assert SearchConfig(agent="uniform").baselines == ("random",)
    assert SearchConfig(agent="random").baselines == ("uniform",)
    assert SearchConfig(agent="random", baselines=("random", "deep")).baselines == ("deep",)
    assert SearchConfig(baselines=("none",)).baselines == ()


def test_a_source_survives_its_record() -> None:
    small = Source("resnet20", data="cifar10:/data")
    names = ["command", "model", "weights", "data", "evaluate", "search_images", "image_size", "test", "device"]
    assert list(small.to_json()) == names
    assert Source.from_json(small.to_json() | {"episodes": 400}) == small
    whole = dataclasses.replace(
        small, weights="w", evaluate="a:b", search_images=9, image_size=32, test=False, command="demo",
        preprocessing={"mean": [0.5]}, parent="../a", repeat="amc search …", input_shape=(3, 32, 32),
        pretrained=True,
    )  # fmt: skip
    assert list(whole.to_json()) == [*names, "preprocessing", "parent", "repeat", "input_shape", "pretrained"]
    assert Source.from_json(whole.to_json() | {"input_shape": [3, 32, 32]}) == whole


def commands_in(path: Path) -> list[str]:
    """The `amc …` lines of a page's code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("amc ")]


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands_in(page)])
def test_commands_of_the_documentation_parse(line: str) -> None:
    words = [word for word in shlex.split(line.replace("…", ""), comments=True) if word][1:]
    command = COMMANDS
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    if command.name == "search" and "MODEL" not in words and words[0].startswith("-"):
        words.insert(0, "MODEL")  # for what the page leaves out
    if command.name == "search" and "--out" not in words:
        words += ["--out", "RUN"]
    assert command.make_context(command.name, words).params


def test_a_measurement_and_the_command_for_it_have_the_same_defaults() -> None:
    measuring, timing = dataclasses.asdict(MeasureSettings()), dataclasses.asdict(TimingConfig())
    shared = measuring.keys() & timing.keys()
    assert shared == {"rounds", "precision", "max_seconds"}
    assert {name: measuring[name] for name in shared} == {name: timing[name] for name in shared}


def test_a_search_and_its_method_have_the_same_defaults() -> None:
    for field in dataclasses.fields(MethodOptions):
        assert field.default == SearchConfig.__dataclass_fields__[field.name].default, field.name
