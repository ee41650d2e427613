"""Passes that collect artifacts: asked for by a row, done by a Dagster run."""

from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from api.artifacts.schemas import SweepRequest, SweepView, sweep_view
from api.auth import Principal
from api.context import Context
from api.idempotency import Once, once
from vyvo_dagster.domain.retention import SweepState
from vyvo_dagster.errors import NotFound, Unavailable
from vyvo_dagster.store.records import SweepRow

__all__ = ["ask_for_sweep", "find_sweep"]

_JOB: Final = "collect_artifacts"


async def ask_for_sweep(
    context: Context, principal: Principal, body: SweepRequest, request: Once
) -> SweepView:
    """Note a pass and launch its run.

    Raises:
        Unavailable: Dagster does not launch it; the pass is noted as failed, and may be asked for again.
    """
    async with context.database.transaction() as store:

        async def add() -> SweepView:
            sweep_id = uuid7()
            await store.retention.add_sweep(
                id=sweep_id, dry_run=body.dry_run, requested_by=principal.prefix
            )
            await store.keys.audit(
                id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=_JOB,
                subject=str(sweep_id), detail=body.model_dump(mode="json"),
            )  # fmt: skip
            row = await store.retention.sweep(sweep_id)
            assert row is not None
            return sweep_view(row)

        view, is_new = await once(store, principal.tenant, request, SweepView, add)
    if is_new:
        config = {"sweep_id": str(view.id), **body.model_dump()}
        try:
            await context.launcher.launch_job(
                _JOB, {"collect": {"config": config}}, {"vyvo/sweep_id": str(view.id)}
            )
        except Unavailable as error:
            await _fail(context, view.id, principal.tenant, request, error.detail)
            raise
    return view


async def _fail(context: Context, id: UUID, tenant: str, request: Once, why: str) -> None:
    async with context.database.transaction() as store:
        await store.retention.move_sweep(id, SweepState.FAILED, error=why[:1000])
        if request.key is not None:
            # Its repeat is to be tried, not answered with this one.
            await store.idempotency.forget(tenant, request.key)


async def find_sweep(context: Context, id: UUID) -> SweepRow:
    """A pass; raises NotFound."""
    async with context.database.transaction() as store:
        found = await store.retention.sweep(id)
    if found is None:
        raise NotFound("no such pass")
    return found
