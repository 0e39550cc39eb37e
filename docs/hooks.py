"""What the documentation makes of the code: the recipes' page, the reference, the notebooks' pages.

mkdocs calls the functions `on_...` by their names (`hooks` in mkdocs.yml). jaxgen is read, never
imported.
"""

import ast
import html
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from latex2mathml.converter import convert
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "gan": "GANs",
    "stylegan": "GANs with styles",
    "stackgan": "GANs in two stages",
    "vae": "Variational autoencoders",
    "hierarchical_vae": "Hierarchical variational autoencoders",
    "autoencoder": "Autoencoders",
    "first_stage": "First stages",
    "vq": "Discrete latents",
    "vqvae_prior": "Discrete latents",
    "flow": "Normalizing flows on images",
    "tabular": "Normalizing flows on rows",
    "autoregressive": "Autoregressive networks",
    "masked": "Masked image generation",
    "wavenet_audio": "Audio",
    "diffusion": "Diffusion",
    "score": "Scores, EDM and flow matching",
    "vdm": "Variational diffusion",
    "consistency": "Consistency models",
    "meanflow": "MeanFlow",
    "latent_diffusion": "Diffusion on latents",
    "noisy_classifier": "Classifiers for guidance",
    "dual_encoder": "Measuring instruments",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces each line of the navigation that ends in `*` by the pages that no line names."""
    named = set(re.findall(r"[\w./-]+\.(?:md|ipynb)", str(config.nav)))
    docs = Path(config.docs_dir)

    def pages(folder: str) -> list[str]:
        if folder == "reference/":
            return [f"{folder}{package}.md" for package in _packages()]
        found = (path for end in ("md", "ipynb") for path in (docs / folder).glob(f"*.{end}"))
        return sorted({str(path.relative_to(docs)) for path in found} - named)

    def expand(entry: object) -> list:
        if isinstance(entry, dict):
            ((title, value),) = entry.items()
            inner = [each for item in value for each in expand(item)]
            return [{title: inner if isinstance(value, list) else value}]
        return pages(entry[:-1]) if str(entry).endswith("*") else [entry]

    config.nav = _as_pages([each for entry in config.nav for each in expand(entry)])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made; notebooks stay beside theirs, to be downloaded."""
    made: dict[str, str | bytes] = {"recipes.md": recipes_page()}
    made |= {f"reference/{package}.md": reference_page(package) for package in _packages()}
    for path in Path(config.docs_dir).glob("tutorials/*.ipynb"):
        made |= notebook_pages(path)
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Makes MathML of equations, so that no script has to be fetched to draw them."""

    def draw(equation: re.Match[str]) -> str:
        display = "block" if equation[1] == "div" else "inline"
        return convert(html.unescape(equation[2]), display=display)

    pattern = r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>'
    return re.sub(pattern, draw, content, flags=re.DOTALL)


def notebook_pages(path: Path) -> dict[str, str | bytes]:
    """A notebook as Markdown, with its pictures: the name of each file -> its content."""
    notebook = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    folder, name = path.parent.name, path.stem
    download = f"[Download this notebook]({name}.ipynb){{ .md-button download }}\n"
    for output in resources["outputs"]:  # in a folder of their own, or notebooks would share them
        text = text.replace(f"]({output})", f"]({name}/{output})")
    title, _, rest = text.partition("\n\n")
    pages: dict[str, str | bytes] = {f"{folder}/{name}.md": f"{title}\n\n{download}\n{rest}"}
    for output, content in resources["outputs"].items():
        pages[f"{folder}/{name}/{output}"] = content
    return pages


class Recipe(NamedTuple):
    """A recipe as its page shows it: the words of its call, and its module's docstring."""

    name: str
    data: str
    published: str
    summary: str
    description: str


def recipes_page() -> str:
    """Every recipe by family: a line each, then what its module says of it."""
    families: dict[str, list[Recipe]] = {title: [] for title in FAMILIES.values()}
    for path in sorted((ROOT / "experiments").glob("*.py")):
        tree = ast.parse(path.read_text())
        for call in filter(None, map(_recipe_in, tree.body)):
            words = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
            summary, _, rest = (ast.get_docstring(tree) or "").partition("\n")
            description = rest.replace("docs/results.md", "[results](results.md)")
            figures = (words.get("data", ""), words.get("published", ""))
            recipe = Recipe(path.stem, *figures, summary, description)
            families[FAMILIES[_family(path.stem, tree)]].append(recipe)
    results = _sections((ROOT / "docs/results.md").read_text())
    lines = [
        "# Recipes\n",
        "A recipe is a paper's table of settings as a value. `jaxgen train NAME` runs it, and "
        "`--help` shows the flags that are used most, `--help-all` every one. *Published* is the "
        "paper's figure, *measured* leads to what this code has reached.\n",
    ]
    for title, recipes in families.items():
        lines += [f"\n## {title}\n", "| recipe | what it is | data | published | measured |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for each in recipes:
            sections = results.get(each.name, ())
            links = ", ".join(f"[{where}](results.md#{slugify(where, '-')})" for where in sections)
            cells = (f"[`{each.name}`](#{each.name})", each.summary, each.data, each.published)
            lines.append(f"| {' | '.join(cells)} | {links} |")
        for each in recipes:
            lines += [f"\n### `{each.name}` {{ #{each.name} }}\n", f"**{each.summary}**\n"]
            lines.append(each.description)
    return "\n".join(lines)


def reference_page(package: str) -> str:
    """The reference of a package: a directive for each of its modules that has public names."""
    folder = ROOT.joinpath(*package.split("."))
    paths = folder.glob("*.py") if package == "jaxgen" else folder.rglob("*.py")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(paths)
        if path.stem not in ("__init__", "__main__")
    ]
    summary = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    directives = "\n\n".join(f"::: {module}" for module in modules)
    return f"# {package}\n\n{summary}\n\n{directives}\n"


def _packages() -> list[str]:
    folders = sorted(path.parent.name for path in (ROOT / "jaxgen").glob("*/__init__.py"))
    return ["jaxgen", *(f"jaxgen.{name}" for name in folders)]


def _as_pages(nav: list) -> list:
    """The navigation with each notebook's page in the place of the notebook."""
    if isinstance(nav, list):
        return [_as_pages(entry) for entry in nav]
    if isinstance(nav, dict):
        return {title: _as_pages(value) for title, value in nav.items()}
    return nav.removesuffix(".ipynb") + ".md" if nav.endswith(".ipynb") else nav


def _recipe_in(node: ast.stmt) -> ast.Call | None:
    """The call of `recipe = Recipe(...)`, or None of another statement."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return None
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    return node.value if "recipe" in names else None


def _family(name: str, tree: ast.Module) -> str:
    """The module of `experiments.recipes` that a recipe's `build` is of; else the recipe's own."""
    for node in tree.body:
        module = (isinstance(node, ast.ImportFrom) and node.module) or ""
        if module.startswith("recipes.") and any(a.name.startswith("build") for a in node.names):
            return module.removeprefix("recipes.")
    return name


def _sections(text: str) -> dict[str, list[str]]:
    """Recipe -> the titles of the sections of the results that name it."""
    named: dict[str, list[str]] = {}
    for section in re.split(r"^(?=##+ )", text, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0].lstrip("# ")
        for name in set(re.findall(r"`(?:experiments\.)?(\w+)[ `]", section)):
            named.setdefault(name, []).append(title)
    return named
