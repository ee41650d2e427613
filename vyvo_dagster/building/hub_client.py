"""The process that talks to the hub: `python -m vyvo_dagster.building.hub_client REPO REVISION FILE FOLDER`.

Prints one line of JSON behind a mark: `commit`, or `error` with `kind` `final` or `temporary`.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["main"]

_MARK: Final = "vyvo-hub "
_CHARS: Final = 400


def main(repo: str, revision: str, file: str, folder: str) -> None:
    """Fetch one file, or all of a repository's files, into `folder`."""
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    token = os.environ.pop("VYVO_HUB_TOKEN", "") or False
    final = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
        errors.GatedRepoError,
        errors.HFValidationError,
    )
    try:
        # One commit for all files, and the same one when this is tried again.
        noted = Path(folder) / ".cache" / "vyvo-commit"
        if noted.is_file():
            commit = noted.read_text()
        else:
            found: Any = HfApi(token=token).model_info(repo, revision=revision or None)
            commit = str(found.sha)
            noted.parent.mkdir(parents=True, exist_ok=True)
            noted.write_text(commit)
        if not file:
            _check_names(HfApi(token=token).list_repo_files(repo, revision=commit))
        arguments: dict[str, Any] = {"revision": commit, "local_dir": folder, "token": token}
        if file:
            hf_hub_download(repo, file, **arguments)
        else:
            snapshot_download(repo, max_workers=4, **arguments)
    except (*final, _OddName) as error:
        _say(error=_sentence(error), kind="final")
    except OSError as error:
        _say(error=_sentence(error), kind="temporary")
    except Exception as error:  # noqa: BLE001 - the client's own errors have no common root
        _say(error=_sentence(error), kind="temporary")
    else:
        _say(commit=commit)


class _OddName(Exception):
    """A file's name would lead out of the folder."""


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        parts = name.split("/")
        if any(part in {"", ".", "..", ".cache"} for part in parts) or "\\" in name:
            raise _OddName(f"the file name {name[:100]!r} is not taken")


def _sentence(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_CHARS]


def _say(**fields: str) -> None:
    sys.stdout.write(_MARK + json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:5])
