"""What an agent and the control plane say to each other over HTTP."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from vyvo_dagster.domain.model import Resources
from vyvo_dagster.domain.node import AssignmentState

__all__ = [
    "AssignmentCredentials",
    "AttemptRef",
    "Capabilities",
    "CredentialAnswer",
    "DesiredAssignment",
    "Gpu",
    "GpuMetrics",
    "Heartbeat",
    "HeartbeatAnswer",
    "ObservedAssignment",
    "Register",
    "RegisterAnswer",
    "RegistryAccess",
    "S3Access",
]

Short = Annotated[str, Field(max_length=255)]


class _Model(BaseModel):
    # Unknown members are ignored, so that an older side understands a newer one.
    model_config = ConfigDict(extra="ignore")


class Gpu(_Model):
    """A GPU as NVML names it. Memory in bytes."""

    index: int = Field(ge=0)
    uuid: Short
    name: Short
    memory_bytes: int = Field(ge=0)
    lost: Short | None = Field(default=None, description="Why it cannot be used; null if it can.")


class Capabilities(_Model):
    """What a node has. Memory in bytes."""

    hostname: Short
    cpus: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)
    gpus: list[Gpu] = Field(default_factory=list[Gpu], max_length=64)
    driver: Short | None = None
    engine: Literal["docker", "process"]
    engine_version: Short | None = None
    agent_version: Short


class GpuMetrics(_Model):
    """One reading of a GPU. Memory in bytes, utilisation 0 to 1, temperature in °C."""

    index: int = Field(ge=0)
    memory_used_bytes: int = Field(ge=0)
    memory_total_bytes: int = Field(ge=0)
    utilization_ratio: float = Field(ge=0, le=1)
    temperature_celsius: float | None = None
    lost: Short | None = Field(default=None, description="Why it cannot be read; null if it can.")


class AttemptRef(_Model):
    """One attempt of a job; `attempt` is the fencing token."""

    job_id: UUID
    attempt: int = Field(ge=1)


class Register(_Model):
    """Body of `POST /api/nodes/register`."""

    name: Short
    boot_id: UUID = Field(description="New at every start of the agent; older starts are fenced.")
    capabilities: Capabilities
    labels: dict[Short, Short] = Field(default_factory=dict, max_length=64)


class S3Access(_Model):
    """Where and as whom this node's runners upload."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    bucket_prefix: str


class RegisterAnswer(_Model):
    """Answer to a join. `credential` is given for the join token only, shown once."""

    node_id: UUID
    credential: str | None = Field(repr=False)
    credential_seconds: float | None = Field(
        default=None, description="How long the node's credential is still good; null for ever."
    )
    redis_url: str
    s3: S3Access
    artifact_ttl_seconds: int
    heartbeat_seconds: float


class CredentialAnswer(_Model):
    """Answer to `POST /api/nodes/{id}/credential`: the node's next credential, shown once."""

    credential: str = Field(repr=False)
    credential_seconds: float = Field(description="How long it is good.")


class RegistryAccess(_Model):
    """As whom a node may pull an image, for a while: a token, or a user name and a password."""

    host: str
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    token: str | None = Field(
        default=None, repr=False, description="Pulls this one repository, in a login's place."
    )
    expires_in_seconds: float


class AssignmentCredentials(_Model):
    """Answer to `POST /api/nodes/{id}/assignments/{aid}/credentials`; kept in no database."""

    registry: RegistryAccess | None = Field(description="Null where the registry takes anyone.")


class ObservedAssignment(_Model):
    """What the agent sees of one assignment."""

    assignment_id: UUID
    state: AssignmentState
    detail: Annotated[str, Field(max_length=2000)] | None = None
    slots: int = Field(default=1, ge=1, le=4096)


class Heartbeat(_Model):
    """Body of `POST /api/nodes/{id}/heartbeat`."""

    boot_id: UUID
    sent_at: datetime
    leaving: bool = Field(
        default=False, description="The agent stops; what it runs is handed back."
    )
    memory_available_bytes: int = Field(default=0, ge=0)
    gpus: list[GpuMetrics] = Field(default_factory=list[GpuMetrics], max_length=64)
    running: list[AttemptRef] = Field(default_factory=list[AttemptRef], max_length=65536)
    assignments: list[ObservedAssignment] = Field(
        default_factory=list[ObservedAssignment], max_length=1024
    )


class DesiredAssignment(_Model):
    """One assignment in force. Weights come from S3 and are checked against their SHA-256."""

    assignment_id: UUID
    model_id: str
    version: str
    runner_image: str
    weights_url: str | None = None
    weights_sha256: str | None = None
    weights_size_bytes: int | None = None
    env: dict[str, str] = Field(default_factory=dict)
    resources: Resources = Resources()


class HeartbeatAnswer(_Model):
    """Answer to a heartbeat: what should run, and which attempts are no longer this node's."""

    server_time: datetime
    assignments: list[DesiredAssignment]
    fenced: list[AttemptRef] = Field(default_factory=list[AttemptRef])
    fence_grace_seconds: float | None = Field(
        default=None,
        description="What a prediction of `fenced` has after its cancel; null for the usual 10 s.",
    )
