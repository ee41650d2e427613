"""What a caller may send with a build: environment, repository, base image, weights location.

Pure: nothing here resolves a name or opens a connection, so the api can ask before it writes a
row. What only shows at fetch time (a name that resolves to a private address, a redirect) is
checked again where the bytes are fetched, in `addresses.py`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from vyvo_dagster.domain.address import may_be_public
from vyvo_dagster.domain.environment import refused_name, refused_value
from vyvo_dagster.errors import InvalidEnv, InvalidInput, InvalidWeightsUri, VyvoError
from vyvo_dagster.objects.uri import parse_s3_uri

__all__ = [
    "WEIGHTS_SCHEMES",
    "repo_is_listed",
    "validate_base_image",
    "validate_env",
    "validate_ref",
    "validate_repo",
    "validate_weights_uri",
]

WEIGHTS_SCHEMES: Final = ("s3", "https", "hf")

_URI_CHARS: Final = 2048
_ENV_COUNT: Final = 64
_ENV_VALUE_BYTES: Final = 4096
_ENV_TOTAL_BYTES: Final = 32768
# They change which code a process loads, or belong to the platform's own contract with runners.
_ENV_RESERVED = re.compile(r"(?:LD_|DYLD_|PYTHON|VYVO_|COG_|UV_|PIP_|DOCKER_|BUILDKIT_|GLIBC_|MALLOC_|OPENSSL_).*|"
                           r"PATH|HOME|USER|SHELL|IFS|ENV|BASH_ENV|PROMPT_COMMAND|HOSTNAME|TMPDIR|"
                           r"GCONV_PATH|NODE_OPTIONS|PERL5OPT|RUBYOPT")  # fmt: skip
_HF_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,254}")
# distribution's reference grammar: [domain/]path[:tag][@sha256:digest].
_REFERENCE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)


def validate_weights_uri(uri: str) -> str:
    """Return `uri` if weights may be fetched from there.

    Allowed are `s3://bucket/key` in the platform's own store, `https://host/path` of a public
    host, and `hf://owner/name[@revision][/file]`, without a file the whole repository.

    Raises:
        InvalidWeightsUri: anything else; the detail says what is wrong.
    """
    if not uri or len(uri) > _URI_CHARS:
        raise InvalidWeightsUri(f"weights_uri must be 1 to {_URI_CHARS} characters")
    if not uri.isprintable() or " " in uri or "\\" in uri:
        raise InvalidWeightsUri("weights_uri holds spaces, backslashes or control characters")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in WEIGHTS_SCHEMES:
        raise InvalidWeightsUri(
            f"weights_uri must begin with s3://, https:// or hf://; got {_shown(uri)}"
        )
    if scheme == "s3":
        try:
            parse_s3_uri(uri)
        except InvalidInput as error:
            raise InvalidWeightsUri(f"weights_uri: {error.detail}") from error
    elif scheme == "https":
        _check_https(uri, InvalidWeightsUri, "weights_uri")
        if urlsplit(uri).path in {"", "/"}:
            raise InvalidWeightsUri("weights_uri must name a file, not only a host")
    else:
        parse_hf(rest)
    return uri


def parse_hf(rest: str) -> tuple[str, str | None, str]:
    """Repository, revision and file of what follows `hf://`, or InvalidWeightsUri.

    The file is empty where all of the repository is meant.
    """
    parts = rest.split("/")
    name, _, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    path = parts[2:]
    good = (
        len(parts) > 1
        and _HF_ID.fullmatch(parts[0])
        and _HF_ID.fullmatch(name)
        and ("@" not in parts[1] or _REVISION.fullmatch(revision))
        and all(part not in {"", ".", ".."} for part in path)
        and not any(c in rest for c in "?#%")
    )
    if not good:
        raise InvalidWeightsUri(
            f"weights_uri must look like hf://owner/name[@revision][/file]; got {_shown('hf://' + rest)}"
        )
    return f"{parts[0]}/{name}", revision or None, "/".join(path)


def validate_repo(url: str, hosts: Collection[str]) -> str:
    """Return `url` if source may be fetched from there: https, an allowed host, no credentials.

    Args:
        url: of the repository.
        hosts: `host` or `host:port`; one that is listed may be inside the network. `*` allows all
            public hosts too.

    Raises:
        InvalidInput: anything else.
    """
    if len(url) > _URI_CHARS or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidInput(f"repo must be at most {_URI_CHARS} printable characters without spaces")
    if not url.startswith("https://"):
        raise InvalidInput(f"repo must begin with https://; got {_shown(url)}")
    listed = repo_is_listed(url, hosts)
    _check_https(url, InvalidInput, "repo", public=not listed and "*" in hosts)
    if not listed and "*" not in hosts:
        raise InvalidInput(
            f"repo: sources come from {', '.join(sorted(hosts)) or 'nowhere'} only; "
            f"{urlsplit(url).netloc[:100]} is not among them (VYVO_SOURCE_HOSTS)"
        )
    if urlsplit(url).query or urlsplit(url).path in {"", "/"}:
        raise InvalidInput("repo must be a repository's URL, such as https://github.com/owner/name")
    return url


def repo_is_listed(url: str, hosts: Collection[str]) -> bool:
    """Whether the operator named this repository's host, so that its address is not questioned."""
    try:
        netloc = urlsplit(url).netloc.lower()
    except ValueError:
        return False
    return netloc.removesuffix(":443") in {host.lower() for host in hosts} - {"*"}


