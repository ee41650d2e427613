"""Client of the REST api."""

from vyvo_dagster.client.client import ApiError, Client
from vyvo_dagster.client.sse import ServerSentEvent

__all__ = ["ApiError", "Client", "ServerSentEvent"]
