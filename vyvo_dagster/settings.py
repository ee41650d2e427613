"""One typed settings object, read from the environment by entry points only.

Everything below an entry point takes what it needs as arguments, so that a test or a second
instance in one process never depends on ambient state. `.env.example` explains every variable.
"""

from pathlib import Path
from typing import Literal
from uuid import UUID

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from vyvo_dagster.build_settings import BuildSettings

__all__ = [
    "AgentSettings",
    "EngineChoice",
    "HostsSettings",
    "LogFormat",
    "RunnerSettings",
    "S3Settings",
    "Settings",
]

EngineChoice = Literal["auto", "docker", "process"]
LogFormat = Literal["text", "json"]
BuildBackendChoice = Literal["auto", "buildx", "github_actions", "venv"]


class S3Settings(BaseSettings):
    """Where the artifacts are; the same names configure `vyvo_runner` inside a runner."""

    model_config = SettingsConfigDict(env_prefix="VYVO_S3_", extra="ignore")

    endpoint: str = Field(
        default="http://127.0.0.1:9000", description="S3 endpoint URL, http or https."
    )
    public_endpoint: str | None = Field(
        default=None,
        description="Endpoint written into presigned URLs when clients see another one.",
    )
    access_key: str = Field(default="vyvo", description="S3 access key id.")
    secret_key: SecretStr = Field(default=SecretStr("vyvo-secret"), description="S3 secret key.")
    region: str = Field(default="us-east-1", description="Region used to sign requests.")
    bucket_prefix: str = Field(
        default="vyvo-",
        description="Put before each modality to name its bucket, such as vyvo-image.",
    )


