"""Calls about builds and the registry of models, for `Client.send`; see `calls`."""

import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from vyvo_dagster.client.calls import Call, Id, Json
from vyvo_dagster.client.models import Build, BuildAccepted, Model, Page, Version

__all__ = [
    "builds", "cancel_build", "diff", "history", "model", "promote", "rebuild", "retire",
    "retry_build", "rollback",
]  # fmt: skip


def _read(cls: type[BaseModel]) -> Callable[[Any], Any]:
    return cls.model_validate


def _once(key: str | None) -> str:
    """Each call has a key of its own, so that it may be tried again."""
    return key or uuid.uuid4().hex


def _json(answer: Any) -> Json:
    return dict(answer)


def _model(model_id: str) -> str:
    owner, _, name = model_id.partition("/")
    return f"/api/models/{quote(owner, safe='')}/{quote(name, safe='')}"


def _version(model_id: str, version: str) -> str:
    return f"{_model(model_id)}/versions/{quote(version, safe='')}"


def builds(
    *, status: str | None = None, model_id: str | None = None, cursor: str | None = None,
    limit: int = 50,
) -> Call[Page[Build]]:  # fmt: skip
    """A page of builds, newest first."""
    given = {"status": status, "model_id": model_id, "cursor": cursor}
    params: dict[str, str | int] = {k: v for k, v in given.items() if v is not None}
    return Call("GET", "/api/builds", _read(Page[Build]), params={**params, "limit": limit})


def cancel_build(build_id: Id) -> Call[Build]:
    """Cancel a build; a repeat changes nothing."""
    path = f"/api/builds/{quote(str(build_id), safe='')}/cancel"
    return Call("POST", path, _read(Build), naturally_repeatable=True)


def retry_build(build_id: Id, key: str | None = None) -> Call[BuildAccepted]:
    """Build again what failed or was canceled."""
    path = f"/api/builds/{quote(str(build_id), safe='')}/retry"
    return Call("POST", path, _read(BuildAccepted), key=_once(key))


def rebuild(model_id: str, version: str, key: str | None = None) -> Call[BuildAccepted]:
    """Build a ready version once more."""
    path = f"{_version(model_id, version)}/rebuild"
    return Call("POST", path, _read(BuildAccepted), key=_once(key))


def model(model_id: str) -> Call[Model]:
    """One model."""
    return Call("GET", _model(model_id), _read(Model))


def promote(model_id: str, version: str, key: str | None = None) -> Call[Version]:
    """Make a version the one that new jobs get."""
    path, body = f"{_model(model_id)}/promote", {"version": version}
    return Call("POST", path, _read(Version), body, key=_once(key))


def rollback(model_id: str, key: str | None = None) -> Call[Version]:
    """Go back to the version that was active before."""
    return Call("POST", f"{_model(model_id)}/rollback", _read(Version), key=_once(key))


def retire(model_id: str, version: str) -> Call[Version]:
    """Retire a version: it gets no new jobs; it cannot come back."""
    path, body = _version(model_id, version), {"state": "retired"}
    return Call("PATCH", path, _read(Version), body, naturally_repeatable=True)


def history(model_id: str, *, cursor: str | None = None, limit: int = 50) -> Call[Json]:
    """What was done to a model, newest first."""
    params: dict[str, str | int] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
    return Call("GET", f"{_model(model_id)}/history", _json, params=params)


def diff(model_id: str, first: str, second: str) -> Call[Json]:
    """How two versions of a model differ."""
    params: dict[str, str | int] = {"from": first, "to": second}
    return Call("GET", f"{_model(model_id)}/diff", _json, params=params)
