"""What expressions can do with values: operators, functions, and the bounds on what they make."""

import ast
import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from vyvo_dagster.errors import InvalidInput

__all__ = ["FUNCTIONS", "MAX_VALUE", "OPERATORS", "ExpressionError", "check_size", "kind_of"]

MAX_VALUE: Final = 1 << 20
"""Characters, numbers and members that the value of one expression may have."""
_MAX_RANGE: Final = 1000
_MAX_ITEMS: Final = 100_000
_MAX_DIGITS: Final = 400


class ExpressionError(InvalidInput):
    """An expression that cannot be parsed, or has no value."""

    code = "invalid_expression"


def check_size(value: Any, limit: int = MAX_VALUE) -> None:
    """Raise ExpressionError unless `value` is JSON of at most `limit` characters and members."""
    left = limit
    stack: list[Any] = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            left -= len(each)
        elif isinstance(each, float):
            if not math.isfinite(each):
                raise ExpressionError(f"{each} is no JSON number")
        elif isinstance(each, Mapping):
            left -= sum(len(str(key)) for key in cast("Mapping[str, Any]", each))
            stack.extend(cast("Mapping[str, Any]", each).values())
        elif isinstance(each, list | tuple):
            stack.extend(cast("list[Any]", each))
        elif isinstance(each, int) and not isinstance(each, bool):
            _bounded(each)
        elif each is not None and not isinstance(each, bool):
            raise ExpressionError("it is no JSON value")
        left -= 1
        if left < 0:
            raise ExpressionError(f"the value is larger than {limit} characters")


def _bounded(number: int) -> int:
    if number.bit_length() > _MAX_DIGITS * 3:
        raise ExpressionError("a number has too many digits")
    return number


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is needed, not {kind_of(value)}")
    return _bounded(value) if isinstance(value, int) else value


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return {
        bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list",
    }.get(type(value), "an object")  # fmt: skip


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {kind_of(value)}")
    return cast("list[Any]", value)


def _arithmetic(act: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(left: Any, right: Any) -> Any:
        made = act(_number(left), _number(right))
        return _bounded(made) if isinstance(made, int) else made

    return checked


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > MAX_VALUE:
            raise ValueError("the string is too long")
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        a, b = cast("list[Any]", left), cast("list[Any]", right)
        if len(a) + len(b) > _MAX_ITEMS:
            raise ValueError("the list is too long")
        return [*a, *b]
    return _bounded(_number(left) + _number(right)) if _ints(left, right) else (
        _number(left) + _number(right)
    )  # fmt: skip


def _ints(*values: Any) -> bool:
    return all(isinstance(v, int) for v in values)


def _contains(item: Any, container: Any) -> bool:
    if isinstance(container, str) and not isinstance(item, str):
        raise TypeError(f"a string does not contain {kind_of(item)}")
    if not isinstance(container, str | list | Mapping):
        raise TypeError(f"nothing is in {kind_of(container)}")
    return item in container


def _equal(left: Any, right: Any) -> bool:
    # In JSON true is not 1.
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return left == right


def _text(value: Any) -> str:
    """A value inside a string: strings as they are, all others as JSON."""
    if isinstance(value, str):
        return value
    check_size(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _length(value: Any) -> int:
    if not isinstance(value, str | list | Mapping):
        raise TypeError(f"{kind_of(value)} has no length")
    return len(cast("list[Any]", value))


def _extreme(choose: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def chosen(*values: Any) -> Any:
        found = _list(values[0]) if len(values) == 1 else list(values)
        if not found:
            raise ValueError("an empty list has no least or greatest value")
        return choose(found)

    return chosen


def _range(count: Any) -> list[int]:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_RANGE:
        raise ValueError(f"range takes a whole number from 0 to {_MAX_RANGE}")
    return list(range(count))


def _join(values: Any, separator: Any = "") -> str:
    if not isinstance(separator, str):
        raise TypeError("join takes a list and a separator")
    texts = [_text(v) for v in _list(values)]
    if sum(map(len, texts)) + len(separator) * len(texts) > MAX_VALUE:
        raise ValueError("the string is too long")
    return separator.join(texts)


def _flatten(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in _list(values):
        found.extend(cast("list[Any]", value) if isinstance(value, list) else [value])
        if len(found) > _MAX_ITEMS:
            raise ValueError("the list is too long")
    return found


def _coalesce(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def _int(value: Any) -> int:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise ValueError("the number has too many digits")
    return int(value if isinstance(value, str) else _number(value))


def _float(value: Any) -> float:
    return float(value if isinstance(value, str) else _number(value))


def _round(value: Any, digits: Any = 0) -> Any:
    if not isinstance(digits, int) or not -15 <= digits <= 15:
        raise ValueError("round takes -15 to 15 digits")
    return round(_number(value), digits) if digits else round(_number(value))


def _sum(values: Any) -> Any:
    return sum(map(_number, _list(values)))


def _abs(value: Any) -> Any:
    return abs(_number(value))


def _negative(value: Any) -> Any:
    return -_number(value)


def _unequal(left: Any, right: Any) -> bool:
    return not _equal(left, right)


def _lacks(item: Any, container: Any) -> bool:
    return not _contains(item, container)


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "len": _length,
    "min": _extreme(min),
    "max": _extreme(max),
    "sum": _sum,
    "abs": _abs,
    "round": _round,
    "int": _int,
    "float": _float,
    "str": _text,
    "range": _range,
    "join": _join,
    "flatten": _flatten,
    "coalesce": _coalesce,
}
OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: _add,
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _arithmetic(operator.mod),
    ast.Eq: _equal,
    ast.NotEq: _unequal,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Not: operator.not_,
    ast.USub: _negative,
    ast.UAdd: _number,
    ast.In: _contains,
    ast.NotIn: _lacks,
}
