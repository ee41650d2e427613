"""Settings with which gRPC cannot be served."""

import socket
from pathlib import Path
from typing import Any

import pytest

from api.grpc.server import serve
from vyvo_dagster.errors import Conflict, InvalidInput

from .world import make_settings


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"grpc_tls_cert": "cert.pem"}, InvalidInput),
        ({"grpc_tls_cert": "no.pem", "grpc_tls_key": "no.pem"}, InvalidInput),
        ({}, Conflict),
    ],
)
async def test_settings_that_cannot_work(tmp_path: Path, values: Any, error: Any) -> None:
    settings = make_settings("postgresql://h/d", "redis://h", tmp_path, **values)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(error):
            async with serve(None, settings, port):  # pyright: ignore[reportArgumentType]
                pass
