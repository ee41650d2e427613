"""Every error as a gRPC status: the same stable codes that the problem documents carry."""

from collections.abc import Mapping
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from pydantic import ValidationError

from vyvo_dagster.errors import InvalidInput, RateLimited, Unavailable, VyvoError

__all__ = ["DOMAIN", "abort", "of_validation"]

DOMAIN: Final = "vyvo"
"""`domain` of the ErrorInfo; its `reason` is the code in capitals."""
_RETRY_SECONDS: Final = 2
# Trailers share one block of 8 KiB, where a character may take twelve bytes.
_DETAIL_CHARS: Final = 400
_STATUS: Final[Mapping[int, grpc.StatusCode]] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: VyvoError) -> NoReturn:
    """End the call with an error; it raises what ends it."""
    code = _STATUS.get(error.status, grpc.StatusCode.INTERNAL)
    detail = error.detail[:_DETAIL_CHARS]
    told = [_packed(ErrorInfo(reason=error.code.upper(), domain=DOMAIN))]
    if isinstance(error, Unavailable | RateLimited):
        told.append(_packed(RetryInfo(retry_delay=Duration(seconds=_RETRY_SECONDS))))
    number: int = code.value[0]
    status = Status(code=number, message=detail, details=told)
    await context.abort(
        code,
        detail,
        trailing_metadata=(
            ("vyvo-code", error.code),
            ("grpc-status-details-bin", status.SerializeToString()),
        ),
    )
    raise AssertionError("unreachable")


def of_validation(error: ValidationError) -> InvalidInput:
    """What is wrong with a message. What was sent is not echoed: it may be a secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in found[0]["loc"]) or "request"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvalidInput(f"{where}: {found[0]['msg']}{more}")


def _packed(detail: "ErrorInfo | RetryInfo") -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
