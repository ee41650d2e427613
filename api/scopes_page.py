"""`docs/scopes.md`: which scope each route needs, made from the OpenAPI document, and so from the code."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from vyvo_dagster.domain.scope import Scope, grants

__all__ = ["page"]

_HEAD: Final = """\
# Scopes

Made from the routes by `VYVO_UPDATE_SNAPSHOTS=1 pytest tests/architecture/test_scopes_page.py`; a test compares
it with them.

A credential holds scopes; each route asks for one. What a credential may see of it is decided by its tenant
and, of a node's, by its node: [threat-model](threat-model.md).

"""


def page(document: Mapping[str, Any]) -> str:
    """The page, as Markdown."""
    by_scope: defaultdict[str, list[str]] = defaultdict(list)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            scope = operation.get("x-required-scope") or _other(operation)
            by_scope[scope].append(f"| `{method.upper()} {path}` | {operation['summary']} |")
    held = [
        f"| `{scope}` | {', '.join(f'`{s}`' for s in Scope if s is not scope and grants([scope], s)) or '-'} |"
        for scope in Scope
    ]
    parts = [_HEAD, "| scope | includes |\n| --- | --- |\n", "\n".join(held), "\n"]
    order = [*map(str, Scope), *sorted(set(by_scope) - set(map(str, Scope)))]
    for scope in order:
        if by_scope[scope]:
            named = f"`{scope}`" if scope in set(Scope) else scope
            parts.append(f"\n## {named}\n\n| route | |\n| --- | --- |\n")
            parts.append("\n".join(by_scope[scope]) + "\n")
    return "".join(parts)


def _other(operation: Mapping[str, Any]) -> str:
    return "Any credential that the route names" if "security" in operation else "No credential"
