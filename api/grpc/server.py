"""The gRPC server of the api's process: on while its application is."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from api.context import Context
from api.grpc.service import CompletionService
from vyvo_dagster.errors import Conflict, InvalidInput
from vyvo_dagster.protocol.grpc.completion_pb2 import DESCRIPTOR
from vyvo_dagster.protocol.grpc.completion_pb2_grpc import add_CompletionServiceServicer_to_server
from vyvo_dagster.settings import Settings

__all__ = ["serve"]

_GRACE_SECONDS: Final = 2.0
_OPTIONS: Final = (
    # As much as the routes take.
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_concurrent_streams", 256),
    # Two processes must not share a port in silence.
    ("grpc.so_reuseport", 0),
    # A node that is gone without a word holds its connection for this long.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


@asynccontextmanager
async def serve(context: Context, settings: Settings, port: int) -> AsyncGenerator[None]:
    """Serve on `port` until left; calls under way then get two seconds.

    Raises:
        Conflict: the port is in use.
        InvalidInput: the certificate or its key is missing or cannot be read.
    """
    server = grpc.aio.server(options=_OPTIONS)
    completion, healthy = CompletionService(context), health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    add_CompletionServiceServicer_to_server(completion, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    address = f"{_host(settings.api_host)}:{port}"
    credentials = _credentials(settings.grpc_tls_cert, settings.grpc_tls_key)
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise Conflict(f"gRPC cannot listen on {address}; is the port in use?") from error
    try:
        await server.start()
        for service in ("", DESCRIPTOR.services_by_name["CompletionService"].full_name):
            await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        yield
    finally:
        await healthy.enter_graceful_shutdown()
        await server.stop(_GRACE_SECONDS)
        await completion.close()


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _credentials(cert: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InvalidInput("set both VYVO_GRPC_TLS_CERT and VYVO_GRPC_TLS_KEY, or neither")
    try:
        return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    except OSError as error:
        raise InvalidInput(f"the certificate of gRPC cannot be read: {error}") from error
