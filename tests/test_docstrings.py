"""The English of the package: what the descriptions of arguments, fields and flags look like.

Each check is a function of a parsed file, which returns the violations as text.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for top in ("jaxgen", "experiments") for path in (ROOT / top).rglob("*.py"))
SECTIONS = ("Args", "Attributes")
# Each says of a thing that something happened to it, and not what it is.
VAGUE = {"told", "found", "made"}
# A description that begins so does not stand alone.
REFERRING = ("Of ", "As ", "See ", "Likewise", "The same")
MIN_WORDS = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_phrase(text: str) -> bool:
    """Whether a description stands alone: a capital (or code, a number...) first, a stop last."""
    if not text or text.startswith(REFERRING):
        return False
    first, last = text[0], text.splitlines()[-1].strip()
    begins = first.isupper() or first.isdigit() or first in "`\"'([{$"
    return begins and (last.endswith((".", ":")) or last.startswith((">>>", "...", "```")))


def is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def definitions(node: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """The public functions, classes and methods of a module; nested functions are private."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            if is_public(child.name):
                yield child
                if isinstance(child, ast.ClassDef):
                    yield from definitions(child)
        elif not isinstance(child, ast.expr):  # definitions under `if` and `try`
            yield from definitions(child)


def entries(node: Function | ast.ClassDef, section: str) -> dict[str, str] | None:
    """Name -> description of a docstring's section, or None where it has no such section."""
    block = re.search(
        rf"^{section}:\n((?:[ ]+.*(?:\n|\Z)|\n)+)", ast.get_docstring(node) or "", re.MULTILINE
    )
    if block is None:
        return None
    result: dict[str, str] = {}
    names: list[str] = []
    for line in block[1].splitlines():
        if start := re.match(r"    ([\w*]+(?:, [\w*]+)*)(?: \(.*?\))?:(?: |$)(.*)", line):
            names, line = start[1].replace("*", "").split(", "), start[2]
        elif re.match(r"    \S", line):
            names = [line.strip()]  # not an entry at all: shown as one without a description
            line = ""
        for name in names:
            result[name] = f"{result.get(name, '')}\n{line.strip()}".strip()
    return result


def arguments(node: Function | ast.ClassDef) -> set[str] | None:
    """The arguments of a function, or of a class's own `__init__`; None where it has none."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, Function) and n.name == "__init__"]
        return arguments(inits[0]) if inits else None
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(v for v in (a.vararg, a.kwarg) if v)]
    return {argument.arg for argument in every} - {"self", "cls"}


def fields(node: Function | ast.ClassDef) -> set[str]:
    """The public fields of a class that have no docstring of their own."""
    following = [*node.body[1:], None]
    return {
        statement.target.id
        for statement, after in zip(node.body, following, strict=True)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_public(statement.target.id) and not isinstance(after, ast.Expr)
    }


def undescribed(tree: ast.AST) -> list[str]:
    """Entries of `Args:` and `Attributes:` that are no phrases."""
    return [
        f"{node.lineno}: {node.name}: {name}: {text}"
        for node in definitions(tree)
        for section in SECTIONS
        for name, text in (entries(node, section) or {}).items()
        if not is_phrase(text)
    ]


def poor_fields(tree: ast.AST) -> list[str]:
    """Docstrings of fields that are no phrases, or phrases of one or two words."""
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, node.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(after, ast.Expr):
                continue
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                text = after.value.value.strip()
                if not is_phrase(text) or len(text.split()) < MIN_WORDS:
                    wrong.append(f"{after.lineno}: {node.name}.{ast.unparse(field.target)}: {text}")
    return wrong


def mismatched(tree: ast.AST) -> list[str]:
    """`Args:` that lack an argument, or have one that there is not; `Attributes:` that lack one."""
    wrong = []
    for node in definitions(tree):
        documented, actual = entries(node, "Args"), arguments(node)
        lacking, extra = set(), set()
        if documented is not None and actual is not None:
            lacking, extra = actual - set(documented), set(documented) - actual
        attributes = entries(node, "Attributes")
        if attributes is not None:
            lacking |= fields(node) - set(attributes)
        wrong += [f"{node.lineno}: {node.name}: no description of {x}" for x in sorted(lacking)]
        wrong += [f"{node.lineno}: {node.name}: there is no argument {x}" for x in sorted(extra)]
    return wrong


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of what a module names: variables, arguments, fields, functions."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield line, name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield line, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield line, name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield line, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield line, name


def vague(tree: ast.AST) -> list[str]:
    """Names that do not say what the thing is."""
    return [f"{line}: {name}" for line, name in identifiers(tree) if name in VAGUE]


def poor_help(tree: ast.AST) -> list[str]:
    """Flags of argparse whose help is no phrase, or that have none."""
    wrong = []
    named = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in ("add_argument", "add_parser"):
            continue
        help_text = next((k.value for k in node.keywords if k.arg == "help"), None)
        if isinstance(help_text, ast.Name):
            help_text = named.get(help_text.id)
        if help_text is None:
            text = ""
        elif isinstance(help_text, ast.JoinedStr):  # an expression stands for code or a number
            parts = [v.value if isinstance(v, ast.Constant) else "`x`" for v in help_text.values]
            text = "".join(map(str, parts))
        else:
            text = str(getattr(help_text, "value", ast.unparse(help_text)))
        if not is_phrase(text):
            flag = ast.unparse(node.args[0]) if node.args else "?"
            wrong.append(f"{node.lineno}: {flag}: {text or 'no help'}")
    return wrong


CHECKS = (undescribed, poor_fields, mismatched, vague, poor_help)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}


@pytest.mark.parametrize("check", CHECKS)
def test_english(check, trees):
    wrong = [f"{path}:{line}" for path, tree in trees.items() for line in check(tree)]
    assert not wrong, "\n".join([f"{len(wrong)} of {check.__name__}:", *wrong])


SOUND = '''
@dataclass
class Config:
    """Flags.

    Attributes:
        shape: Height and width.
    """

    shape: tuple
    size: int = 1
    """Number of examples in a batch."""


class Box:
    """A box.

    Args:
        width: Width in pixels.
    """

    def __init__(self, width):
        self.width = width


def draw(key, num, *rest, **options):
    """Draws.

    Args:
        key: `jax.random.key` of the draw,
            or a seed.
        num: Number of examples: a list

            - of things.
        *rest: 3 numbers, say.
        **options: Further options.

    Returns:
        a sentence of its own.
    """
    result = parser.add_argument("--num", help=f"Number of {key} examples.")
    return result
'''


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (None, "", ""),
        (undescribed, "Width in", "width in"),
        (undescribed, "or a seed.", "or a seed"),
        (undescribed, "shape: Height and width.", "shape: height and width."),
        (undescribed, "shape: Height and width.", "shape: The same."),
        (undescribed, "num: Number of examples: a list", "num: See `Config`, a list"),
        (undescribed, "- of things.", "- of things"),
        (poor_fields, '"""Number of examples in a batch."""', '"""of examples in a batch."""'),
        (poor_fields, '"""Number of examples in a batch."""', '"""Number of examples"""'),
        (poor_fields, '"""Number of examples in a batch."""', '"""Batch size."""'),
        (mismatched, "self, width", "self, width, height"),
        (mismatched, "shape: tuple", "shape: tuple; other: int"),
        (mismatched, "(key, num, ", "(key, "),
        (mismatched, "(key, num, ", "(key, num, scale, "),
        (vague, "result =", "made ="),
        (vague, "size: int", "found: int"),
        (vague, "self.width =", "self.told ="),
        (vague, "**options)", "**found)"),
        (poor_help, 'f"Number of', 'f"number of'),
        (poor_help, 'examples.")', 'examples")'),
        (poor_help, ', help=f"Number of {key} examples."', ""),
    ],
)
def test_each_check_sees_its_fault(check, old, new):
    assert old in SOUND
    tree = ast.parse(SOUND.replace(old, new))
    failed = {other for other in CHECKS if other(tree)}
    assert check in failed if check else not failed
