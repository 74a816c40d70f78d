"""Recipes: every one of the project's is sound, and a recipe gives defaults that the command line overrides."""

import tomllib
from pathlib import Path

import pytest

from amc.cli.recipes import load_recipe
from amc.compression.settings import SearchConfig
from amc.errors import AmcError
from amc.run.settings import parse_schedule
from amc.zoo import model_info
from tests.commands import amc

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
OPTIONS = {"model", "budget", "baseline", "episodes", "method", "reward", "schedule", "round_epochs"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_paper_are_sound(path: Path) -> None:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    chosen = content["search"]
    names = {"budget", "episodes", "method", "reward"}
    config = SearchConfig(**{name: value for name, value in chosen.items() if name in names})
    assert config.budgets or config.reward == "r_params"
    assert model_info(chosen["model"]) is not None
    if "schedule" in chosen:  # its rounds fine-tune
        assert parse_schedule(chosen["schedule"])[-1] == config.budgets[0].fraction
        assert chosen["round_epochs"] > 0
    else:
        assert set(content["finetune"]) == {"epochs"}
    if "waiting" in content:
        with pytest.raises(AmcError, match=f"waits for {content['waiting']}"):
            load_recipe(path, "search", OPTIONS)
    else:
        assert load_recipe(path, "search", OPTIONS) == chosen


def test_a_recipe_gives_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[search]\nmodel = "digits_cnn"\nbudget = "params<=60%"\nepisodes = 9\nbaseline = ["deep"]\nkeep_sets = 0\n'
        "search_images = 50\ncalibration_images = 64\ntest = false\n"
        'recover = "none"\nfinalists = 0\n[finetune]\nepochs = 1\n'
    )
    done = amc("search", "--recipe", recipe, "--episodes", 3, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.stderr
    assert '"budget": "params<=60%"' in done.stdout
    assert '"episodes": 3' in done.stdout
    assert '"deep"' in done.stdout
    tuned = amc("finetune", tmp_path / "run", "--recipe", recipe)
    assert tuned.code == 0, tuned.stderr
    assert len((tmp_path / "run" / "finetune.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[search]\nepisode = 3\n", "unknown option 'episode'"),
        ("[search\n", "is not valid TOML"),
        ("[finetune]\nepochs = 1\n", "needs a table [search]"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path: Path, text: str | None, part: str) -> None:
    recipe = tmp_path / "recipe.toml"
    if text is not None:
        recipe.write_text(text)
    done = amc("search", "digits_cnn", "--recipe", recipe, "--out", tmp_path / "run")
    assert done.code == 2
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
