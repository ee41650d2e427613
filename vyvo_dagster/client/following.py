"""What a follower of an event stream remembers between connections. No I/O."""

import json
from dataclasses import dataclass, field
from typing import Final

import httpx

from vyvo_dagster.client.calls import Stream
from vyvo_dagster.client.models import Event
from vyvo_dagster.client.problems import problem
from vyvo_dagster.client.retry import retry_after
from vyvo_dagster.errors import RunnerFailed, Unavailable
from vyvo_dagster.protocol.sse import ServerSentEvent

__all__ = ["TIMEOUT", "Following"]

# A stream sends a comment at least every 15 s.
TIMEOUT: Final = httpx.Timeout(10.0, read=60.0)
_FIRST: Final = 0.2
_LONGEST: Final = 5.0
_AGAIN: Final = frozenset({429, 502, 503, 504})


@dataclass(slots=True)
class Following:
    """One stream over any number of connections.

    Args:
        after: id of the last event that is already known.
        patience: connections in a row that may bring nothing before it gives up.
    """

    stream: Stream
    after: str = ""
    patience: int = 20
    over: bool = False
    _fruitless: int = field(default=0)
    _reason: str = "the server closed it"

    @property
    def headers(self) -> dict[str, str]:
        """What the next connection is asked with."""
        accept = {"Accept": "text/event-stream"}
        return accept | ({"Last-Event-ID": self.after} if self.after else {})

    def take(self, sent: ServerSentEvent) -> Event:
        """Note an event; it ends the counting of connections that brought nothing."""
        self._fruitless = 0
        self.after = sent.id or self.after
        self.over = sent.event == self.stream.last
        try:
            return Event(sent.id, sent.event, json.loads(sent.data))
        except ValueError as error:
            raise RunnerFailed(f"the stream of {self.stream.path} holds no JSON") from error

    def refused(self, response: httpx.Response) -> float:
        """Pause after an answer that is no success; raises its error unless it may pass."""
        error = problem(response)
        if response.status_code not in _AGAIN:
            raise error
        self._reason = error.detail
        asked = retry_after(response)
        return max(self.broke(), 0.0 if asked is None else min(asked, _LONGEST))

    def broke(self, error: httpx.TransportError | None = None) -> float:
        """Pause after a connection ended, by an error or cleanly (a server that stops does that).

        Raises:
            Unavailable: too many in a row brought nothing.
        """
        if error is not None:
            self._reason = str(error) or type(error).__name__
        self._fruitless += 1
        if self._fruitless > self.patience:
            raise Unavailable(
                f"the stream of {self.stream.path} broke {self._fruitless} times in a row"
                f" ({self._reason}); try again later"
            )
        return min(_FIRST * 2 ** (self._fruitless - 1), _LONGEST)
