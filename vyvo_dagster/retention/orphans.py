"""Objects without a row, which attempts leave that failed, and rows without an object.

Only buckets of outputs are swept, and of the bucket of models only what jobs made: weights, locks and
bills of materials have lives of their own, logs expire by the store's rules.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final

from vyvo_dagster.domain.artifact import OUTPUTS
from vyvo_dagster.domain.retention import GRACE, Orphans, owner_of
from vyvo_dagster.errors import NotFound
from vyvo_dagster.objects import ListedObject, ObjectStore, parse_s3_uri
from vyvo_dagster.retention.report import OrphanReport, Transactions, note

__all__ = ["sweep_orphans"]

_BATCH: Final = 500
_LOOKS: Final = 8
_DELETED_A_PASS: Final = 50_000
_CHECKED_A_PASS: Final = 100_000
_CHECKED_DRY: Final = 5_000
_NAMED: Final = 100


def sweep_orphans(
    transactions: Transactions, objects: ObjectStore, *, now: datetime, dry_run: bool = False,
    force: bool = False, grace: timedelta = GRACE, progress: Callable[[str], None] | None = None,
) -> OrphanReport:  # fmt: skip
    """Delete objects that no row knows, and mark rows whose object is not there.

    Nothing is deleted that is younger than `grace`, that any row refers to, or whose job has not
    ended; and nothing at all where more than half of all is unknown (`refused`), unless `force`.

    Args:
        transactions: of the registry database.
        objects: the store.
        now: UTC; ages are those of the store's clock against it.
        dry_run: only count; rows are looked for, and none is marked.
        force: delete even where most objects are unknown.
        grace: age from which objects are judged.
        progress: told now and then what was done.

    Raises:
        Unavailable: database or store do not answer; what was done until then stays done.
    """
    found = Orphans(now, grace)
    report = OrphanReport()
    doomed: list[str] = []
    for batch in _batches(_old(objects, found)):
        for entry in _unknown(transactions, batch, found):
            found.orphans += 1
            found.orphan_bytes += entry.size_bytes
            if len(doomed) < _DELETED_A_PASS:
                doomed.append(entry.uri)
        if progress is not None:
            progress(f"{found.listed} objects listed, {found.orphans} without a row")
    report.listed, report.young, report.spared = found.listed, found.young, found.spared
    report.orphans, report.orphan_bytes = found.orphans, found.orphan_bytes
    report.examples = doomed[:_NAMED]
    report.left_for_later = found.orphans - len(doomed)
    report.refused = None if force else found.refusal()
    if not dry_run and report.refused is None:
        for start in range(0, len(doomed), _BATCH):
            uris = doomed[start : start + _BATCH]
            faults = objects.delete_many(uris)
            report.deleted += len(uris) - len(faults)
            report.failed += len(faults)
            for uri, why in faults.items():
                note(report.errors, uri, why)
    _look_for_rows(transactions, objects, report, grace, dry_run=dry_run)
    return report


def _old(objects: ObjectStore, found: Orphans) -> Iterator[ListedObject]:
    for modality in sorted(OUTPUTS):
        try:
            for entry in objects.entries(objects.bucket(modality)):
                if not objects.is_output(entry.uri):
                    continue
                found.listed += 1
                if found.is_young(entry.modified_at):
                    found.young += 1
                else:
                    yield entry
        except NotFound:
            # A bucket that was never made holds nothing.
            continue


def _batches(entries: Iterator[ListedObject]) -> Iterator[list[ListedObject]]:
    while batch := list(islice(entries, _BATCH)):
        yield batch


def _unknown(
    transactions: Transactions, batch: Sequence[ListedObject], found: Orphans
) -> list[ListedObject]:
    """Those that no row names and none refers to."""
    urls = [entry.uri for entry in batch]
    kept = transactions.call(lambda db: db.retention.kept(urls))
    loose = [entry for entry in batch if entry.uri not in kept]
    if not loose:
        return []
    owners = {entry.uri: owner_of(parse_s3_uri(entry.uri).key) for entry in loose}
    referred = transactions.call(lambda db: db.retention.referred(owners))
    # JSON writes these otherwise than they are, so that a search for them proves nothing.
    referred |= {uri for uri in owners if '"' in uri or "\\" in uri}
    found.spared += len(referred)
    return [entry for entry in loose if entry.uri not in referred]


def _look_for_rows(
    transactions: Transactions, objects: ObjectStore, report: OrphanReport, grace: timedelta,
    *, dry_run: bool,
) -> None:  # fmt: skip
    # A dry run marks nothing, so that it would be given the same again: it looks once.
    limit = _CHECKED_DRY if dry_run else _BATCH
    with ThreadPoolExecutor(_LOOKS, "objects") as threads:
        while report.rows_checked < _CHECKED_A_PASS:
            rows = transactions.call(lambda db: db.retention.to_check(grace, limit))
            if not rows:
                return
            looked: Iterator[bool] = threads.map(
                partial(_exists, objects), [url for _, url in rows]
            )
            there = list(looked)
            lost = [row for row, is_there in zip(rows, there, strict=True) if not is_there]
            report.rows_checked += len(rows)
            report.missing += [url for _, url in lost][: _NAMED - len(report.missing)]
            if dry_run:
                report.rows_missing += len(lost)
                return
            gone = {key for key, _ in lost}
            found = [key for key, _ in rows if key not in gone]
            newly, again = transactions.call(
                lambda db, found=found, gone=gone: db.retention.checked(found, sorted(gone))
            )
            report.rows_missing += newly
            report.rows_found_again += again


def _exists(objects: ObjectStore, url: str) -> bool:
    try:
        objects.stat(url)
    except NotFound:
        return False
    return True
