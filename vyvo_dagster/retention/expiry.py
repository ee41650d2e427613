"""The end of artifacts: marked first, then their objects deleted.

A row is marked before its object goes, so that no URL is given out of what is about to be deleted;
a pass that dies in between is finished by the next one, which finds the marked rows again.
"""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from vyvo_dagster.errors import InvalidInput, NotFound
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.retention.report import ExpiryReport, Transactions, note

__all__ = ["expire_artifacts"]

_BATCH: Final = 500


def expire_artifacts(
    transactions: Transactions, objects: ObjectStore, *, dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExpiryReport:  # fmt: skip
    """Mark all artifacts whose end has come, by the database's clock, and delete their objects.

    Two passes at a time do no harm: deleting twice is deleting once.

    Raises:
        Unavailable: database or store do not answer; what was done until then stays done.
    """
    report = ExpiryReport()
    if dry_run:
        report.expired = transactions.call(lambda db: db.retention.count_due())
        return report
    while marked := transactions.call(lambda db: db.retention.expire(_BATCH)):
        report.expired += marked
    after: UUID | None = None
    while batch := transactions.call(lambda db, after=after: db.retention.to_delete(after, _BATCH)):
        after = batch[-1].id
        faults: dict[str, str] = {}
        wanted = {due.url for due in batch if not due.shared and _ours(objects, due.url, faults)}
        faults |= _delete(objects, wanted)
        failed = {due.id: faults[due.url] for due in batch if due.url in faults}
        gone = [due for due in batch if due.id not in failed]
        transactions.call(lambda db, gone=gone: db.retention.deleted([due.id for due in gone]))
        transactions.call(lambda db, failed=failed: db.retention.not_deleted(failed))
        report.shared += sum(due.shared for due in gone)
        report.deleted += sum(not due.shared for due in gone)
        report.deleted_bytes += sum(due.size_bytes for due in gone if not due.shared)
        report.failed += len(failed)
        for uri, why in faults.items():
            note(report.errors, uri, why)
        if progress is not None:
            progress(f"{report.deleted} objects deleted, {report.failed} could not be")
    return report


def _ours(objects: ObjectStore, url: str, faults: dict[str, str]) -> bool:
    """Whether it is where outputs are: a row must never cost weights, or another's bucket, an object."""
    try:
        if objects.is_output(url):
            return True
        faults[url] = "it is in none of the buckets of outputs"
    except InvalidInput as error:
        faults[url] = error.detail
    return False


def _delete(objects: ObjectStore, urls: set[str]) -> dict[str, str]:
    try:
        return objects.delete_many(urls)
    except NotFound:
        # A bucket is gone, and with it what was in it; one by one, for the sake of the others.
        for url in urls:
            objects.delete(url)
        return {}
