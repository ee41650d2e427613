"""The application: routes, errors, limits, and what lives as long as it."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI

from api import health
from api.artifacts import endpoints as artifacts
from api.audit import endpoints as audit
from api.builds import endpoints as builds
from api.context import open_context
from api.dagster_ui.door import PREFIX, DagsterDoor
from api.dagster_ui.sessions import Sessions
from api.dagster_ui.upstream import Upstream
from api.errors import add_handlers
from api.events import endpoints as events
from api.jobs import endpoints as jobs
from api.jobs import webhooks
from api.jobs.express import Express
from api.keys import endpoints as keys
from api.limits import BodyLimit
from api.models import endpoints as models
from api.models import history
from api.node_pools import endpoints as node_pools
from api.nodes import endpoints as nodes
from api.openapi import add_openapi
from api.queue import endpoints as queue
from api.timing import Timing
from api.tracing import Tracing
from api.workflows import endpoints as workflows
from vyvo_dagster.security.jwt_tokens import JwtPolicy
from vyvo_dagster.settings import S3Settings, Settings
from vyvo_dagster.telemetry import tracing

__all__ = ["create_app"]

_DESCRIPTION: Final = """\
Build runner images, register models, place them on GPU nodes, queue jobs and follow them.

Send `Authorization: Bearer <key>` or `X-API-Key: <key>`. Errors are problem documents (RFC 9457)
with a stable `code`. Lists are newest first, paged by `cursor` and `limit`. Writes take an
`Idempotency-Key`, kept for 24 hours. Times are ISO 8601, UTC.
"""


def create_app(settings: Settings, s3: S3Settings | None = None) -> FastAPI:
    """The application; its servers are reached once its lifespan begins.

    Args:
        s3: the object store; unset reads `VYVO_S3_*` from the environment.

    Raises:
        InvalidInput: the settings of JWTs do not fit together.
    """
    JwtPolicy.of(settings)  # A mistake ends the start with its message.
    store = S3Settings() if s3 is None else s3  # pyright: ignore[reportCallIssue]

    dagster = Upstream.of(settings.dagster_url, PREFIX)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(open_context(settings, store))
            if settings.grpc_port:
                from api.grpc.server import serve

                await stack.enter_async_context(serve(context, settings, settings.grpc_port))
            app.state.context = context
            if dagster is not None:
                stack.push_async_callback(dagster.close)
            yield

    app = FastAPI(
        title="vyvo-dagster", version=version("vyvo-dagster"), description=_DESCRIPTION,
        lifespan=lifespan, redirect_slashes=False,
    )  # fmt: skip
    routers = [
        n.router
        for n in (builds, models, nodes, jobs, queue, artifacts, keys, audit, events, health)
    ]
    routers += [jobs.dead_letters_router, history.router, webhooks.router, node_pools.router]
    routers += [workflows.router, workflows.runs_router]
    for router in routers:
        app.include_router(router)
    add_handlers(app)
    add_openapi(app, routers)
    app.add_middleware(Express)  # the innermost
    app.add_middleware(
        DagsterDoor, Sessions(settings), dagster, frozenset({settings.api_url.rstrip("/")})
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(Timing)
    if tracing.on():
        app.add_middleware(Tracing)
    return app
