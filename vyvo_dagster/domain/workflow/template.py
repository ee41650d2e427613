"""Values of a definition that hold expressions: `{"seed": "${{ item }}"}`.

A string that is one `${{ ... }}` becomes the expression's value, of any type; in a longer string
each is put in as text. `$${{` stands for `${{` itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from vyvo_dagster.domain.workflow.expression import (
    Expression,
    ExpressionError,
    compile_expression,
)
from vyvo_dagster.domain.workflow.functions import check_size

__all__ = ["Template", "child_path", "expressions_in", "parse_template", "render", "render_text"]

_OPEN: Final = "${{"
_ESCAPED: Final = "$${{"


@dataclass(frozen=True, slots=True)
class Template:
    """A string cut into text and expressions; at least one of these is there."""

    parts: tuple[str | Expression, ...]

    @property
    def single(self) -> Expression | None:
        """The expression, where it is all of the string."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Expression):
            return self.parts[0]
        return None

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Those in it."""
        return tuple(part for part in self.parts if isinstance(part, Expression))

    def render(self, names: Mapping[str, Any]) -> Any:
        """Its value.

        Raises:
            ExpressionError: an expression has none.
        """
        if (single := self.single) is not None:
            return single.evaluate(names)
        text = "".join(
            part if isinstance(part, str) else render_text(part.evaluate(names))
            for part in self.parts
        )
        check_size(text)
        return text


def render_text(value: Any) -> str:
    """A value inside a longer string: nothing for null, strings as they are, else JSON."""
    if value is None:
        return ""
    return cast("str", compile_expression("str(item)").evaluate({"item": value}))


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Template | None:
    """The template that `text` is, or None where it holds no `${{`.

    Raises:
        ExpressionError: a `${{` is not closed, or what is in it is no expression.
    """
    if _OPEN not in text:
        return None
    parts: list[str | Expression] = []
    plain = ""
    at = 0
    while (found := text.find(_OPEN, at)) >= 0:
        if found > at and text[found - 1] == "$":
            plain += text[at : found - 1] + _OPEN
            at = found + len(_OPEN)
            continue
        plain += text[at:found]
        end = _end(text, found + len(_OPEN))
        if plain:
            parts.append(plain)
            plain = ""
        parts.append(compile_expression(text[found + len(_OPEN) : end]))
        at = end + 2
    plain += text[at:]
    if plain or not parts:
        parts.append(plain)
    # Spaces around a single expression are no text that anyone meant.
    kept = tuple(p for p in parts if isinstance(p, Expression) or p.strip())
    if len(kept) == 1 and isinstance(kept[0], Expression):
        return Template(kept)
    return Template(tuple(parts))


def _end(text: str, start: int) -> int:
    """Where the `}}` of an expression is; those in its strings do not count."""
    quote = ""
    at = start
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif text.startswith("}}", at):
            return at
        at += 1
    raise ExpressionError("a ${{ is not closed by }}")


def child_path(path: str, part: str | int) -> str:
    """The JSON path of a member: $.a, $.a[0], $.a['odd name']."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if part.isidentifier() else f"{path}[{part!r}]"


def expressions_in(value: Any, path: str = "$") -> Iterator[tuple[str, Template | ExpressionError]]:
    """Every template inside a JSON value with its path; what cannot be parsed as its error."""
    if isinstance(value, str):
        try:
            found = parse_template(value)
        except ExpressionError as error:
            yield path, error
        else:
            if found is not None:
                yield path, found
    elif isinstance(value, Mapping):
        for key, each in cast("Mapping[str, Any]", value).items():
            yield from expressions_in(each, child_path(path, key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(cast("list[Any]", value)):
            yield from expressions_in(each, child_path(path, index))


def render(value: Any, names: Mapping[str, Any], path: str = "$") -> Any:
    """A JSON value with its expressions replaced by their values.

    Raises:
        ExpressionError: one has none, or the result is larger than 1 MiB; its message begins with
            the path.
    """
    made = _rendered(value, names, path)
    check_size(made)
    return made


def _rendered(value: Any, names: Mapping[str, Any], path: str) -> Any:
    if isinstance(value, str):
        found = parse_template(value)
        if found is None:
            return value
        try:
            return found.render(names)
        except ExpressionError as error:
            raise ExpressionError(f"{path}: {error.detail}") from error
    if isinstance(value, Mapping):
        return {
            key: _rendered(each, names, child_path(path, key))
            for key, each in cast("Mapping[str, Any]", value).items()
        }
    if isinstance(value, list | tuple):
        return [
            _rendered(each, names, child_path(path, index))
            for index, each in enumerate(cast("list[Any]", value))
        ]
    return value
