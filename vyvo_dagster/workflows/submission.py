"""The jobs of steps: what a job submitted by a client goes through, as part of the engine's turn."""

import json
import time
from dataclasses import dataclass
from typing import Final

from uuid_utils.compat import uuid7

from vyvo_dagster.dispatch.input_schemas import InputSchemas
from vyvo_dagster.domain.job import DEFAULT_TIMEOUT, DEFAULT_TTL
from vyvo_dagster.domain.workflow.definition import ModelRef
from vyvo_dagster.domain.workflow.run import Start
from vyvo_dagster.errors import Conflict, InvalidInput, NotFound
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.models import SERVABLE
from vyvo_dagster.store.records import ModelVersion
from vyvo_dagster.store.submissions import NewJob
from vyvo_dagster.streams import keys

__all__ = ["JobMaker"]

_KEPT_SECONDS: Final = 2.0
_KEPT: Final = 4096
_INPUT_BYTES: Final = 256 << 10
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class _Kept:
    version: ModelVersion
    until: float


class JobMaker:
    """Makes jobs of steps that start.

    Args:
        max_attempts: how often a job is tried when its node is lost.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._schemas = InputSchemas()
        self._kept: dict[ModelRef, _Kept] = {}

    def drop(self) -> None:
        """A version that was taken for servable is not: look again."""
        self._kept.clear()

    async def make(
        self, store: Store, tenant: str, start: Start, traceparent: str | None = None
    ) -> NewJob:
        """The job of a step's attempt.

        Raises:
            NotFound: no such model or version.
            Conflict: the version does not take jobs, or the model has none that does.
            InvalidInput, InputSchemaMismatch: of the step's input.
        """
        assert start.model is not None
        version = await self._version(store, start.model)
        self._schemas.check(version, start.input)
        text = _encode(start.input)
        if "\\u0000" in text:
            raise InvalidInput("the input holds a NUL character, which cannot be stored")
        if len(text.encode()) > _INPUT_BYTES:
            raise InvalidInput(f"the input has more than {_INPUT_BYTES} bytes; pass URLs instead")
        timeout = start.timeout_seconds or version.resources.get("timeout_seconds", 0)
        return NewJob(
            id=uuid7(), tenant=tenant, model_id=version.model_id, version_id=version.id,
            version=version.version, priority=start.priority, input=text,
            max_attempts=self._max_attempts,
            ttl_seconds=DEFAULT_TTL[start.priority].total_seconds(), traceparent=traceparent,
            stream=keys.jobs(version.model_id, version.version, start.priority, tenant),
            timeout_seconds=timeout or DEFAULT_TIMEOUT,
            workflow_step_id=start.step.id, workflow_step_attempt=start.step.attempt,
        )  # fmt: skip

    async def _version(self, store: Store, model: ModelRef) -> ModelVersion:
        kept = self._kept.get(model)
        if kept is not None and kept.until > time.monotonic():
            return kept.version
        if model.version is None:
            found = await store.models.serving(model.model_id)
            if found is None and await store.models.get(model.model_id) is not None:
                raise Conflict(f"{model.model_id} has no version that is ready")
        else:
            found = await store.models.version(model.model_id, model.version)
        if found is None:
            raise NotFound(f"no model {model}")
        if found.state not in SERVABLE:
            raise Conflict(f"{model} is {found.state}; only a ready version takes jobs")
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[model] = _Kept(found, time.monotonic() + _KEPT_SECONDS)
        return found
