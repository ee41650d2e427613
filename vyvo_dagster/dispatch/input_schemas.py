"""A job's input against the schema of its version, compiled once per version."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import jsonschema

from vyvo_dagster.errors import InputSchemaMismatch
from vyvo_dagster.store.records import ModelVersion

__all__ = ["InputSchemas"]

_KEPT: Final = 1024
_ERRORS: Final = 20
_MESSAGE_CHARS: Final = 300


class InputSchemas:
    """Compiled validators by version."""

    def __init__(self) -> None:
        self._compiled: dict[UUID, tuple[Mapping[str, Any], jsonschema.Draft202012Validator]] = {}

    def check(self, version: ModelVersion, value: Mapping[str, Any]) -> None:
        """Check an input; a version without a schema takes anything.

        Raises:
            InputSchemaMismatch: with `errors`, a list of `{path, message}`.
        """
        if version.input_schema is None:
            return
        errors = [
            {"path": error.json_path, "message": error.message[:_MESSAGE_CHARS]}
            for error, _ in zip(
                self._of(version, version.input_schema).iter_errors(value),
                range(_ERRORS),
                strict=False,
            )
        ]
        if errors:
            first = errors[0]
            raise InputSchemaMismatch(
                f"the input does not fit {version.model_id}@{version.version}: "
                f"{first['path']}: {first['message']}",
                errors=errors,
            )

    def _of(
        self, version: ModelVersion, schema: Mapping[str, Any]
    ) -> jsonschema.Draft202012Validator:
        kept = self._compiled.get(version.id)
        # A draft that is built again keeps its id and may get another schema.
        if kept is not None and kept[0] == schema:
            return kept[1]
        if len(self._compiled) >= _KEPT:
            self._compiled.clear()
        made = jsonschema.Draft202012Validator(schema)
        self._compiled[version.id] = (schema, made)
        return made
