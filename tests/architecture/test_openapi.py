"""The OpenAPI document as it was last agreed on: a change of the REST surface shows in review.

Run with VYVO_UPDATE_SNAPSHOTS=1 to write the snapshot anew.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.settings import S3Settings, Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")
OPEN = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(_env_file=None), S3Settings()).openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m, p, o) for p, of_path in document["paths"].items() for m, o in of_path.items()]


def test_the_document_is_the_snapshot(document: dict[str, Any]) -> None:
    made = {**document, "info": {**document["info"], "version": "0"}}
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    if os.environ.get("VYVO_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert json.loads(SNAPSHOT.read_text()) == json.loads(text), (
        "the REST surface changed; if that is meant, run with VYVO_UPDATE_SNAPSHOTS=1"
    )


def test_every_route_but_probes_needs_a_credential(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert (path in OPEN) == ("security" not in operation), (method, path)
        if path not in OPEN and path != "/api/nodes/register":
            assert operation["x-required-scope"] in set(Scope), (method, path)


def test_every_operation_is_described_and_answers_problems(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        where = (method, path)
        assert operation["summary"], where
        assert operation["description"], where
        errors = [a for code, a in operation["responses"].items() if code >= "400"]
        assert errors or path == "/healthz", where
        assert all(list(a["content"]) == ["application/problem+json"] for a in errors), where


def test_request_bodies_have_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("BuildRequest", "JobRequest", "KeyCreate", "AssignRequest", "ModelCreate"):
        required = schemas[name]["required"]
        properties = schemas[name]["properties"]
        assert all("examples" in properties[field] for field in required), name


def test_the_page_for_people_names_every_route(document: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert [path for path in document["paths"] if f"{path}`" not in page] == []
