"""Secrets kept out of a log, whole or cut in two by the end of a line that was too long."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["CUT", "Masker"]

CUT: Final = " [the line is cut here]"
"""Ends a line of which the rest was dropped: a secret may begin before it and end in the rest."""

_MASK: Final = "***"
_SHORTEST: Final = 4


class Masker:
    """Replaces secrets by `***`.

    Args:
        secrets: values; those under 4 characters are not secrets. A secret of several lines is
            looked for line by line, since a log has no others.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        usable = {
            part.strip()
            for secret in secrets
            for part in (secret, *secret.splitlines())
            if len(part.strip()) >= _SHORTEST
        }
        # Longest first: a secret that contains another must not leave its rest behind.
        self._secrets = sorted(usable, key=len, reverse=True)
        self._longest = max(map(len, usable), default=0)

    def __call__(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        if self._longest and text.endswith(CUT):
            # The beginning of a secret that the cut went through is in this end, if anywhere.
            kept = text.removesuffix(CUT)
            text = kept[: max(len(kept) - self._longest, 0)] + CUT
        return text

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The same for the texts among a line's fields."""
        return {k: self(v) if isinstance(v, str) else v for k, v in fields.items()}
