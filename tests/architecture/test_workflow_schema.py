"""The published JSON Schema of workflow definitions is the one that is enforced.

Run with VYVO_UPDATE_SNAPSHOTS=1 to write it anew.
"""

import json
import os
from pathlib import Path

import jsonschema

from tests.unit.workflow.broken import GOOD
from vyvo_dagster.domain.workflow.schema import DEFINITION_SCHEMA

PUBLISHED = Path(__file__).parents[2] / "docs" / "workflow.schema.json"


def test_the_published_schema_is_the_one_that_is_enforced() -> None:
    text = json.dumps(DEFINITION_SCHEMA, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("VYVO_UPDATE_SNAPSHOTS"):
        PUBLISHED.write_text(text)
    assert json.loads(PUBLISHED.read_text()) == json.loads(text), (
        "the schema of definitions changed; if that is meant, run with VYVO_UPDATE_SNAPSHOTS=1"
    )


def test_it_is_a_schema_and_every_field_of_a_definition_is_in_it() -> None:
    published = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.Draft202012Validator(published).validate(GOOD)


def test_the_example_of_the_docs_fits_it() -> None:
    page = (PUBLISHED.parent / "workflows.md").read_text()
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text())).validate(example)
