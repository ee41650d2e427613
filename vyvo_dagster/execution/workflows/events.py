"""Rows of a run as the entries of Dagster's event log that an ordinary run would have left.

The same rows give the same entries, times included, however often they are asked for: an entry is
known by its run, type, step and time, so that what was written before a crash is found again.
Entries that would share all four are a microsecond apart.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dagster import AssetMaterialization, DagsterEventType, MetadataValue
from dagster._core.definitions import NodeHandle
from dagster._core.events import (
    DagsterEvent,
    EngineEventData,
    EventSpecificData,
    JobCanceledData,
    JobFailureData,
    RunFailureReason,
    StepMaterializationData,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.plan.objects import (
    StepFailureData,
    StepRetryData,
    StepSuccessData,
    TypeCheckData,
)
from dagster._core.execution.plan.outputs import StepOutputData, StepOutputHandle
from dagster_shared.error import SerializableErrorInfo

from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.domain.workflow.container import container_name
from vyvo_dagster.domain.workflow.definition import Definition
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState, StepState
from vyvo_dagster.execution.workflows.names import artifact_key, items_op, upstream_keys
from vyvo_dagster.store.workflow_records import WorkflowRun

__all__ = ["Identity", "RunEvents", "identity"]

Identity = tuple[str, str | None, int]
"""Type, step key, and time in microseconds of the epoch."""

# Without one the UI shows none of a run's events.
_CHECKED: Final = TypeCheckData(success=True, label="result")
_BAD: Final = frozenset({StepState.FAILED, StepState.EXPIRED, StepState.CANCELED})


def identity(entry: EventLogEntry) -> Identity:
    """What an entry is known by within its run."""
    event = entry.get_dagster_event()
    return event.event_type_value, event.step_key, round(entry.timestamp * 1e6)


@dataclass(frozen=True)
class RunEvents:
    """The events of one run.

    Args:
        run_id: Dagster's.
        job: name of the job.
        url: of the api, for links; None gives none.
    """

    run: WorkflowRun
    definition: Definition
    run_id: str
    job: str
    url: str | None

    def entries(self, steps: Mapping[str, Step]) -> list[EventLogEntry]:
        """All that has happened so far, in the order of time."""
        began = self.run.started_at
        found = list(self._begin())
        if began is not None:
            for step in steps.values():
                found += self._step(step, began)
        found.sort(key=lambda entry: entry.timestamp)
        found += self._end()
        return found

    def _begin(self) -> Iterator[EventLogEntry]:
        run = self.run
        links = {"workflow run": self._link(f"workflow-runs/{run.id}")}
        data = EngineEventData(metadata={
            **{name: link for name, link in links.items() if link is not None},
            "trigger": MetadataValue.text(str(run.trigger_kind)),
            "version": MetadataValue.int(run.version),
        })  # fmt: skip
        said = f"Workflow {run.name}, version {run.version}, started by {run.trigger_kind}."
        yield self._run_event(DagsterEventType.ENGINE_EVENT, run.created_at, said, data, -1)
        yield self._run_event(DagsterEventType.PIPELINE_STARTING, run.created_at, None)
        if run.started_at is not None:
            yield self._run_event(
                DagsterEventType.PIPELINE_START, run.started_at,
                f"Started execution of run for {self.job!r}.",
            )  # fmt: skip

    def _end(self) -> Iterator[EventLogEntry]:
        run, at = self.run, self.run.completed_at
        if at is None:
            return
        error = _error(run.error_code, run.error_message)
        if run.state is RunState.SUCCEEDED:
            said = f"Finished execution of run for {self.job!r}."
            yield self._run_event(DagsterEventType.PIPELINE_SUCCESS, at, said)
        elif run.state is RunState.CANCELED:
            data = JobCanceledData(error)
            yield self._run_event(
                DagsterEventType.PIPELINE_CANCELED, at, "The run was canceled.", data
            )
        else:
            failed = JobFailureData(error, RunFailureReason.STEP_FAILURE)
            said = f"The run failed: {run.error_message or run.error_code}"
            yield self._run_event(DagsterEventType.PIPELINE_FAILURE, at, said, failed)

    def _step(self, step: Step, began: datetime) -> Iterator[EventLogEntry]:
        mapped = self.definition.steps[step.name].mapped
        if mapped and step.map_index is None:
            yield from self._items(step, began)
            return
        key, handle = step.key, NodeHandle(step.name, None)
        at = _Times(began)
        if step.state is StepState.SKIPPED and step.completed_at is not None:
            yield self._step_event(
                DagsterEventType.STEP_SKIPPED, at(step.completed_at), key, handle,
                f"Skipped: {step.error_message or step.error_code}.",
            )  # fmt: skip
            return
        retried = False
        for attempt in step.attempts:
            yield from self._attempt(step, handle, attempt, at, retried=retried)
            retried = True
        begun = step.started_at or (step.completed_at if step.ended else None)
        if step.submitted_at is not None and step.job_id is not None:
            link = self._link(f"jobs/{step.job_id}")
            data = EngineEventData(metadata={} if link is None else {"job": link})
            yield self._step_event(
                DagsterEventType.STEP_WORKER_STARTING, at(step.submitted_at), key, handle,
                f"Job {step.job_id} was submitted.", data,
            )  # fmt: skip
        if step.host is not None and step.started_at is not None:
            devices = (step.placement or {}).get("devices", ())
            yield self._container(
                step, handle, step.attempt, step.host, devices, at(step.started_at)
            )
        if begun is None:
            return
        if not (step.state is StepState.CANCELED and step.submitted_at is None):
            yield self._started(step, handle, at(begun), retried=retried)
        if step.completed_at is not None and step.ended:
            yield from self._ended(step, handle, begun, at)

    def _attempt(
        self, step: Step, handle: NodeHandle, attempt: Mapping[str, Any], at: "_Times", *,
        retried: bool,
    ) -> Iterator[EventLogEntry]:  # fmt: skip
        ended = datetime.fromisoformat(attempt["completed_at"])
        begun = attempt.get("started_at") or attempt.get("submitted_at")
        if (host := attempt.get("host")) is not None and attempt.get("started_at") is not None:
            started = at(datetime.fromisoformat(attempt["started_at"]))
            yield self._container(step, handle, attempt["attempt"], host, (), started)
        yield self._started(
            step, handle, at(ended if begun is None else datetime.fromisoformat(begun)),
            retried=retried,
        )  # fmt: skip
        error = _error(attempt.get("error_code"), attempt.get("error_message"))
        yield self._step_event(
            DagsterEventType.STEP_UP_FOR_RETRY, at(ended), step.key, handle,
            f"Attempt {attempt.get('attempt')} failed and is tried again.",
            StepRetryData(error or SerializableErrorInfo("it failed", [], None)),
        )  # fmt: skip

    def _container(
        self, step: Step, handle: NodeHandle, attempt: int, host: str, devices: Sequence[str],
        at: float,
    ) -> EventLogEntry:  # fmt: skip
        name = container_name(step.id, attempt)
        return self._step_event(
            DagsterEventType.STEP_WORKER_STARTING, at, step.key, handle,
            f"Container {name} was started on {host}.",
            EngineEventData(metadata={
                "Host": MetadataValue.text(host), "Container": MetadataValue.text(name),
                "GPUs": MetadataValue.text(", ".join(devices)),
            }),
        )  # fmt: skip

    def _started(
        self, step: Step, handle: NodeHandle, at: float, *, retried: bool
    ) -> EventLogEntry:
        kind = DagsterEventType.STEP_RESTARTED if retried else DagsterEventType.STEP_START
        said = f"Started execution of step {step.key!r}."
        return self._step_event(kind, at, step.key, handle, said)

    def _ended(
        self, step: Step, handle: NodeHandle, begun: datetime, at: "_Times"
    ) -> Iterator[EventLogEntry]:
        assert step.completed_at is not None
        if step.state in _BAD:
            error = _error(step.error_code, step.error_message)
            yield self._step_event(
                DagsterEventType.STEP_FAILURE, at(step.completed_at), step.key, handle,
                f"Step {step.key!r} {step.state}: {step.error_message or step.error_code}",
                StepFailureData(error, None), logging.ERROR,
            )  # fmt: skip
            return
        yield self._output(step, handle, at)
        yield from self._artifacts(step, handle, at)
        seconds = max((step.completed_at - begun).total_seconds(), 0.0)
        yield self._step_event(
            DagsterEventType.STEP_SUCCESS, at(step.completed_at), step.key, handle,
            f"Finished execution of step {step.key!r} in {seconds:.3f} s.",
            StepSuccessData(duration_ms=seconds * 1000.0),
        )  # fmt: skip

    def _output(self, step: Step, handle: NodeHandle, at: "_Times") -> EventLogEntry:
        assert step.completed_at is not None
        # A mapped step's own output is one value of its item.
        made = StepOutputHandle(step.key, "result")
        return self._step_event(
            DagsterEventType.STEP_OUTPUT, at(step.completed_at), step.key, handle,
            f"Step {step.key!r} yielded its output.", StepOutputData(made, _CHECKED),
        )  # fmt: skip

    def _artifacts(self, step: Step, handle: NodeHandle, at: "_Times") -> Iterator[EventLogEntry]:
        assert step.completed_at is not None
        tenant, name = self.run.tenant, self.definition.name
        asset = artifact_key(tenant, name, step.name)
        made_from = upstream_keys(tenant, self.definition, self.definition.steps[step.name])
        for artifact in artifacts_in(step.output):
            job = None if step.job_id is None else self._link(f"jobs/{step.job_id}")
            materialization = AssetMaterialization(
                asset,
                metadata={
                    "url": MetadataValue.text(artifact["url"]),
                    "mime_type": artifact["mime_type"],
                    "size_bytes": artifact["size_bytes"],
                    "step": step.key,
                    "made_from": MetadataValue.json([key.to_user_string() for key in made_from]),
                    "model": self.definition.steps[step.name].what,
                    **({} if job is None else {"job": job}),
                },
            )
            yield self._step_event(
                DagsterEventType.ASSET_MATERIALIZATION, at(step.completed_at), step.key, handle,
                f"Artifact {artifact['url']}", StepMaterializationData(materialization),
            )  # fmt: skip

    def _items(self, step: Step, began: datetime) -> Iterator[EventLogEntry]:
        """Of a mapped step itself: the list of its items, as dynamic outputs."""
        key = items_op(step.name)
        handle, at = NodeHandle(key, None), _Times(began)
        if step.started_at is None:
            if step.ended and step.completed_at is not None:
                kind = DagsterEventType.STEP_SKIPPED
                data: EventSpecificData | None = None
                if step.state in _BAD and step.state is not StepState.CANCELED:
                    kind = DagsterEventType.STEP_FAILURE
                    data = StepFailureData(_error(step.error_code, step.error_message), None)
                    yield self._step_event(
                        DagsterEventType.STEP_START, at(step.completed_at), key, handle, None
                    )
                said = f"{step.error_message or step.error_code}"
                yield self._step_event(kind, at(step.completed_at), key, handle, said, data)
            return
        yield self._step_event(
            DagsterEventType.STEP_START, at(step.started_at), key, handle,
            f"Started execution of step {key!r}.",
        )  # fmt: skip
        for index in range(len(step.input["items"])):
            made = StepOutputHandle(key, "result", str(index))
            yield self._step_event(
                DagsterEventType.STEP_OUTPUT, at(step.started_at), key, handle,
                f"Item {index}.", StepOutputData(made, _CHECKED),
            )  # fmt: skip
        yield self._step_event(
            DagsterEventType.STEP_SUCCESS, at(step.started_at), key, handle,
            f"Finished execution of step {key!r}.", StepSuccessData(duration_ms=0.0),
        )  # fmt: skip

    def _link(self, path: str) -> MetadataValue[Any] | None:
        return None if self.url is None else MetadataValue.url(f"{self.url}/api/{path}")

    def _run_event(
        self, kind: DagsterEventType, at: datetime, said: str | None,
        data: EventSpecificData | None = None, microseconds: int = 0,
    ) -> EventLogEntry:  # fmt: skip
        event = DagsterEvent(
            event_type_value=kind.value, job_name=self.job, step_handle=None, node_handle=None,
            step_kind_value=None, logging_tags=None, event_specific_data=data, message=said,
            pid=None, step_key=None,
        )  # fmt: skip
        bad = kind is DagsterEventType.PIPELINE_FAILURE
        level = logging.ERROR if bad else logging.INFO
        return self._entry(event, at.timestamp() + microseconds / 1e6, None, level)

    def _step_event(
        self, kind: DagsterEventType, at: float, key: str, handle: NodeHandle, said: str | None,
        data: EventSpecificData | None = None, level: int = logging.DEBUG,
    ) -> EventLogEntry:  # fmt: skip
        tags = {
            "job_name": self.job, "op_name": handle.name, "run_id": self.run_id, "step_key": key,
        }  # fmt: skip
        event = DagsterEvent(
            event_type_value=kind.value, job_name=self.job, step_handle=None, node_handle=handle,
            step_kind_value="COMPUTE", logging_tags=tags, event_specific_data=data, message=said,
            pid=None, step_key=key,
        )  # fmt: skip
        return self._entry(event, at, key, level)

    def _entry(self, event: DagsterEvent, at: float, key: str | None, level: int) -> EventLogEntry:
        return EventLogEntry(
            error_info=None, level=level, user_message=event.message or "", run_id=self.run_id,
            timestamp=at, step_key=key, job_name=self.job, dagster_event=event,
        )  # fmt: skip


class _Times:
    """Times of one step's events: never before the run, and none twice."""

    def __init__(self, began: datetime) -> None:
        self._last = round(began.timestamp() * 1e6)

    def __call__(self, at: datetime) -> float:
        self._last = max(round(at.timestamp() * 1e6), self._last + 1)
        return self._last / 1e6


def _error(code: str | None, message: str | None) -> SerializableErrorInfo | None:
    if code is None:
        return None
    return SerializableErrorInfo(f"{code}: {message or ''}\n", [], code)
