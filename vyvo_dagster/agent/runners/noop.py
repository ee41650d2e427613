"""Runners that are nothing: `noop://` versions answer with their input, at once unless told to sleep.

For load and fault tests of everything around a prediction. A node takes them only where its operator says so
(`VYVO_AGENT_ALLOW_NOOP=1`), so that no version can pass for a model's by mistake.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from vyvo_dagster.agent.cog_client import (
    Health,
    HealthStatus,
    Listener,
    Prediction,
    PredictionStatus,
)
from vyvo_dagster.agent.runners.base import Access, Runner, RunnerSpec
from vyvo_dagster.errors import RunnerFailed

__all__ = ["NoopLauncher", "NoopRunner"]

_SCHEME: Final = "noop://"
_SLEEP: Final = "sleep_seconds"
"""Member of the input that says how long the prediction takes, for tests of what happens meanwhile."""
_CLOCK: Final = "clock"
"""Member of the input that becomes the time at which the prediction began, in seconds of the epoch."""
_LONGEST_SLEEP: Final = 600.0


class NoopLauncher:
    """Starts nothing, and says so of a node that does not allow it.

    Args:
        allowed: whether the node's operator allows such runners.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed

    def accepts(self, image: str) -> bool:
        """Whether `image` is one that only answers its input."""
        return image.startswith(_SCHEME)

    async def prepare(self, image: str, access: Access | None = None) -> None:
        """Nothing is fetched."""
        if not self._allowed:
            raise RunnerFailed(
                f"{image} is a runner for load tests; this node takes one only with "
                "VYVO_AGENT_ALLOW_NOOP=1"
            )

    async def launch(self, spec: RunnerSpec) -> Runner:
        """A runner that serves at once."""
        return NoopRunner()

    async def sweep(self, keep: Iterable[object]) -> None:
        """Nothing is left of an earlier start."""

    def leave(self) -> None:
        """There is nothing to leave."""

    async def aclose(self) -> None:
        """Nothing is held."""


class NoopRunner:
    """Serves until it is stopped."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    def connect(self, output_bytes: int) -> "NoopClient":
        """A client that answers by itself."""
        return NoopClient()

    async def wait(self) -> str:
        """Return once it was stopped."""
        await self._stopped.wait()
        return "the runner was stopped"

    async def stop(self, grace_seconds: float) -> None:
        """End it."""
        self._stopped.set()

    async def log_tail(self) -> str:
        """It writes nothing."""
        return ""


class NoopClient:
    """Answers every prediction with its input, after as long as the input asks for."""

    def __init__(self) -> None:
        self._sleeping: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def health(self) -> Health:
        """Always ready."""
        return Health(HealthStatus.READY)

    async def predict(
        self,
        prediction_id: str,
        input: Mapping[str, Any],
        listener: Listener,
        *,
        context: Mapping[str, str] | None = None,
        traceparent: str | None = None,
    ) -> Prediction:
        """Succeed, at once where the input names no `sleep_seconds`."""
        output = dict(input)
        if _CLOCK in input:
            output[_CLOCK] = time.time()
        seconds = input.get(_SLEEP, 0)
        if isinstance(seconds, int | float) and seconds > 0:
            canceled = self._sleeping[prediction_id] = asyncio.Event()
            try:
                async with asyncio.timeout(min(seconds, _LONGEST_SLEEP)):
                    await canceled.wait()
                return Prediction(PredictionStatus.CANCELED, None)
            except TimeoutError:
                pass
            finally:
                del self._sleeping[prediction_id]
        return Prediction(PredictionStatus.SUCCEEDED, output)

    async def cancel(self, prediction_id: str) -> bool:
        """Wake a prediction that sleeps; whether there was one."""
        if canceled := self._sleeping.get(prediction_id):
            canceled.set()
        return canceled is not None
