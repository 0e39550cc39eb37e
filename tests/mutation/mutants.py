"""Mutants: small changes of the package's source, which some test ought to notice.

A mutant is one change of one expression or statement: another operator or constant, a lost minus,
`not`, argument or statement.
"""

import ast
import copy
import random
import re
from pathlib import Path
from typing import NamedTuple

ROOMS = ("training", "losses", "sampling", "families", "metrics")
OPERATORS = {"Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "Pow": "Mult", "Mod": "Mult"}
OPERATORS |= {"FloorDiv": "Mult", "BitAnd": "BitOr", "BitOr": "BitAnd", "And": "Or", "Or": "And"}
OPERATORS |= {"Lt": "LtE", "LtE": "Lt", "Gt": "GtE", "GtE": "Gt", "Eq": "NotEq", "NotEq": "Eq"}
OPERATORS |= {"Is": "IsNot", "IsNot": "Is", "In": "NotIn", "NotIn": "In"}
PAIRS = "min max, sum mean, minimum maximum, any all, argmin argmax, floor ceil, zeros ones"
PAIRS += ", sin cos, exp expm1, log log1p, softplus sigmoid, zeros_like ones_like, square sqrt"
NAMES = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
SKIPPED = ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert | ast.match_case
TYPES = {"int", "float", "str", "bool", "None", "Array", "bytes", "tuple", "list", "dict"}


class Mutant(NamedTuple):
    """One change of one file: its bytes from `start` to `end` are replaced by `after`."""

    path: str
    line: int
    column: int
    start: int
    end: int
    before: str
    after: str

    @property
    def id(self) -> str:
        text = f"{self.path}:{self.line}:{self.column}: {self.before} -> {self.after}"
        return " ".join(text.split())

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


def places(path: str, source: bytes) -> list[list[Mutant]]:
    """The mutants of a file, by the place that they change.

    Left alone are docstrings, annotations, decorators, what an error says, f-strings, and what runs
    for types or as a script only.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def add(node: ast.AST, texts: list[str]) -> None:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        before = source[start:end].decode()
        if texts := [text for text in texts if text.strip("()") != before.strip("()")]:
            place = (path, node.lineno, node.col_offset + 1, start, end, before)
            found.append([Mutant(*place, text) for text in texts])

    def visit(node: ast.AST) -> None:
        if isinstance(node, SKIPPED):
            return
        if isinstance(node, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(node.test)):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if lost(node):
            add(node, ["pass"])
        elif isinstance(node, ast.expr) and (changed := list(changes(node))):
            add(node, [f"({ast.unparse(new)})" for new in changed])
        if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.UnaryOp):
            add(node.test, [f"(not ({ast.unparse(node.test)}))"])
        if isinstance(node, ast.Raise):
            return
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list", "type_params"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child)

    visit(ast.parse(source))
    return found


def lost(node: ast.AST) -> bool:
    """Whether it is a statement that `pass` can replace without a NameError."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Continue | ast.Break)


def changes(node: ast.expr):
    """What an expression is changed to."""

    def new(**fields) -> ast.expr:
        other = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    def other(op: ast.AST) -> ast.AST:
        return getattr(ast, OPERATORS[type(op).__name__])()

    match node:
        case ast.BinOp(left, op, right):
            union = isinstance(op, ast.BitOr) and {ast.unparse(left), ast.unparse(right)} & TYPES
            if type(op).__name__ in OPERATORS and not union:
                yield from (new(op=other(op)), left, right)
        case ast.BoolOp(op, values):
            yield from (new(op=other(op)), *values)
        case ast.Compare(ops=[op]):
            yield new(ops=[other(op)])
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.IfExp(_, body, orelse):
            yield new(body=orelse, orelse=body)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(float() as value):
            yield ast.Constant(2 * value if abs(value) >= 1e-3 else value + 1)
        case ast.Call(func, args, keywords):
            for keyword in keywords:
                if keyword.arg:
                    yield new(keywords=[k for k in keywords if k is not keyword])
            name = getattr(func, "attr", getattr(func, "id", ""))
            symmetric = name in ("min", "max", "minimum", "maximum", "logaddexp")
            if len(args) > 1 and not symmetric and not isinstance(args[0], ast.Starred):
                yield new(args=[args[1], args[0], *args[2:]])
            if name in NAMES and isinstance(func, ast.Attribute):
                yield new(func=ast.Attribute(func.value, NAMES[name]))
            of_arrays = ast.unparse(func).startswith(("jnp.", "np.", "jax.lax.", "lax.", "jax.nn."))
            if len(args) == 1 and of_arrays and name not in ("asarray", "array"):
                yield args[0]


def draw(root: Path, seed: int, count: int, only: str = "") -> list[Mutant]:
    """Mutants at random places, each place at most once; more of them begin with the same ones."""
    files = [file for room in ROOMS for file in sorted((root / "jaxgen" / room).rglob("*.py"))]
    every = []
    for file in (root / "jaxgen/core.py", *files):
        path = file.relative_to(root).as_posix()
        every += places(path, file.read_bytes()) if only in path else []
    rng = random.Random(seed)
    rng.shuffle(every)
    return [rng.choice(place) for place in every[:count]]
