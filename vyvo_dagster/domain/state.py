"""The one shape that every state machine here has: an enum, its arrows, its terminal states."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from vyvo_dagster.errors import IllegalTransition

__all__ = ["StateMachine"]

S = TypeVar("S", bound=StrEnum)


class StateMachine(Generic[S]):
    """Transitions of one StrEnum.

    Args:
        name: noun used in messages, such as "job".
        arrows: state → states that may follow it. A state with no arrow is terminal.
        reopened: arrows out of terminal states, taken only when somebody asks; those states stay
            terminal.
    """

    def __init__(
        self, name: str, arrows: Mapping[S, frozenset[S]],
        reopened: Mapping[S, frozenset[S]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.terminal: frozenset[S] = frozenset(s for s, after in arrows.items() if not after)
        self.arrows = {s: after | (reopened or {}).get(s, after) for s, after in arrows.items()}

    def allows(self, before: S, after: S) -> bool:
        """Whether the arrow `before` → `after` exists."""
        return after in self.arrows[before]

    def check(self, before: S, after: S) -> None:
        """Raise IllegalTransition unless the arrow exists."""
        if not self.allows(before, after):
            raise IllegalTransition(f"a {self.name} that is {before} cannot become {after}")

    def before(self, after: S) -> frozenset[S]:
        """The states from which `after` can be reached in one step; what a conditional UPDATE names."""
        return frozenset(s for s, nexts in self.arrows.items() if after in nexts)
