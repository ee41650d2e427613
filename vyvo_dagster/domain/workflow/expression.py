"""Expressions of a workflow definition: `steps.read.output.score > 0.5`.

The syntax is Python's for expressions, cut down to values, operators and a few functions; it is
parsed by `ast` and evaluated by simpleeval, and nothing of it ever reaches Python's own eval. CEL
would be the other choice: its native binding is as fast and shows no syntax tree, without which
no reference can be checked before a run; its pure one takes 18 times as long.

Time and memory are bounded by the text: no loops, no powers, no methods, no attributes but those
of JSON objects, and every string, list and result is limited in size.
"""

import ast
import keyword
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import simpleeval

from vyvo_dagster.domain.workflow.functions import (
    FUNCTIONS,
    OPERATORS,
    ExpressionError,
    check_size,
    kind_of,
)

__all__ = [
    "ROOTS",
    "Expression",
    "ExpressionError",
    "Reference",
    "compile_expression",
    "is_name",
]

MAX_TEXT: Final = 2000
"""Characters of one expression."""
_MAX_NODES: Final = 300
_MAX_DEPTH: Final = 40

ROOTS: Final = ("inputs", "steps", "run", "item", "index", "event")
_CONSTANTS: Final[Mapping[str, Any]] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Reference:
    """What an expression reads: `steps.a.output[0]` is ("steps", "a", "output", 0).

    It ends where the next part is computed. `whole` tells that it is all of the expression.
    """

    path: tuple[str | int, ...]
    whole: bool

    def __str__(self) -> str:
        return str(self.path[0]) + "".join(
            f".{part}" if isinstance(part, str) and is_name(part) else f"[{part!r}]"
            for part in self.path[1:]
        )