def validate_ref(ref: str) -> str:
    """Return `ref` if it is a branch, a tag or a full commit id as git allows them.

    Raises:
        InvalidInput: it is not.
    """
    bad = (
        not _REF.fullmatch(ref)
        or any(part in ref for part in ("..", "//", "@{", "/."))
        or ref.endswith(("/", ".", ".lock"))
    )
    if bad:
        raise InvalidInput(f"ref must be a branch, a tag or a full commit id; got {_shown(ref)}")
    return ref


def validate_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of `env` if every name and value can be carried to a runner.

    Names are those of the shell (`[A-Za-z_][A-Za-z0-9_]*`, at most 128); names that change what a
    process loads (LD_*, PYTHON*, PATH, ...) or that are the platform's (VYVO_*, COG_*) are refused,
    in any case. Values hold no control character but tab and no Unicode noncharacter, since they
    are written to env files, one line each. At most 64 names, 4 KiB a value, 32 KiB together.

    Raises:
        InvalidEnv: the first thing found wrong. Values are never quoted: they may be secrets.
    """
    if len(env) > _ENV_COUNT:
        raise InvalidEnv(f"env has {len(env)} names; at most {_ENV_COUNT} are allowed")
    total = 0
    for name, value in env.items():
        if why := refused_name(name):
            raise InvalidEnv(why)
        if _ENV_RESERVED.fullmatch(name.upper()):
            raise InvalidEnv(f"env name {name} is reserved; choose another name")
        if why := refused_value(name, value, _ENV_VALUE_BYTES):
            raise InvalidEnv(why)
        total += len(name) + len(value.encode())
    if total > _ENV_TOTAL_BYTES:
        raise InvalidEnv(f"env is {total} bytes together; at most {_ENV_TOTAL_BYTES}")
    return dict(env)


def validate_base_image(reference: str) -> str:
    """Return `reference` if it is an image reference (`[host/]path[:tag][@digest]`).

    Raises:
        InvalidInput: it is not, or is longer than 255 characters.
    """
    if len(reference) > 255 or not _REFERENCE.fullmatch(reference):
        raise InvalidInput(
            f"base_image must be an image reference such as vyvo/base:bookworm; got {_shown(reference)}"
        )
    return reference


def _check_https(uri: str, error: type[VyvoError], field: str, *, public: bool = True) -> None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as bad:
        raise error(f"{field} is not a URL: {_shown(uri)}") from bad
    if "@" in parts.netloc:
        raise error(f"{field} must not hold a user name or password; use env for credentials")
    if not host or "%" in parts.netloc:
        raise error(f"{field} names no host: {_shown(uri)}")
    if parts.fragment:
        raise error(f"{field} must not hold a fragment (#)")
    if any(part in {".", ".."} for part in unquote(parts.path).split("/")):
        raise error(f"{field} must not hold . or .. in its path")
    if public and not may_be_public(host):
        raise error(f"{field} must be at a public host; {host[:64]} is local, private or malformed")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
