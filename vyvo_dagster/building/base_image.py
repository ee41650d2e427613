"""What a base image holds: its digest, and the Python that the wheels must fit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import docker.errors
import requests

from vyvo_dagster.building.container_check import engine_client, remove_container
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.types import BuildContext
from vyvo_dagster.building.wheelhouse import Target
from vyvo_dagster.errors import BuildFailed, Unavailable

__all__ = ["BaseImage", "current_digest", "inspect_base", "inspect_cog_image"]

_MARK: Final = "vyvo-probe "
_PROBE: Final = (
    "import json,os,platform as p;"
    f"print({_MARK!r}+json.dumps([p.python_version(),p.machine(),os.confstr('CS_GNU_LIBC_VERSION')]))"
)


@dataclass(frozen=True, slots=True)
class BaseImage:
    """`digest` is the manifest's where the engine knows it, else the image id. `python` is full."""

    digest: str
    python: str
    target: Target


def inspect_base(
    reference: str,
    build_id: str,
    context: BuildContext,
    docker_host: str | None,
    env: Mapping[str, str],
) -> BaseImage:
    """Digest and interpreter of a base image, pulled if the engine lacks it.

    The interpreter is asked by running the image once without network; the answer is kept by
    image id.

    Raises:
        BuildFailed: it cannot be pulled, or has no python3.
        Unavailable: the engine does not answer.
    """
    image_id, digest, _ = _identity(reference, context, docker_host, env)
    cache = context.data_dir.resolve() / "bases" / f"{image_id.removeprefix('sha256:')}.json"
    if cache.is_file():
        found = cast("list[str]", json.loads(cache.read_text()))
    else:
        found = _probe(image_id, reference, build_id, context, docker_host=docker_host, env=env)
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f".{cache.name}.{build_id}")
        partial.write_text(json.dumps(found))
        partial.replace(cache)
    python, machine, libc = found
    minor = ".".join(python.split(".")[:2])
    return BaseImage(digest, python, Target.of(minor, machine, libc.removeprefix("glibc ")))


def inspect_cog_image(
    reference: str, context: BuildContext, docker_host: str | None, env: Mapping[str, str]
) -> str:
    """Digest of an image that Cog has built, pulled if the engine lacks it.

    Raises:
        BuildFailed: it cannot be pulled, or Cog did not build it.
        Unavailable: the engine does not answer.
    """
    _, digest, labels = _identity(reference, context, docker_host, env)
    if not any(name.startswith("run.cog.") for name in labels):
        raise BuildFailed(
            f"base: {reference} was not built by Cog (it has no run.cog labels); name a repo with a cog.yaml"
        )
    return digest


def _identity(
    reference: str, context: BuildContext, docker_host: str | None, env: Mapping[str, str]
) -> tuple[str, str, Mapping[str, str]]:
    client = engine_client(docker_host)
    try:
        images = cast("Any", client.images)
        try:
            attrs = images.get(reference).attrs
        except docker.errors.ImageNotFound:
            _run(["docker", "pull", "--quiet", reference], context, env)
            attrs = images.get(reference).attrs
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Unavailable(f"the Docker engine does not answer ({type(error).__name__})") from error
    finally:
        client.close()
    labels = cast("dict[str, str]", attrs.get("Config", {}).get("Labels") or {})
    return str(attrs["Id"]), _digest_of(attrs), labels


def current_digest(reference: str, docker_host: str | None) -> str | None:
    """The digest that `inspect_base` would give now, without a pull; None where there is no such image.

    Raises:
        Unavailable: the engine does not answer.
    """
    client = None
    try:
        client = engine_client(docker_host, timeout=10.0)
        return _digest_of(cast("Any", client.images).get(reference).attrs)
    except docker.errors.ImageNotFound:
        return None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Unavailable(f"the Docker engine does not answer ({type(error).__name__})") from error
    finally:
        if client is not None:
            client.close()


def _digest_of(attrs: Mapping[str, Any]) -> str:
    digests = [str(item).rpartition("@")[2] for item in attrs.get("RepoDigests") or []]
    return digests[0] if digests else str(attrs["Id"])


def _probe(
    image_id: str,
    reference: str,
    build_id: str,
    context: BuildContext,
    *,
    docker_host: str | None,
    env: Mapping[str, str],
) -> list[str]:
    context.log.line("base", f"asking {reference} for its Python")
    answer: list[str] = []

    def on_line(line: str) -> tuple[str, str] | None:
        if line.startswith(_MARK):
            answer.extend(cast("list[str]", json.loads(line.removeprefix(_MARK))))
            return "base", f"Python {answer[0]} on {answer[1]}, {answer[2]}"
        return None if line.startswith("WARNING: IPv4") else ("base", line)

    name = f"vyvo-probe-{build_id}"
    argv = ["docker", "run", "--rm", "--name", name, "--label", f"vyvo.build={build_id}",
            "--network", "none", "--entrypoint", "python3", image_id, "-c", _PROBE]  # fmt: skip
    try:
        _run(argv, context, env, on_line)
    except BuildFailed as error:
        raise BuildFailed(f"base: {reference} cannot run python3: {error.detail}") from error
    finally:
        remove_container(docker_host, name)
    if len(answer) != 3 or not answer[2]:
        raise BuildFailed(f"base: {reference} has no Python on glibc")
    return answer


def _run(
    argv: list[str],
    context: BuildContext,
    env: Mapping[str, str],
    on_line: Callable[[str], tuple[str, str] | None] | None = None,
) -> None:
    run_logged(argv, step="base", log=context.log, cancel=context.cancel, timeout=context.timeout,
               env=env, on_line=on_line)  # fmt: skip
