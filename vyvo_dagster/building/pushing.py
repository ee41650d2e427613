"""Pushes that fail and are made again: a registry restarts, and the layers are all there."""

import re
import threading
from collections.abc import Callable
from typing import Final

from vyvo_dagster.building.types import BuildCanceled, Log
from vyvo_dagster.errors import BuildFailed

__all__ = ["with_retries"]

_FIRST_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 30.0
# What the registry refuses will be refused again.
_FINAL: Final = re.compile(
    r"\b(unauthorized|authentication required|denied|insufficient_scope|401|403"
    r"|no space left on device)\b",
    re.IGNORECASE,
)
# Names of images, with ports and models that may read like a refusal.
_REFERENCE: Final = re.compile(r"\S+/\S+")


def with_retries(
    push: Callable[[], None], pushing: Callable[[], bool], *, attempts: int, log: Log,
    cancel: threading.Event,
) -> None:  # fmt: skip
    """Call `push` until it succeeds, with pauses that double from 1 s to 30 s.

    Args:
        push: builds and pushes; what was built is not built again.
        pushing: whether the last call failed while it pushed, and not before.
        attempts: calls in all.
        log: told of each failure.
        cancel: ends the pause.

    Raises:
        BuildFailed: it failed before the push, or so often, or for a reason that stays.
        BuildCanceled: `cancel` was set.
    """
    pause = _FIRST_SECONDS
    for attempt in range(1, attempts + 1):
        try:
            push()
        except BuildCanceled:
            raise
        except BuildFailed as error:
            if not pushing():
                raise
            why = error.detail.removeprefix("image: ").rstrip(": ")
            if attempt == attempts or _FINAL.search(_REFERENCE.sub("", why)):
                raise BuildFailed(f"push: gave up after {attempt} tries: {why}") from error
            log.line("push", f"failed ({why}); try {attempt + 1} of {attempts} in {pause:g} s")
        else:
            return
        if cancel.wait(pause):
            raise BuildCanceled("the build was canceled")
        pause = min(pause * 2, _LONGEST_SECONDS)
