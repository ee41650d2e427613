"""The tables of models, their versions and their builds; see `tables` for what holds of all."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.domain.collection import CollectedKind
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.store.columns import TIME as _TIME
from vyvo_dagster.store.columns import UUID as _UUID
from vyvo_dagster.store.columns import id_column as _id
from vyvo_dagster.store.columns import metadata
from vyvo_dagster.store.columns import now_column as _now
from vyvo_dagster.store.columns import one_of as _one_of

__all__ = ["collected", "model_versions", "models", "runner_builds"]

models = sa.Table(
    "models",
    metadata,
    sa.Column("model_id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    _now(),
)

model_versions = sa.Table(
    "model_versions",
    metadata,
    _id(),
    sa.Column("model_id", sa.Text, sa.ForeignKey("models.model_id"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("modality", sa.Text, nullable=False),
    sa.Column("runner_image", sa.Text),
    sa.Column("image_digest", sa.Text),
    sa.Column("weights_uri", sa.Text, comment="As the caller named it."),
    sa.Column("weights_url", sa.Text, comment="Our checksummed copy in S3."),
    sa.Column("weights_sha256", sa.Text),
    sa.Column("weights_size_bytes", sa.BigInteger),
    sa.Column("env", JSONB, nullable=False, server_default="{}"),
    sa.Column("resources", JSONB, nullable=False, server_default="{}"),
    sa.Column("input_schema", JSONB),
    sa.Column("output_schema", JSONB),
    sa.Column("build_id", _UUID),
    sa.Column("collected_at", _TIME, comment="When its image was removed; it cannot serve again."),
    _now(),
    _now("updated_at"),
    sa.UniqueConstraint("model_id", "version"),
    _one_of("state", VersionState),
    _one_of("modality", Modality),
)

runner_builds = sa.Table(
    "runner_builds",
    metadata,
    _id(),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("version_id", _UUID, sa.ForeignKey("model_versions.id"), nullable=False),
    sa.Column("runner_name", sa.Text, nullable=False),
    sa.Column("template", sa.Text, nullable=False),
    sa.Column("repo", sa.Text),
    sa.Column(
        "ref", sa.Text, comment="Branch, tag or commit as asked; null is the default branch."
    ),
    sa.Column("source_commit", sa.Text, comment="What the ref meant when it was built."),
    sa.Column("weights_uri", sa.Text),
    sa.Column("env", JSONB, nullable=False, server_default="{}"),
    sa.Column("base_image", sa.Text),
    sa.Column("backend", sa.Text, nullable=False, comment="As asked."),
    sa.Column("backend_used", sa.Text, comment="As chosen."),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("launch_claimed_at", _TIME, comment="Who sets it launches the run; expires."),
    sa.Column("run_id", sa.Text, comment="The Dagster run that executes the build."),
    sa.Column("host", sa.Text, comment="Where it is executed."),
    sa.Column(
        "attempt",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="Runs that have taken it, one after another.",
    ),
    sa.Column(
        "rebuild_of",
        _UUID,
        sa.ForeignKey("model_versions.id"),
        comment="The version that it builds once more.",
    ),
    sa.Column(
        "unchanged",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="A rebuild that came to the digest that the version has.",
    ),
    sa.Column("image", sa.Text),
    sa.Column("image_digest", sa.Text),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("lock_sha256", sa.Text),
    sa.Column("lock_url", sa.Text, comment="The lock in S3."),
    sa.Column("sbom_url", sa.Text, comment="The CycloneDX bill of materials in S3."),
    sa.Column("base_digest", sa.Text),
    sa.Column("template_hash", sa.Text),
    sa.Column("input_schema", JSONB, comment="Of the built runner; the version's, once ready."),
    sa.Column("output_schema", JSONB),
    sa.Column("log_url", sa.Text),
    sa.Column("log_lines", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("durations", JSONB, nullable=False, server_default="{}"),
    sa.Column("traceparent", sa.Text, comment="W3C trace context of the request."),
    _now(),
    sa.Column("started_at", _TIME),
    sa.Column("finished_at", _TIME),
    _one_of("state", BuildState),
    _one_of("backend", BuildBackend),
    sa.Index(None, "version_id"),
    sa.Index("runner_builds_open_idx", "created_at", postgresql_where=sa.text("state = 'queued'")),
    sa.Index(
        "runner_builds_at_work_idx",
        "id",
        postgresql_where=sa.text("state in ('building', 'pushing')"),
    ),
    # One rebuild of a version at a time.
    sa.Index(
        "runner_builds_rebuild_key",
        "rebuild_of",
        unique=True,
        postgresql_where=sa.text("state in ('queued', 'building', 'pushing')"),
    ),
)

collected = sa.Table(
    "collected",
    metadata,
    _id(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, comment="Image by digest, or folder."),
    sa.Column("place", sa.Text, nullable=False, comment="Registry, engine or build host."),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    _now(),
    _one_of("kind", CollectedKind),
)
