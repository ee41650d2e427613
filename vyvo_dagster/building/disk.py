"""A full disk, told as what it is wherever a build meets it."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vyvo_dagster.errors import BuildFailed

__all__ = ["full_disk_told"]

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def full_disk_told(step: str, folder: Path) -> Generator[None]:
    """Turn the error of a disk without room into BuildFailed that names the step and the folder."""
    try:
        yield
    except shutil.Error as error:
        # copytree gathers what went wrong as texts.
        if "[Errno 28]" not in str(error):
            raise
        raise _full(step, folder) from error
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise _full(step, folder) from error


def _full(step: str, folder: Path) -> BuildFailed:
    return BuildFailed(f"{step}: the disk of the build host is full ({folder}); make room there")