class Settings(BuildSettings):
    """What the servers (api, orchestrator, Dagster code) need. Prefix `VYVO_`."""

    model_config = SettingsConfigDict(env_prefix="VYVO_", env_file=".env", extra="ignore")

    postgres_dsn: str = Field(
        default="postgresql://vyvo@127.0.0.1:5432/vyvo",
        description="libpq URL of the registry database.",
    )
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis server.")
    data_dir: Path = Field(
        default=Path(".vyvo"), description="Local state: caches, wheelhouse, venvs, logs."
    )

    api_host: str = Field(default="127.0.0.1", description="Address the api binds.")
    api_port: int = Field(default=8080, ge=0, le=65535, description="Port the api binds.")
    api_url: str = Field(
        default="http://127.0.0.1:8080", description="URL at which others reach the api."
    )
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the api's gRPC; unset or 0 serves none."
    )
    grpc_tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain of gRPC; unset serves it in plain text."
    )
    grpc_tls_key: Path | None = Field(default=None, description="PEM key of that certificate.")
    orchestrator_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the orchestrator's /healthz; 0 serves none."
    )
    workflow_port: int = Field(
        default=0, ge=0, le=65535,
        description="Port of the workflow engine's /healthz and /metrics; 0 serves none.",
    )  # fmt: skip
    workflow_reporter_port: int = Field(
        default=0, ge=0, le=65535,
        description="Port of the workflow reporter's /healthz and /metrics; 0 serves none.",
    )  # fmt: skip
    worker_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the Celery worker's /metrics; 0 serves none.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address that those four ports bind; they ask for no key.",
    )
    log_format: LogFormat = Field(
        default="text", description="Lines of logs: text for people, or one JSON object each."
    )
    workflow_lease_seconds: float = Field(
        default=15.0, gt=0,
        description="After so long without a sign of its engine a workflow run is taken over.",
    )  # fmt: skip
    workflow_capacity: int = Field(
        default=5000, ge=1, description="Workflow runs that one engine drives at a time."
    )
    workflow_code_server: str | None = Field(
        default=None,
        description="host:port of the code server of the location workflows; links runs to jobs.",
    )
    admin_key: SecretStr | None = Field(
        default=None, description="Admin API key ensured at start; unset creates none."
    )
    join_token: SecretStr | None = Field(
        default=None, description="Token with which agents may join; unset refuses all joins."
    )

    jwt_jwks_url: str | None = Field(
        default=None, description="Where an issuer's public keys are (JWKS); unset takes no JWTs."
    )
    jwt_issuer: str | None = Field(default=None, description="The `iss` that JWTs must have.")
    jwt_audience: str | None = Field(default=None, description="The `aud` that they must name.")
    jwt_leeway_seconds: int = Field(
        default=30, ge=0, le=300, description="How far the issuer's clock may be off."
    )
    jwt_scope_claim: str = Field(default="scope", description="The claim that holds the scopes.")
    jwt_tenant_claim: str = Field(default="tenant", description="The claim that names the tenant.")
    session_secret: SecretStr | None = Field(
        default=None,
        description="Signs sessions of browsers at /dagster, alike in all api processes; unset: admin_key.",
    )
    session_seconds: int = Field(
        default=4 * 3600, ge=60, le=86400, description="Life of such a session."
    )
    auth_failures_per_minute: int = Field(
        default=60, ge=0, le=100_000,
        description="Failed authentications that an address may make a minute; 0 limits none.",
    )  # fmt: skip

    node_credential_seconds: int = Field(
        default=30 * 86400, ge=60,
        description="Life of a node's own credential; its agent has it replaced after half of that.",
    )  # fmt: skip
    keep_webhook_days: float = Field(
        default=30, gt=0, description="Days that webhook deliveries are kept after they ended."
    )
    keep_dead_entry_days: float = Field(
        default=30, gt=0, description="Days that unreadable stream entries are kept."
    )
    keep_node_event_days: float = Field(
        default=90, gt=0, description="Days that the history of nodes is kept."
    )
    secret_registries: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Registry host to user:password, as a JSON object; for pulls and builds.",
    )
    secret_hugging_face: SecretStr | None = Field(
        default=None, description="Token of the Hugging Face hub, for weights of builds."
    )
    secret_node_seconds: int = Field(
        default=600, gt=0, description="How long a node may use a login that it was given."
    )

    dagster_url: str | None = Field(
        default=None,
        description="URL of the Dagster webserver, with --path-prefix /dagster; unset: no direct launches, no UI.",
    )

    engine: EngineChoice = Field(
        default="auto", description="Whether builds and runners use containers."
    )
    docker_host: str | None = Field(default=None, description="Docker engine; unset: Docker's own.")
    build_backend: BuildBackendChoice = Field(
        default="auto", description="Backend for builds that name none."
    )
    registry: str = Field(
        default="127.0.0.1:5000", description="OCI registry that images are pushed to."
    )
    base_image: str = Field(
        default="vyvo/base:bookworm", description="Default base image of builds."
    )

    heartbeat_seconds: float = Field(default=10.0, gt=0, description="Interval asked of agents.")
    suspect_seconds: float = Field(
        default=30.0, gt=0, description="Silence after which a node is suspect."
    )
    lost_seconds: float = Field(
        default=60.0, gt=0, description="Silence after which a node is lost."
    )
    lease_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Life of an attempt's lease between renewals; as lost_seconds, or work moves earlier.",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Attempts of a job before it fails as node_lost."
    )
    on_demand_idle_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="A version that was loaded since jobs waited is unloaded when unused for so long.",
    )
    webhook_allow_loopback: bool = Field(
        default=False, description="Let webhooks go to this machine itself, by http too."
    )
    local_agents: int = Field(
        default=8, ge=0, le=1024,
        description="Agents that local node pools may run on the api's machine together.",
    )  # fmt: skip
    terraform: str = Field(
        default="terraform", description="Program that scales terraform node pools."
    )
    terraform_modules: Path | None = Field(
        default=None, description="Folder of their modules; unset allows no such pool."
    )
    terraform_seconds: int = Field(
        default=1800, gt=0, description="What one command of it may take."
    )
    scaler_webhook_url: str | None = Field(
        default=None, description="Where node pools of the kind webhook are told of."
    )
    scaler_webhook_secret: SecretStr | None = Field(
        default=None, description="whsec_ and base64; signs what is sent there."
    )
    artifact_ttl_seconds: int = Field(
        default=7 * 86400, gt=0, description="Life of an artifact in its bucket."
    )
    presign_seconds: int = Field(
        default=3600, gt=0, le=604800, description="Life of a presigned URL."
    )


class HostsSettings(BaseSettings):
    """How ops reach the Docker engines of tagged hosts. Prefix `VYVO_HOSTS_`."""

    model_config = SettingsConfigDict(env_prefix="VYVO_HOSTS_", extra="ignore")

    engines: dict[str, str] = Field(
        default_factory=dict,
        description="Node name to engine URL, as a JSON object; {node} in that of * is the name.",
    )
    tls_dir: Path | None = Field(
        default=None,
        description="ca.pem, cert.pem and key.pem for tcp://; a folder of the node's name goes first.",
    )
    image: str | None = Field(
        default=None, description="Image with Dagster and this code, for ops on tagged hosts."
    )
    network: str | None = Field(
        default=None, description="Docker network of those ops, such as host."
    )
    env: list[str] = Field(
        default=[
            "VYVO_DAGSTER_POSTGRES_URL",
            "VYVO_POSTGRES_DSN",
            "VYVO_REDIS_URL",
            "VYVO_S3_ENDPOINT",
            "VYVO_S3_ACCESS_KEY",
            "VYVO_S3_SECRET_KEY",
            "VYVO_S3_REGION",
            "VYVO_S3_BUCKET_PREFIX",
        ],
        description="Variables that those ops get, of those that are set, as a JSON list.",
    )
    weights_dir: str | None = Field(
        default="/var/lib/vyvo-agent/weights",
        description="The nodes' weights cache, {node} is the name; read-only at /weights.",
    )


