"""Logs of every process: one line an event, as text or as JSON, with the ids that it belongs to.

Code logs by the standard library's `logging`; structlog's processors make the lines. Each carries
the ids that are bound where it is written (job, attempt, build, node) and those of the trace. What is
a secret goes into no line: exact values that a process knows (`hide`), and what looks like one.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog
from pydantic import SecretStr
from pydantic_settings import BaseSettings
from structlog.contextvars import bind_contextvars, bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from vyvo_dagster.settings import LogFormat
from vyvo_dagster.telemetry import tracing

__all__ = ["always", "bind", "bound", "configure", "formatter", "hide", "redact", "secrets_of"]

_MASK: Final = "***"
_LEAST_CHARS: Final = 6
_NAMES: Final = (
    r"password|passwd|secret(?:[_-]?key)?|token|api[_-]?key|access[_-]?key|credential|"
    r"signature|authorization|x-amz-signature|x-amz-credential|x-amz-security-token"
)
_PATTERNS: Final = (
    # Credentials of this system, and such of others as say what they are.
    (re.compile(r"\b(vyk|vyn)_([0-9a-f]{8})_[A-Za-z0-9_-]{20,}"), rf"\1_\2_{_MASK}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]{8,}"), f"whsec_{_MASK}"),
    (re.compile(r"\b(hf|gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}"), rf"\1_{_MASK}"),
    (re.compile(r"\b(hvs|hvb|hvr|s)\.[A-Za-z0-9_-]{20,}"), rf"\1.{_MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), _MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)"), _MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {_MASK}"),
    # A password in a URL: scheme://user:password@host.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@\"']*):[^\s/@\"']+@"), rf"\1:{_MASK}@"),
    # name=value, name: value, "name": "value", and the variable that ends so: VYVO_S3_SECRET_KEY=...
    (
        re.compile(rf"(?i)((?:{_NAMES})\\*[\"']?\s*[=:]\s*\\*[\"']?)[^\s\"',;&)}}\]\\]{{{_LEAST_CHARS},}}"),
        rf"\1{_MASK}",
    ),
)  # fmt: skip
_CHATTY: Final = ("httpx", "httpcore", "urllib3", "docker")

_hidden: list[str] = []
_always: dict[str, str] = {}


def hide(*values: str) -> None:
    """Keep these values out of every line from now on; those under six characters are no secrets."""
    known = {*_hidden, *(value for value in values if len(value) >= _LEAST_CHARS)}
    # Longest first: a secret that contains another must not leave its rest behind.
    _hidden[:] = sorted(known, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` without what is, or looks like, a secret."""
    for value in _hidden:
        text = text.replace(value, _MASK)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def secrets_of(*settings: BaseSettings) -> list[str]:
    """The secrets among settings: secret fields, and the passwords of URLs."""
    found: list[str] = []
    for each in settings:
        for value in dict(each).values():
            if isinstance(value, SecretStr):
                found.append(value.get_secret_value())
            elif isinstance(value, Mapping):
                found += [v.get_secret_value() for v in value.values() if isinstance(v, SecretStr)]
            elif isinstance(value, str) and "://" in value:
                found += _passwords(value)
    return found


def always(**ids: str) -> None:
    """Ids that every JSON line of this process carries from now on."""
    _always.update(ids)


def bind(**ids: str | int) -> None:
    """Ids that the lines of this task carry until it ends; of a task of its own."""
    bind_contextvars(**ids)


def bound(**ids: str | int) -> AbstractContextManager[object]:
    """Ids that the lines of this task carry while the block runs."""
    return bound_contextvars(**ids)


def configure(form: LogFormat = "text", *, secrets: Iterable[str] = (), one_line: bool = False) -> None:  # fmt: skip
    """Send the process's logs to the standard error stream.

    Args:
        form: `json` is one object a line.
        secrets: values for `hide`.
        one_line: as text, a trace is on the line of its message.
    """
    hide(*secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, one_line=one_line))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Only that a server was asked is no news.
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def formatter(form: LogFormat, *, one_line: bool = False) -> logging.Formatter:
    """What makes the lines; for handlers that others made."""
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
    ]
    after: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        before.append(_add_always)
        after += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]  # fmt: skip
    else:
        after += [structlog.processors.format_exc_info, _Text(one_line)]
    return _Redacting(foreign_pre_chain=before, processors=after)


class _Redacting(structlog.stdlib.ProcessorFormatter):
    """The last to touch a line, the traces of exceptions in it included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Text:
    """time LEVEL logger: message [name=value ...], for people."""

    def __init__(self, one_line: bool) -> None:
        self._one_line = one_line

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> str:
        time, level = event.pop("timestamp"), str(event.pop("level")).upper()
        name, message = event.pop("logger"), event.pop("event")
        trace: str | None = event.pop("exception", None)
        ids = " ".join(f"{key}={value}" for key, value in event.items())
        line = f"{time} {level:<7} {name}: {message}{f' [{ids}]' if ids else ''}"
        if trace:
            line += f"\n{trace}"
        if self._one_line:
            line = " | ".join(part.strip() for part in line.splitlines() if part.strip())
        return line


def _add_always(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> EventDict:
    return {**_always, **event}


def _add_trace(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> EventDict:
    ids = tracing.ids()
    if ids is not None:
        event["trace_id"], event["span_id"] = ids
    return event


def _passwords(url: str) -> list[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return []
    return [] if password is None else [password, unquote(password)]
