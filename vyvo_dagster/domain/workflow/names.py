"""What expressions read in a run: `inputs`, `steps`, `run`, `item`, `index`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from vyvo_dagster.domain.artifact import ARTIFACT_FIELDS, artifacts_in
from vyvo_dagster.domain.workflow.definition import Definition, StepDefinition
from vyvo_dagster.domain.workflow.run import Run, Step

__all__ = ["Names", "Sign"]

Sign = Callable[[str], str | None]


class Names:
    """The values of one run, made when they are asked for and kept while no row changes."""

    def __init__(
        self, definition: Definition, run: Run, rows: Mapping[str, Step], sign: Sign | None
    ) -> None:
        self._rows = rows
        self._sign = sign
        self._run = {"id": str(run.id), "workflow": definition.name}
        self._inputs = run.inputs
        self._steps = _Steps(definition, self._value)
        self._values: dict[str, dict[str, Any]] = {}

    def of(self, step: StepDefinition | None, index: int | None = None) -> Mapping[str, Any]:
        """The names that a step's expressions may read; with `index`, those of one item."""
        names = {"inputs": self._inputs, "steps": self._steps, "run": self._run}
        if step is not None and index is not None:
            items = cast("list[Any]", self._rows[step.name].input["items"])
            names |= {"item": self._signed(items[index]), "index": index}
        return names

    def forget(self, name: str) -> None:
        """A row of the step has changed."""
        self._values.pop(name, None)

    def _value(self, name: str) -> dict[str, Any]:
        if name not in self._values:
            row = self._rows[name]
            self._values[name] = {
                "output": row.output,
                "artifacts": [self._signed(dict(a)) for a in artifacts_in(row.output)],
                "state": str(row.state),
                "error_code": row.error_code,
                "error_message": row.error_message,
            }
        return self._values[name]

    def _signed(self, value: Any) -> Any:
        """An artifact with a URL that can be fetched from now on; all else as it is."""
        if self._sign is None or not isinstance(value, Mapping):
            return value
        found = cast("Mapping[str, Any]", value)
        if not found.keys() >= ARTIFACT_FIELDS or not str(found["url"]).startswith("s3://"):
            return found
        return {**found, "presigned_url": self._sign(str(found["url"]))}


class _Steps(Mapping[str, Any]):
    """Steps by name, each looked at only where an expression names it."""

    def __init__(self, definition: Definition, value: Callable[[str], Any]) -> None:
        self._names = definition.steps
        self._value = value

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._value(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