class AgentSettings(BaseSettings):
    """What the node agent needs. Prefix `VYVO_AGENT_`; a GPU host sets nothing else."""

    model_config = SettingsConfigDict(env_prefix="VYVO_AGENT_", extra="ignore")

    api_url: str = Field(
        default="http://127.0.0.1:8080", description="URL of the control plane's api."
    )
    join_token: SecretStr | None = Field(default=None, description="Token for the first join.")
    report_by: Literal["http", "grpc"] = Field(
        default="http", description="How attempts are reported; all else goes by HTTP."
    )
    grpc_url: str | None = Field(
        default=None, description="grpc://host:port, or grpcs:// with TLS; for reports by gRPC."
    )
    grpc_ca: Path | None = Field(
        default=None, description="PEM certificates that the api's gRPC is checked with."
    )
    name: str | None = Field(default=None, description="Node name; unset takes the host's name.")
    data_dir: Path = Field(
        default=Path("/var/lib/vyvo-agent"),
        description="Credential, weights cache, runner state and logs.",
    )
    env_dir: Path = Field(
        default=Path("/etc/vyvo"), description="Where <model>.env files are written."
    )
    venv_dir: Path | None = Field(
        default=None,
        description="Where environments of the venv build backend are; unset: data_dir/venvs.",
    )
    engine: EngineChoice = Field(
        default="auto", description="Run runners as containers or as processes."
    )
    docker_host: str | None = Field(default=None, description="Docker engine; unset: Docker's own.")
    runners: Literal["agent", "systemd"] = Field(
        default="agent",
        description="Who looks after runners: this agent, or units vyvo-runner@<model>.service.",
    )
    systemd_user: bool = Field(
        default=False, description="Ask this user's own systemd (systemctl --user) for units."
    )
    keep_runners: bool = Field(
        default=False,
        description="Leave containers running when the agent stops; its next start adopts them.",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels, as a JSON object.")
    slots: int = Field(
        default=1, ge=1, le=4096, description="Concurrent predictions per loaded version."
    )
    max_output_bytes: int = Field(
        default=64 << 20,
        ge=1 << 10,
        description="What is read of one prediction's output; bounds this process's memory.",
    )
    log_format: LogFormat = Field(
        default="text", description="Lines of its log: text for people, or one JSON object each."
    )
    metrics_port: int = Field(
        default=0, ge=0, le=65535,
        description="Port of the agent's /healthz and /metrics; 0 serves none.",
    )  # fmt: skip
    metrics_host: str = Field(
        default="127.0.0.1", description="Address that this port binds; it asks for no key."
    )
    allow_noop: bool = Field(
        default=False,
        description="Take noop:// versions, which answer their input: for load tests only.",
    )

    @property
    def keeps_runners(self) -> bool:
        """Whether runners that can outlive the agent do; those of systemd always do."""
        return self.keep_runners or self.runners == "systemd"


class RunnerSettings(BaseSettings):
    """One runner under systemd, as its agent wrote it down. Prefix `VYVO_RUNNER_`."""

    model_config = SettingsConfigDict(env_prefix="VYVO_RUNNER_", extra="ignore")

    node_id: UUID = Field(description="The node.")
    assignment_id: UUID = Field(description="The assignment.")
    image: str = Field(description="Image reference, or venv://sha256:<hex>.")
    port: int = Field(ge=1, le=65535, description="Loopback port that it must listen on.")
    names: str = Field(description="Names of the variables that it gets, between spaces.")
    weights: str | None = Field(default=None, description="Where its weights are on this host.")
    gpu_uuid: str | None = Field(default=None, description="The GPU that it may use.")
    memory_bytes: int = Field(default=0, ge=0, description="Its limit of memory; 0 for none.")
    loopback_uploads: bool = Field(
        default=False, description="The object store is on this host's loopback."
    )
    venv_dir: Path = Field(description="Where environments of the venv build backend are.")
    state_dir: Path = Field(description="Logs and home folders of runners.")
    docker_host: str | None = Field(default=None, description="Docker engine; unset: Docker's own.")
    stop_seconds: float = Field(
        default=10.0, ge=0, description="What a prediction has to end after SIGTERM."
    )