def is_name(text: str) -> bool:
    """Whether `text` can stand after a dot."""
    return text.isidentifier() and not keyword.iskeyword(text)


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression."""

    text: str
    references: tuple[Reference, ...]
    _tree: ast.Expression

    def evaluate(self, names: Mapping[str, Any]) -> Any:
        """Its value, JSON.

        Args:
            names: root → JSON value, such as `inputs` and `steps`.

        Raises:
            ExpressionError: a reference to what is not there, an operation on values of the wrong
                type, or a value that is too large.
        """
        try:
            value = _evaluator().of(self, self._tree.body, names)
            check_size(value)
        except ExpressionError:
            raise
        except simpleeval.InvalidExpression as error:
            raise ExpressionError(f"{self.text}: {error}") from error
        except KeyError as error:
            raise ExpressionError(f"{self.text}: there is no {error.args[0]!r}") from error
        except (
            TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError,
        ) as error:  # fmt: skip
            raise ExpressionError(f"{self.text}: {str(error)[:200]}") from error
        return value


@lru_cache(maxsize=4096)
def compile_expression(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ExpressionError: it is none, or uses what expressions have not.
    """
    text = text.strip()
    if not text:
        raise ExpressionError("the expression is empty")
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"the expression is longer than {MAX_TEXT} characters")
    try:
        with warnings.catch_warnings():
            # Python warns of literals that are called; they are refused below.
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(f"{text!r} is no expression: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError("the expression is nested too deeply, or is no text") from error
    _check(tree.body)
    return Expression(text, tuple(_references(tree.body, whole=True)), tree)


_ALLOWED: Final = (
    ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Constant, ast.List, ast.Call,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp,
    # What these are made of.
    ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_NAMES: Final[Mapping[type[ast.AST], str]] = {
    ast.Lambda: "lambda", ast.ListComp: "a comprehension", ast.DictComp: "a comprehension",
    ast.SetComp: "a comprehension", ast.GeneratorExp: "a comprehension", ast.Dict: "an object",
    ast.JoinedStr: "an f-string", ast.NamedExpr: "an assignment", ast.Set: "a set",
    ast.Tuple: "a tuple", ast.Starred: "*", ast.Await: "await",
}  # fmt: skip
_REFUSED: Final[Mapping[type[ast.AST], str]] = {
    ast.Pow: "**", ast.MatMult: "@", ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&",
    ast.BitOr: "|", ast.BitXor: "^", ast.Invert: "~", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip


def _check(tree: ast.expr) -> None:
    count = 0
    level: list[ast.AST] = [tree]
    depth = 0
    called: set[int] = set()
    while level:
        depth += 1
        count += len(level)
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise ExpressionError("the expression is too complex; split it over several steps")
        for node in level:
            _check_node(node)
            if isinstance(node, ast.Call):
                called.add(id(node.func))
            elif isinstance(node, ast.Name) and node.id in FUNCTIONS and id(node) not in called:
                raise ExpressionError(f"{node.id} is a function; call it")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def _check_node(node: ast.AST) -> None:
    if type(node) in _REFUSED:
        raise ExpressionError(f"expressions have no operator {_REFUSED[type(node)]}")
    if not isinstance(node, _ALLOWED):
        shown = _NAMES.get(type(node), type(node).__name__)
        raise ExpressionError(f"expressions cannot hold {shown}")
    if isinstance(node, ast.Constant) and not (
        node.value is None or isinstance(node.value, bool | int | float | str)
    ):
        raise ExpressionError(f"{node.value!r} is no JSON value")
    if isinstance(node, ast.Name) and node.id not in {*ROOTS, *_CONSTANTS, *FUNCTIONS}:
        raise ExpressionError(
            f"there is no {node.id!r}; an expression begins with {', '.join(ROOTS)} or a function"
        )
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise ExpressionError(f"the functions are {', '.join(sorted(FUNCTIONS))}")
        if node.keywords:
            raise ExpressionError(f"{node.func.id} takes no arguments by name")


def _references(node: ast.AST, *, whole: bool = False) -> Iterator[Reference]:
    path = _path(node)
    if path is not None:
        if path[0] in ROOTS:
            yield Reference(path, whole)
        return
    if isinstance(node, ast.Call):
        for each in node.args:
            yield from _references(each)
        return
    if isinstance(node, ast.Subscript):
        # The part before a computed index is read as it stands.
        yield from _references(node.value)
        yield from _references(node.slice)
        return
    for child in ast.iter_child_nodes(node):
        yield from _references(child)


def _path(node: ast.AST) -> tuple[str | int, ...] | None:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        head = _path(node.value)
        return None if head is None else (*head, node.attr)
    if isinstance(node, ast.Subscript):
        head, part = _path(node.value), _literal(node.slice)
        return None if head is None or part is None else (*head, part)
    return None


def _literal(node: ast.expr) -> str | int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _literal(node.operand)
        return -inner if isinstance(inner, int) else None
    if isinstance(node, ast.Constant) and type(node.value) in {str, int}:
        return cast("str | int", node.value)
    return None


_Act = Callable[[Any], Any]


class _Evaluator(simpleeval.SimpleEval):
    """simpleeval over JSON values: a dot reads a member of an object and nothing else."""

    def __init__(self) -> None:
        super().__init__(operators=OPERATORS, functions=dict(FUNCTIONS), names={})
        own: Mapping[type[ast.AST], _Act] = {ast.List: self._eval_list}
        self._acts = {**cast("Mapping[type[ast.AST], _Act]", self.nodes), **own}

    def of(self, expression: "Expression", tree: ast.expr, names: Mapping[str, Any]) -> Any:
        """The value of a checked tree."""
        self.expr, self.names = expression.text, {**_CONSTANTS, **names}
        try:
            return self._eval(tree)
        finally:
            self.names = {}

    def _eval(self, node: ast.AST) -> Any:
        # The library looks through every value for modules at every node. Ours are JSON.
        return self._acts[type(node)](node)

    def _eval_list(self, node: Any) -> list[Any]:
        return [self._eval(each) for each in node.elts]

    def _eval_name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        raise ExpressionError(f"{self.expr}: there is no {node.id!r} here")

    def _eval_attribute(self, node: ast.Attribute) -> Any:
        return self._member(self._eval(node.value), node.attr)

    def _eval_subscript(self, node: ast.Subscript) -> Any:
        return self._member(self._eval(node.value), self._eval(node.slice))

    def _member(self, value: Any, key: Any) -> Any:
        """Of null it is null, so that what a skipped step would have made can be asked for."""
        if value is None:
            return None
        if isinstance(value, Mapping):
            found = cast("Mapping[str, Any]", value)
            if not isinstance(key, str) or key not in found:
                known = ", ".join(sorted(found)[:12]) or "nothing"
                raise ExpressionError(f"{self.expr}: there is no {key!r}; there is {known}")
            return found[key]
        if isinstance(value, list | str) and isinstance(key, slice):
            return cast("list[Any]", value)[key]
        if isinstance(value, list | str) and isinstance(key, int) and not isinstance(key, bool):
            items = cast("list[Any]", value)
            if not -len(items) <= key < len(items):
                raise ExpressionError(f"{self.expr}: no item {key}; there are {len(items)}")
            return items[key]
        raise ExpressionError(f"{self.expr}: {kind_of(value)} has no {key!r}")


_LOCAL: Final = threading.local()


def _evaluator() -> _Evaluator:
    """The evaluator of this thread: one is a ring of references to itself, which only the collector would free."""
    found = getattr(_LOCAL, "evaluator", None)
    if found is None:
        found = _LOCAL.evaluator = _Evaluator()
    return found
