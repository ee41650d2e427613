"""What ops hand to one another when they run on different machines: JSON in the object store.

Not pickles, as Dagster's own file manager writes: nodes may write to the store too, and who reads a
pickle runs what its writer put there.
"""

import json
from typing import Any, Final
from urllib.parse import quote

from dagster import (
    ConfigurableIOManager,
    InputContext,
    MetadataValue,
    OutputContext,
    ResourceDependency,
)

from resources.objects import ObjectsResource
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import InvalidInput

__all__ = ["JsonValues"]

_BYTES: Final = 16 << 20


class JsonValues(ConfigurableIOManager):
    """IO manager `json_values`: a value of an op, at most 16 MiB, kept as long as logs are.

    What is larger, or no JSON, an op puts into the store itself, and hands on its URI.
    """

    objects: ResourceDependency[ObjectsResource]

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Store the value; raises InvalidInput for one that would not come back as it is."""
        if context.dagster_type.is_nothing:
            return
        what = f"output {context.name} of {context.step_key}"
        try:
            data = json.dumps(obj, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{what} is no JSON value: {error}") from error
        if json.loads(data) != obj:
            raise InvalidInput(f"{what} would come back changed from JSON, as tuples do")
        if len(data) > _BYTES:
            raise InvalidInput(f"{what} is {len(data)} bytes; store it, and return its URI")
        store = self.objects.store()
        bucket, key = store.bucket(Modality.LOG), _key(context)
        uri = store.put_bytes(bucket, key, data, "application/json")
        context.add_output_metadata({"uri": MetadataValue.text(uri), "size_bytes": len(data)})

    def load_input(self, context: InputContext) -> Any:
        """The value; raises NotFound when it has expired."""
        if context.dagster_type.is_nothing:
            return None
        assert context.upstream_output is not None
        store = self.objects.store()
        uri = f"s3://{store.bucket(Modality.LOG)}/{_key(context.upstream_output)}"
        return json.loads(store.get_bytes(uri, max_bytes=_BYTES))


def _key(context: OutputContext) -> str:
    parts = [quote(str(part), safe="-_.~") for part in context.get_identifier()]
    return f"dagster/values/{'/'.join(parts)}.json"
