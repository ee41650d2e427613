"""What a worker's process does once, so that its first run need not."""

import logging

from dagster import DagsterInstance, Definitions
from dagster_shared.error import DagsterError
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["warm"]

_log = logging.getLogger(__name__)


def warm(definitions: Definitions) -> None:
    """Resolve the code location's jobs and open the instance's storage once.

    A storage that does not answer yet is no error: the first run then opens it.
    """
    for job in definitions.get_repository_def().get_all_jobs():
        _log.debug("resolved %s", job.name)
    try:
        with DagsterInstance.get() as instance:
            instance.get_runs(limit=1)
    except (DagsterError, SQLAlchemyError, OSError) as error:
        _log.warning("the Dagster instance does not answer yet: %s", error)
