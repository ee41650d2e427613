"""An attempt on its way from the row to its node's stream, where nothing needs to read its input."""

import json
from dataclasses import dataclass
from uuid import UUID

from vyvo_dagster.domain.job import JobState

__all__ = ["Order"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a `RunOrder` is made of. `input` is JSON, as text."""

    job_id: UUID
    attempt: int
    node_id: UUID
    assignment_id: UUID
    model_id: str
    version: str
    input: str
    timeout_seconds: float
    traceparent: str | None

    @property
    def body(self) -> str:
        """The `RunOrder`, as JSON."""
        return (
            f'{{"job_id":"{self.job_id}","attempt":{self.attempt},'
            f'"assignment_id":"{self.assignment_id}","model_id":{json.dumps(self.model_id)},'
            f'"version":{json.dumps(self.version)},"input":{self.input},'
            f'"timeout_seconds":{self.timeout_seconds},'
            f'"traceparent":{json.dumps(self.traceparent)}}}'
        )

    @property
    def event(self) -> str:
        """Data of the job's `dispatched` event, as JSON."""
        return (
            f'{{"status":"{JobState.DISPATCHED}","attempt":{self.attempt},'
            f'"node_id":"{self.node_id}"}}'
        )
