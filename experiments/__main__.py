"""The command `jaxgen`: every recipe and every tool by one name.

    jaxgen list [words]                   every recipe, or those with the words, a line each
    jaxgen train RECIPE [flags]           trains, or resumes: jaxgen train ddpm_digits
    jaxgen sample RUN_DIR [flags]         samples and pictures of a trained run
    jaxgen evaluate RUN_DIR [flags]       its figures on held-out examples
    jaxgen measure RUN_DIR [flags]        its samples' FID, precision and recall
    jaxgen export RUN_DIR [flags]         its weights as one file, by which others sample it
    jaxgen reconstructions RUN_DIR [...]  PSNR and LPIPS of what it encodes and decodes
    jaxgen obedience RUN_DIR [flags]      whether it makes what it is asked for
    jaxgen samplers RUN_DIR [flags]       a denoiser through every solver
    jaxgen guide RUN_DIR [flags]          a denoiser led by a classifier
    jaxgen report RUN_DIR [flags]         the run as one page: curves, samples, figures
    jaxgen compare [flags]                the families side by side, as one page
    jaxgen distances [flags]              how distances behave on images with labels
    jaxgen metrics [flags]                distances between two sets of images
    jaxgen data prepare NAME [flags]      makes a TFDS set readable

Each has its own --help; that of `train` is a recipe's (jaxgen train ddpm_digits --help), that of
`sample` and `evaluate` a run's. `python -m experiments` is the same in a checkout.
"""

import ast
import difflib
import importlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import recipe_of

from .commands import run_command

PLACE = Path(__file__).parent
OF_RUNS = ("sample", "evaluate")
RECIPES = ("list", "train", *OF_RUNS)
TOOLS = {
    "measure": f"{__package__}.measure",
    "export": f"{__package__}.export",
    "reconstructions": f"{__package__}.reconstructions",
    "obedience": f"{__package__}.obedience",
    "samplers": f"{__package__}.samplers",
    "guide": f"{__package__}.guide",
    "compare": f"{__package__}.compare",
    "report": f"{__package__}.report",
    "distances": f"{__package__}.distances",
    "metrics": "jaxgen.metrics.__main__",
    "data": "jaxgen.data.__main__",
}
VERBS = (*RECIPES, *TOOLS)


class Entry(NamedTuple):
    """A recipe as `list` shows it.

    Attributes:
        name: Name of its module.
        data: Data of the recipe in a few words.
        published: Figure of the paper, or "".
        summary: First line of the module's docstring.
    """

    name: str
    data: str
    published: str
    summary: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, but for recipes, which exit themselves."""
    verb, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        return run_command(lambda: print(__doc__))
    if verb in RECIPES and {"-h", "--help"} & set(arguments[:1]):
        return run_command(lambda: print(_usage(verb)))
    if verb in TOOLS:
        return int(importlib.import_module(TOOLS[verb]).main(arguments) or 0)
    actions: dict[str, Callable[[], object]] = {
        "list": lambda: show(arguments),
        "train": lambda: train(arguments),
        **{each: lambda: use(verb, arguments) for each in OF_RUNS},
    }
    return run_command(actions.get(verb, lambda: _unknown("verb", verb, VERBS)))


def entries() -> list[Entry]:
    """Every recipe, by name, without importing any."""
    recipes = []
    for path in sorted(PLACE.glob("*.py")):
        tree = ast.parse(path.read_text())
        for call in filter(None, map(_recipe_in, tree.body)):
            first, *_ = (ast.get_docstring(tree) or "").splitlines() or [""]
            words = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
            recipes.append(
                Entry(path.stem, words.get("data", ""), words.get("published", ""), first)
            )
    return recipes


def _recipe_in(node: ast.stmt) -> ast.Call | None:
    """The call of `recipe = Recipe(...)`, or None of another statement."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return None
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    return node.value if "recipe" in names else None


def show(arguments: Sequence[str]) -> None:
    """Prints the recipes that have every word, a line each: data, published figure, summary.

    On a terminal a line ends where the window does.

    Args:
        arguments: Words; of none all recipes are shown.
    """
    shown = [
        each
        for each in entries()
        if all(word.lower() in " ".join(each).lower() for word in arguments)
    ]
    if not shown:
        raise ValueError(f"no recipe has the words {' '.join(arguments)!r}: jaxgen list shows all")
    head = Entry("recipe", "data", "published", "what it is")
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for entry in (head, *shown):
        cells = (f"{cell or '-':{width}}" for cell, width in zip(entry, widths, strict=True))
        print("  ".join(cells)[:room].rstrip())


def train(arguments: Sequence[str]) -> None:
    """Trains the recipe that is named first, by its own command line, which exits.

    Args:
        arguments: Name of the recipe, and its flags.
    """
    names = [each.name for each in entries()]
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("train needs a recipe's name: jaxgen list shows them")
    name = arguments[0].removeprefix("experiments.")
    if name not in names:
        _unknown("recipe", name, names)
    recipe: Recipe = importlib.import_module(f"{__package__}.{name}").recipe
    recipe.main(["train", *arguments[1:]])


def use(verb: str, arguments: Sequence[str]) -> None:
    """Does what a verb says with the run that is named first, by its recipe, which exits.

    Args:
        verb: Verb of the recipe's command line.
        arguments: Run directory, and the recipe's flags.
    """
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"{verb} needs a run directory: jaxgen {verb} RUN_DIR")
    run_dir = arguments[0]
    recipe_of(run_dir).main([verb, "--run-dir", run_dir, *arguments[1:]])


def _usage(verb: str) -> str:
    """What the help of a verb says before a recipe or a run is named."""
    line = next(line for line in (__doc__ or "").splitlines() if f"jaxgen {verb} " in line)
    if verb == "list":
        return f"usage: {line.strip()}"
    what = "RECIPE" if verb == "train" else "RUN_DIR"
    return f"usage: {line.strip()}\n\nThe flags: jaxgen {verb} {what} --help"


def _unknown(what: str, given: str, known: Sequence[str]) -> None:
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"; near are {', '.join(near)}" if near else ""
    raise ValueError(f"no {what} {given!r}{hint} (jaxgen --help, jaxgen list)")


def run() -> None:
    """The command as it is installed: exits with the code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
