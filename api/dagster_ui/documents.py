"""What a GraphQL document asks for: reading, or changing something."""

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    parse,
)

from vyvo_dagster.errors import InvalidInput

__all__ = ["Documents", "Verdict"]

_MAX_TOKENS: Final = 20_000
_KEPT: Final = 512


@dataclass(frozen=True, slots=True)
class Verdict:
    """`mutations` names the fields that change something; empty for a document that only reads."""

    mutations: tuple[str, ...]


class Documents:
    """Judges documents; those of Dagster's own UI are the same few, so that verdicts are kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()

    def judge(self, text: str) -> Verdict:
        """What a document asks for, by all its operations, whichever of them is to be executed.

        Raises:
            InvalidInput: it is no GraphQL document, or larger than any of Dagster's UI.
        """
        name = sha256(text.encode("utf-8", "surrogatepass")).digest()
        found = self._known.get(name)
        if found is not None:
            self._known.move_to_end(name)
            return found
        try:
            made = _judged(parse(text, no_location=True, max_tokens=_MAX_TOKENS))
        except (GraphQLError, RecursionError) as error:
            said = error.message if isinstance(error, GraphQLError) else "nested too deep"
            raise InvalidInput(f"no GraphQL document that is taken here: {said[:200]}") from error
        self._known[name] = made
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return made


def _judged(document: DocumentNode) -> Verdict:
    names: list[str] = []
    for definition in document.definitions:
        if not isinstance(definition, OperationDefinitionNode):
            continue
        if definition.operation is not OperationType.MUTATION:
            continue
        fields = [
            s.name.value for s in definition.selection_set.selections if isinstance(s, FieldNode)
        ]
        # A fragment's fields are not looked up: that something changes is enough.
        names += fields or ["fragment"]
    return Verdict(tuple(names))
