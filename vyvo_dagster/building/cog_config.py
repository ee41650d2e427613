"""`cog.yaml` of a repository, read as what it is: a stranger's file.

The format is Cog's (https://cog.run/yaml). Bounded in size and depth, without aliases, so that no
small file becomes a large value; what a build without network cannot do is refused with what to do
instead.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import yaml

from vyvo_dagster.building.requirements import plain_requirements
from vyvo_dagster.building.types import Log
from vyvo_dagster.errors import BuildFailed

__all__ = ["CogConfig", "read_cog_config"]

_STEP: Final = "source"
_BYTES: Final = 64 << 10
_DEPTH: Final = 16
_ITEMS: Final = 500
_PREDICTOR = re.compile(r"((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.py):([A-Za-z_]\w*)", re.ASCII)
_PYTHON = re.compile(r"3\.(\d{1,2})(?:\.\d{1,2})?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,99}")
_CHARS: Final = 4096
# What an image for a node of this platform has no use for.
_UNUSED: Final = frozenset({"image", "concurrency", "train", "tests", "weights"})
_UNUSED_BUILD: Final = frozenset({"gpu", "cuda", "cudnn", "fast", "sdk_version", "cog_runtime"})
_REFUSED: Final = {
    "pre_install": "put what it does into the base image",
    "python_extra_index_urls": "set the build host's own index",
    "python_find_links": "set the build host's own index",
}


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which let a small file name a large value, and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        self.depth += 1
        if self.depth > _DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass(frozen=True, slots=True)
class CogConfig:
    """What a build takes of a `cog.yaml`. `commands` are the repository's, for inside the image."""

    predictor: str
    """`path/inside.py:Name`."""
    requirements: tuple[str, ...]
    system_packages: tuple[str, ...]
    commands: tuple[str, ...]
    python: str | None
    """`3.11`, or None where any will do."""
    gpu: bool


def read_cog_config(root: Path, log: Log) -> CogConfig:
    """The configuration of the repository at `root`, whose links lead nowhere outside of it.

    Raises:
        BuildFailed: there is none, it is malformed, or asks for what a build here cannot do.
    """
    path = root / "cog.yaml"
    if not path.is_file():
        raise BuildFailed("source: the repository has no cog.yaml")
    with path.open("rb") as file:
        data = file.read(_BYTES + 1)
    if len(data) > _BYTES:
        raise BuildFailed(f"source: cog.yaml is larger than {_BYTES} bytes")
    try:
        loaded = yaml.load(data, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BuildFailed(f"source: cog.yaml: {' '.join(str(error).split())[:300]}") from error
    config = _mapping(loaded, "cog.yaml")
    build = _mapping(config.get("build") or {}, "build")
    _check_names(config, build, log)
    return CogConfig(
        predictor=_predictor(root, config),
        requirements=tuple(_requirements(root, build, log)),
        system_packages=tuple(
            _strings(build, "system_packages", _PACKAGE.fullmatch, "a package name")
        ),
        commands=tuple(_commands(build)),
        python=_python(build),
        gpu=build.get("gpu") is True,
    )


def _check_names(config: dict[str, Any], build: dict[str, Any], log: Log) -> None:
    for name, instead in _REFUSED.items():
        if build.get(name):
            raise BuildFailed(f"source: cog.yaml: build.{name} is not taken; {instead}")
    if config.get("environment"):
        raise BuildFailed("source: cog.yaml: environment is not taken; give the build an env")
    known = {"build", "predict", "run", "environment", *_UNUSED}
    for name in sorted(str(key) for key in config):
        if name not in known:
            raise BuildFailed(f"source: cog.yaml: {name[:60]!r} is unknown")
        if name in _UNUSED:
            log.line(_STEP, f"cog.yaml: {name} is left out")
    known = {"python_version", "python_packages", "python_requirements", "system_packages", "run",
             *_UNUSED_BUILD, *_REFUSED}  # fmt: skip
    for name in sorted(str(key) for key in build):
        if name not in known:
            raise BuildFailed(f"source: cog.yaml: build.{name[:60]!r} is unknown")


def _predictor(root: Path, config: dict[str, Any]) -> str:
    # `run` is the newer name of `predict`.
    value = config.get("predict") or config.get("run")
    match = _PREDICTOR.fullmatch(value) if isinstance(value, str) and len(value) < 300 else None
    if match is None or ".." in match[1].split("/"):
        raise BuildFailed("source: cog.yaml: predict must look like predict.py:Predictor")
    if not (root / match[1]).is_file():
        raise BuildFailed(f"source: cog.yaml: predict names {match[1]}, which is not there")
    return match[0]


def _requirements(root: Path, build: dict[str, Any], log: Log) -> list[str]:
    listed = _strings(build, "python_packages", lambda text: "\n" not in text, "a requirement")
    found = plain_requirements(listed, "cog.yaml python_packages", log)
    name = build.get("python_requirements")
    if name is None:
        return found
    if found:
        raise BuildFailed("source: cog.yaml: give python_packages or python_requirements, not both")
    path = (root / name).resolve() if isinstance(name, str) and len(name) < 300 else root
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise BuildFailed("source: cog.yaml: python_requirements names no file of the repository")
    if path.stat().st_size > _BYTES * 4:
        raise BuildFailed(f"source: {name} is larger than {_BYTES * 4} bytes")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return plain_requirements(lines, name, log)


def _commands(build: dict[str, Any]) -> list[str]:
    value = build.get("run") or []
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    found: list[str] = []
    for item in items[: _ITEMS + 1]:
        command: Any = item
        if isinstance(item, dict):
            entry = cast("dict[str, Any]", item)
            if set(entry) != {"command"}:
                raise BuildFailed("source: cog.yaml: build.run takes commands without mounts")
            command = entry["command"]
        if not isinstance(command, str) or "\0" in command or len(command) > _CHARS:
            raise BuildFailed("source: cog.yaml: build.run must be a list of commands")
        found.append(command)
    if len(found) > _ITEMS:
        raise BuildFailed(f"source: cog.yaml: build.run has more than {_ITEMS} commands")
    return found


def _python(build: dict[str, Any]) -> str | None:
    value = build.get("python_version")
    if value is None:
        return None
    match = _PYTHON.fullmatch(str(value))
    # Unquoted, 3.10 is the number 3.1.
    if match is None or (isinstance(value, float) and match[1] == "1"):
        raise BuildFailed('source: cog.yaml: python_version must look like "3.11", quoted')
    return f"3.{match[1]}"


def _strings(
    build: dict[str, Any], name: str, good: Callable[[str], object], what: str
) -> list[str]:
    value: Any = build.get(name) or []
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(items) > _ITEMS:
        raise BuildFailed(f"source: cog.yaml: build.{name} has more than {_ITEMS} entries")
    for item in items:
        if not isinstance(item, str) or len(item) > _CHARS or not good(item):
            raise BuildFailed(f"source: cog.yaml: build.{name}: {str(item)[:80]!r} is not {what}")
    return cast("list[str]", items)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BuildFailed(f"source: {what} is not a mapping")
    return cast("dict[str, Any]", value)
