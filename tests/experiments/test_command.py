"""The command `jaxgen`: recipes by name, runs by their directory, errors in a line."""

import ast
import json
import re
import sys
import types

import pytest

from experiments import __main__ as command
from experiments import ddpm_digits
from experiments.commands import run_command
from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import recipe_of


@pytest.fixture
def called(monkeypatch):
    """What recipes are called with."""
    calls = []
    monkeypatch.setattr(Recipe, "main", lambda self, args: calls.append((self, args)))
    return calls


@pytest.fixture
def run_dir(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    config = {"experiment": "experiments.ddpm_digits", "config": {}}
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_lists_every_recipe(capsys):
    names = [each.name for each in command.entries()]
    assert {"ddpm_cifar", "dcgan_digits", "manga_attributes", "wavenet_audio"} <= set(names)
    assert not {"compare", "samplers", "commands", "__main__"} & set(names)
    assert all(len(each.summary) > 20 for each in command.entries())
    assert command.main(["list", "Digits", "ddpm"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["recipe", "data", "published", "what", "it", "is"]
    assert line.startswith("ddpm_digits  digits  -          DDPM on the embedded UCI digits")


@pytest.mark.parametrize("entry", command.entries(), ids=lambda each: each.name)
def test_a_recipe_says_its_data_and_no_figure_that_its_docstring_lacks(entry):
    assert entry.data
    tree = ast.parse((command.PLACE / f"{entry.name}.py").read_text())
    numbers = re.findall(r"\d+(?:\.\d+)?", ast.get_docstring(tree))
    found = re.findall(r"\d+(?:\.\d+)?", entry.published)
    assert bool(found) == bool(entry.published)
    assert set(found) <= set(numbers)
    if re.search(r"recalled|memory|remember", entry.published):
        assert re.search(r"recalled|memory|remember", ast.get_docstring(tree))


def test_figures_that_were_not_seen_are_marked():
    """What a docstring gives from memory is so in the list."""
    published = {each.name: each.published for each in command.entries()}
    for name in ("maf_power", "nsf_gas", "iddpm_cifar", "meanflow_cifar", "text_to_image"):
        assert "(recalled)" in published[name]


def test_trains_by_name(called):
    assert command.main(["train", "ddpm_digits", "--steps=3"]) == 0
    assert command.main(["train", "experiments.ddpm_digits"]) == 0
    assert called == [
        (ddpm_digits.recipe, ["train", "--steps=3"]),
        (ddpm_digits.recipe, ["train"]),
    ]


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_the_run_says_its_recipe(verb, called, run_dir):
    assert command.main([verb, str(run_dir), "--seed=3"]) == 0
    assert called == [(ddpm_digits.recipe, [verb, "--run-dir", str(run_dir), "--seed=3"])]


def test_tools_have_their_own_flags(capsys):
    assert command.main(["obedience", "none"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["metrics", "--help"])
    assert "--extractor" in capsys.readouterr().out


def test_a_run_opens_where_recipes_are_installed(run_dir, monkeypatch):
    """`experiments.NAME` in a checkout is `jaxgen.experiments.NAME` where there is none."""
    (run_dir / "config.json").write_text(json.dumps({"experiment": "elsewhere.x", "config": {}}))
    with pytest.raises(ValueError, match=r"is a run of 'elsewhere.x', which has no recipe here"):
        recipe_of(run_dir)
    for name in ("jaxgen.elsewhere", "jaxgen.elsewhere.x"):
        module = types.ModuleType(name)
        module.__path__ = []
        module.recipe = Recipe(ddpm_digits.recipe.build, ddpm_digits.recipe.config)
        monkeypatch.setitem(sys.modules, name, module)
    assert recipe_of(run_dir) is module.recipe
    assert module.recipe.name() == "elsewhere.x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no verb 'trian'; near are train"),
        (["list", "nothing-like-this"], "no recipe has the words 'nothing-like-this'"),
        (["train"], "train needs a recipe's name"),
        (["train", "ddpm_digit"], "no recipe 'ddpm_digit'; near are ddpm_digits"),
        (["evaluate"], "evaluate needs a run directory"),
        (["sample", "none"], "none is no run directory"),
    ],
)
def test_bad_input(arguments, message, called, capsys):
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not called


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("train", ["usage: jaxgen train RECIPE [flags]", "jaxgen train RECIPE --help"]),
        ("sample", ["usage: jaxgen sample RUN_DIR [flags]", "jaxgen sample RUN_DIR --help"]),
        ("list", ["usage: jaxgen list [words]"]),
    ],
)
def test_help_of_a_verb_before_its_recipe(verb, expected, called, capsys):
    assert command.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in expected)
    assert not called


def test_recipes_say_how_they_are_called(monkeypatch):
    assert ddpm_digits.recipe.command("sample") == "python -m experiments.ddpm_digits sample"
    module = types.ModuleType("jaxgen.experiments.elsewhere")
    module.recipe = Recipe(ddpm_digits.recipe.build, ddpm_digits.recipe.config)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert module.recipe.command("train") == "jaxgen train elsewhere"
    assert module.recipe.command("sample") == "jaxgen sample RUN_DIR"


def test_interrupted(capsys):
    def action():
        raise KeyboardInterrupt

    assert run_command(action) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help(capsys):
    assert command.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"jaxgen {verb}" in text for verb in command.VERBS)
