"""Lua scripts on the server: sent by their hash, in full only where the server lacks them."""

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from vyvo_dagster.streams.client import AsyncRedis

__all__ = ["Batch", "Script"]


class Script:
    """One script; a call of it is atomic."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self, redis: AsyncRedis, keys: Sequence[str], args: Sequence[str | int | float]
    ) -> Any:
        """Run it in one round trip; two the first time after the server's start."""
        try:
            return await redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.eval(self.text, len(keys), *keys, *args)


class Batch:
    """Calls of scripts that go in one round trip, in order; each is atomic, the batch is not."""

    def __init__(self) -> None:
        self._calls: list[tuple[Script, tuple[str | int | float, ...], int]] = []

    def add(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int | float]
    ) -> "Batch":
        """Add a call."""
        self._calls.append((script, (*keys, *args), len(keys)))
        return self

    async def execute(self, redis: AsyncRedis) -> list[Any]:
        """Send all; returns their answers in order. The first error is raised after all have run."""
        if not self._calls:
            return []
        async with redis.pipeline(transaction=False) as pipe:
            for script, values, count in self._calls:
                pipe.evalsha(script.sha, count, *values)
            answers = await pipe.execute(raise_on_error=False)
        for place, (script, values, count) in enumerate(self._calls):
            # A restarted server knows none of them, so the order among the calls is kept.
            if isinstance(answers[place], NoScriptError):
                answers[place] = await redis.eval(script.text, count, *values)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers
