"""A recipe: a paper's table of settings as a value, and the function that builds its experiment."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment

C = TypeVar("C", bound=RunConfig)
INSTALLED = "jaxgen."
"""What stands before the name of a recipe's module where it is installed with the package."""


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """An experiment that can be run; `experiments/NAME.py` has one by the name `recipe`.

        recipe = Recipe(build, Config(run_dir="runs/NAME", steps=50_000), data="MNIST")

        if __name__ == "__main__":
            recipe.main()

    A variant is `Recipe(build, dataclasses.replace(recipe.config, ...))`.

    Attributes:
        build: Function from a config to its experiment.
        config: Config of the recipe; its fields are the flags of the command line.
        data: Data of the recipe in a few words, for lists.
        published: Figure of the paper in a few words, as the module's docstring has it; "" where
            there is none to compare with.
    """

    build: Callable[[C], Experiment]
    config: C
    data: str = ""
    published: str = ""

    def main(self, args: Sequence[str] | None = None) -> None:
        """Run the recipe from the command line, and exit (`jaxgen.training.cli.main`).

        Args:
            args: Arguments of the command line, `sys.argv[1:]` by default.
        """
        from jaxgen.training import cli  # loading a recipe should not load the command line

        cli.main(self, args)

    def module(self) -> Any:
        """The module whose `recipe` this is.

        Raises:
            ValueError: If no module that is loaded has it.
        """
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("recipe") is self:  # it may be None
                return module
        raise ValueError("a recipe must be in a module by the name 'recipe'")

    def name(self) -> str:
        """The name of the recipe's module, which run directories store.

        The same of recipes that are installed with the package and of those in a checkout.
        """
        return self._full_name().removeprefix(INSTALLED)

    def command(self, verb: str) -> str:
        """What a shell calls for a verb of the recipe, before the flags.

        Args:
            verb: Verb of the command line: `train`, `sample` or `evaluate`.

        Returns:
            `jaxgen train NAME` and `jaxgen sample RUN_DIR`, where the recipe is installed with the
            package; otherwise `python -m MODULE train` and so on.
        """
        if not self._full_name().startswith(INSTALLED):
            return f"python -m {self.name()} {verb}"
        return f"jaxgen {verb} " + (
            self.name().rpartition(".")[2] if verb == "train" else "RUN_DIR"
        )

    def _full_name(self) -> str:
        module = self.module()
        name: str = module.__spec__.name if module.__spec__ else module.__name__
        return name
