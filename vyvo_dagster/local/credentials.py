"""The secrets of one data directory, made once and readable by its owner only."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = ["Credentials", "load_or_create"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    admin_key: str
    join_token: str
    s3_access_key: str
    s3_secret_key: str
    postgres_password: str
    redis_password: str


def load_or_create(path: Path) -> Credentials:
    """Read the secrets at `path`; what is missing is generated and written with mode 0600."""
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        stored = {}
    known = {f.name: stored[f.name] for f in fields(Credentials) if f.name in stored}
    credentials = Credentials(**(asdict(_generate()) | known))
    if asdict(credentials) != known:
        _write_private(path, json.dumps(asdict(credentials), indent=2) + "\n")
    return credentials


def _generate() -> Credentials:
    return Credentials(
        # Key id and secret of an API key, see security/.
        admin_key=f"vyk_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}",
        join_token=f"vyj_{secrets.token_urlsafe(32)}",
        s3_access_key=f"vyvo{secrets.token_hex(8)}",
        # Hex in URLs and configuration files needs no quoting.
        s3_secret_key=secrets.token_hex(20),
        postgres_password=secrets.token_hex(16),
        redis_password=secrets.token_hex(16),
    )


def _write_private(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
