"""The registry: models, versions made elsewhere, promotion and rollback."""

from typing import Any

import jsonschema
from uuid_utils.compat import uuid7

from api.auth import Principal, check_owner
from api.context import Context
from api.fields import check_json
from api.models.schemas import VersionPut, VersionUpdate
from vyvo_dagster.building.validation import validate_env
from vyvo_dagster.domain.model import Modality, VersionState, parse_model_id, parse_version
from vyvo_dagster.errors import (
    Conflict,
    IllegalTransition,
    InvalidInput,
    NotFound,
    VersionExists,
    VersionImmutable,
)
from vyvo_dagster.objects import parse_s3_uri
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.records import Model, ModelVersion

__all__ = ["find", "find_version", "promote", "put_version", "rollback", "update_version"]

_PROMOTE = "promote"
_EDITABLE = frozenset({VersionState.DRAFT})


async def find(store: Store, model_id: str, principal: Principal | None = None) -> Model:
    """A model; where a principal is given, of its own tenant, and locked for what follows.

    Raises NotFound, Forbidden.
    """
    model = await store.models.get(parse_model_id(model_id), lock=principal is not None)
    if model is None:
        raise NotFound(f"no model {model_id}")
    if principal is not None:
        check_owner(principal, model.tenant, f"model {model_id}")
    return model


async def find_version(store: Store, model_id: str, version: str) -> ModelVersion:
    """A version, else NotFound."""
    found = await store.models.version(parse_model_id(model_id), parse_version(version))
    if found is None:
        raise NotFound(f"no version {version} of {model_id}")
    return found


async def put_version(
    context: Context, principal: Principal, model_id: str, version: str, body: VersionPut
) -> ModelVersion:
    """Register a version that was built elsewhere; a repeat of the same body changes nothing.

    Raises:
        VersionExists: it exists and is another.
    """
    values = _checked(context, body)
    async with context.database.transaction() as store:
        parse_version(version)
        model = await store.models.ensure(parse_model_id(model_id), principal.tenant)
        check_owner(principal, model.tenant, f"model {model_id}")
        made = await store.models.create_draft(
            id=uuid7(), model_id=model_id, version=version, template=body.template,
            modality=Modality(body.modality), values=values,
        )  # fmt: skip
        if made is None:
            found = await find_version(store, model_id, version)
            same = found.modality == body.modality and all(
                getattr(found, name) == value for name, value in values.items()
            )
            if not same:
                raise VersionExists(
                    f"version {version} of {model_id} exists and is another; name a new version"
                )
            return found
        if body.runner_image is not None:
            ready = await store.models.move(made.id, VersionState.READY)
            assert ready is not None
            made = ready
        await _audit(store, principal, "version_put", f"{model_id}@{version}", {})
    context.registry.drop()
    return made


def _checked(context: Context, body: VersionPut) -> dict[str, Any]:
    validate_env(body.env)
    for what, schema in (
        ("input_schema", body.input_schema),
        ("output_schema", body.output_schema),
    ):
        if schema is not None:
            check_json(schema, what)
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                raise InvalidInput(f"{what} is not a JSON Schema: {error.message[:300]}") from error
    image = body.runner_image
    return {
        "runner_image": image,
        "image_digest": None if image is None else f"sha256:{image.rpartition(':')[2]}",
        "weights_url": body.weights_url,
        "weights_sha256": _weights_digest(context, body.weights_url),
        "env": dict(body.env),
        "resources": body.resources.model_dump(),
        "input_schema": body.input_schema,
        "output_schema": body.output_schema,
    }


def _weights_digest(context: Context, url: str | None) -> str | None:
    """The checksum that the name of stored weights holds; agents check the bytes against it."""
    if url is None:
        return None
    bucket, key = parse_s3_uri(url)
    folder, _, digest = key.rpartition("/")
    hexadecimal = len(digest) == 64 and all(c in "0123456789abcdef" for c in digest)
    if (
        bucket != context.objects.bucket(Modality.MODEL)
        or folder != "weights/sha256"
        or not hexadecimal
    ):
        raise InvalidInput(
            f"weights_url must be s3://{context.objects.bucket(Modality.MODEL)}/weights/sha256/<hex>; "
            "other weights come in by a build's weights_uri"
        )
    return f"sha256:{digest}"


async def update_version(
    context: Context, principal: Principal, model_id: str, version: str, body: VersionUpdate
) -> ModelVersion:
    """Change or retire a version.

    Raises:
        IllegalTransition: its state does not allow that.
    """
    if body.env is not None:
        validate_env(body.env)
    async with context.database.transaction() as store:
        await find(store, model_id, principal)
        found = await find_version(store, model_id, version)
        values: dict[str, Any] = {}
        if body.env is not None:
            values["env"] = body.env
        if body.resources is not None:
            values["resources"] = body.resources.model_dump()
        if values:
            changed = await store.models.update(found.id, _EDITABLE, values)
            if changed is None:
                raise VersionImmutable(
                    f"version {version} is {found.state}, and only a draft can be edited;"
                    " register another version"
                )
            found = changed
        if body.state is not None and found.state is not body.state:
            moved = await store.models.move(found.id, body.state)
            if moved is None:
                raise IllegalTransition(
                    f"a version that is {found.state} cannot become {body.state}"
                )
            found = moved
        await _audit(store, principal, "version_update", f"{model_id}@{version}",
                     body.model_dump(mode="json", exclude={"env"}, exclude_none=True))  # fmt: skip
    context.registry.drop()
    return found


async def promote(store: Store, principal: Principal, model_id: str, version: str) -> ModelVersion:
    """Make a ready version the one that new jobs get; a repeat changes nothing.

    Raises:
        Conflict: the version is not ready.
    """
    await find(store, model_id, principal)
    found = await find_version(store, model_id, version)
    if found.state is VersionState.ACTIVE:
        return found
    before = await store.models.serving(model_id)
    active = before if before is not None and before.state is VersionState.ACTIVE else None
    promoted = await _activate(store, model_id, found)
    await _audit(store, principal, _PROMOTE, model_id,
                 {"to": version, "from": None if active is None else active.version})  # fmt: skip
    return promoted


async def rollback(store: Store, principal: Principal, model_id: str) -> ModelVersion:
    """Make the version active that was so before the active one was promoted.

    Raises:
        Conflict: there is none to go back to.
    """
    await find(store, model_id, principal)
    active = await store.models.serving(model_id)
    if active is None or active.state is not VersionState.ACTIVE:
        raise Conflict(f"{model_id} has no active version; promote one")
    promotions = await store.keys.audited(_PROMOTE, model_id, 1000)
    earlier = next((p["from"] for p in promotions if p["to"] == active.version), None)
    if earlier is None:
        raise Conflict(f"no version of {model_id} was active before {active.version}")
    restored = await _activate(store, model_id, await find_version(store, model_id, earlier))
    await _audit(store, principal, "rollback", model_id, {"to": earlier, "from": active.version})
    return restored


async def _activate(store: Store, model_id: str, version: ModelVersion) -> ModelVersion:
    await store.models.demote_active(model_id)
    active = await store.models.move(version.id, VersionState.ACTIVE)
    if active is None:
        raise Conflict(
            f"version {version.version} of {model_id} is {version.state}; only a ready one can serve"
        )
    return active


async def _audit(
    store: Store, principal: Principal, action: str, subject: str, detail: dict[str, Any]
) -> None:
    await store.keys.audit(
        id=uuid7(), tenant=principal.tenant, key_prefix=principal.prefix, action=action,
        subject=subject, detail=detail,
    )  # fmt: skip
