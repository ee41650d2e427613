"""Outputs that a plain Cog runner gives inline, moved to the object store.

A Cog image that knows nothing of this platform answers files as `data:` URIs (RFC 2397). They are
uploaded here, into the bucket of what they hold, and replaced by the artifact shape.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import NotFound, RunnerFailed
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.objects.media import HEAD_BYTES, extension_of, modality_of, sniff
from vyvo_dagster.protocol.artifact import Artifact

__all__ = ["ArtifactInvalid", "Uploader", "data_uris_in", "decode_data_uri"]

# Mediatype without parameters we use, `;base64`, data. Case-insensitive scheme, as RFC 3986 asks.
_DATA = re.compile(
    r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?P<params>(?:;[^;,]*)*),(?P<data>.*)",
    re.IGNORECASE | re.DOTALL,
)
_DEFAULT_MIME: Final = "text/plain"


class ArtifactInvalid(RunnerFailed):
    """A runner's output names an artifact that is not what it says."""

    code = "artifact_invalid"


@dataclass(frozen=True, slots=True)
class Uploader:
    """Puts inline outputs into one store.

    Args:
        store: where artifacts go.
        ttl_seconds: life of an artifact.
        executor: threads for decoding and uploading.
    """

    store: ObjectStore
    ttl_seconds: int
    executor: Executor

    async def externalize(self, output: Any, job_id: UUID, attempt: int) -> Any:
        """`output` with every `data:` URI in it uploaded and replaced by its artifact's shape.

        Raises:
            Unavailable, NotFound: as the store answers.
        """
        uris = list(dict.fromkeys(data_uris_in(output)))
        if not uris:
            return output
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            tasks = {
                uri: group.create_task(
                    _awaited(loop, self.executor, self._upload, uri, job_id, attempt)
                )
                for uri in uris
            }
        return _replaced(output, {uri: task.result() for uri, task in tasks.items()})

    async def check(self, artifacts: Sequence[Artifact]) -> None:
        """Check that artifacts are what a runner says of them.

        Raises:
            ArtifactInvalid: one is in a foreign bucket, does not exist, or has another size.
            Unavailable: as the store answers.
        """
        loop = asyncio.get_running_loop()
        sizes = dict[str, int]()
        for artifact in artifacts:
            if sizes.setdefault(artifact.url, artifact.size_bytes) != artifact.size_bytes:
                raise ArtifactInvalid(f"{artifact.url[:300]} is said to have two sizes")
        # Awaited together: a failure of one leaves no other behind unobserved.
        found = await asyncio.gather(
            *(_awaited(loop, self.executor, self._fault, url, size) for url, size in sizes.items()),
            return_exceptions=True,
        )
        for fault in found:
            if isinstance(fault, BaseException):
                raise fault
            if fault is not None:
                raise ArtifactInvalid(fault)

    def _fault(self, url: str, size_bytes: int) -> str | None:
        """What is wrong with one artifact."""
        if not self.store.is_output(url):
            return f"{url[:300]} is in no bucket for outputs"
        try:
            stat = self.store.stat(url)
        except NotFound:
            return f"{url[:300]} does not exist"
        if stat.size_bytes != size_bytes:
            return f"{url[:300]} has {stat.size_bytes} bytes, not {size_bytes}"
        return None

    def _upload(self, uri: str, job_id: UUID, attempt: int) -> Any:
        decoded = decode_data_uri(uri)
        if decoded is None:
            return uri
        # The type is the content's own: what a runner calls it would be sent on to browsers.
        data = decoded[1]
        mime = sniff(data[:HEAD_BYTES], complete=len(data) <= HEAD_BYTES)
        modality = Modality(modality_of(mime))
        now = datetime.now(UTC)
        digest = hashlib.sha256(data).hexdigest()
        # The agent names a prediction so; a repeat writes the same object.
        owner = f"{job_id}.{attempt}"
        key = self.store.output_key(now, owner, digest, extension_of(mime))
        url = self.store.put_bytes(
            self.store.bucket(modality), key, data, mime, metadata={"sha256": digest}
        )
        return Artifact(
            type=modality, url=url, size_bytes=len(data), mime_type=mime,
            expires_at=now + timedelta(seconds=self.ttl_seconds),
        ).as_json()  # fmt: skip


async def _awaited(
    loop: asyncio.AbstractEventLoop, executor: Executor, call: Any, *args: Any
) -> Any:
    return await loop.run_in_executor(executor, call, *args)


def decode_data_uri(uri: str) -> tuple[str, bytes] | None:
    """MIME type in lower case and bytes of a `data:` URI; None when it is none."""
    found = _DATA.fullmatch(uri)
    if found is None:
        return None
    mime = (found["mime"] or _DEFAULT_MIME).lower()
    if ";base64" not in found["params"].lower():
        return mime, unquote_to_bytes(found["data"])
    try:
        return mime, base64.b64decode(found["data"], validate=True)
    except ValueError:
        # Also what is not ASCII, for which it has no error of its own.
        return None


def data_uris_in(output: Any) -> list[str]:
    """Every string inside `output` that starts as a `data:` URI, in order."""
    if isinstance(output, str):
        return [output] if output[:5].lower() == "data:" else []
    if isinstance(output, dict):
        return [uri for value in output.values() for uri in data_uris_in(value)]
    if isinstance(output, list):
        return [uri for value in output for uri in data_uris_in(value)]
    return []


def _replaced(output: Any, shapes: dict[str, Any]) -> Any:
    if isinstance(output, str):
        return shapes.get(output, output)
    if isinstance(output, dict):
        return {key: _replaced(value, shapes) for key, value in output.items()}
    if isinstance(output, list):
        return [_replaced(value, shapes) for value in output]
    return output
