"""A node's reports of its attempts, as they come over HTTP."""

from uuid import UUID

from api.jobs.reports import Reports, Taken
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.protocol.job import ItemProblem, ReportBatch, ReportBatchAnswer, ReportResult

__all__ = ["take"]


async def take(reports: Reports, node_id: UUID, batch: ReportBatch) -> ReportBatchAnswer:
    """Take a batch; a result for each item.

    Raises:
        Unavailable: as `Reports.take` says.
    """
    answers = await reports.take(node_id, batch.items)
    return ReportBatchAnswer(results=[_result(answer) for answer in answers])


def _result(answer: Taken | VyvoError) -> ReportResult:
    if isinstance(answer, VyvoError):
        problem = ItemProblem(status=answer.status, code=answer.code, detail=answer.detail)
        return ReportResult(problem=problem)
    return ReportResult(status=answer.status, cancel_requested=answer.cancel_requested)
