"""Every error that this system raises on purpose, in one tree.

    VyvoError                     500 internal
    ├── InvalidInput              422 invalid_input
    │   ├── InvalidModelId        422 invalid_model_id
    │   ├── InvalidWeightsUri     422 invalid_weights_uri
    │   ├── InvalidEnv            422 invalid_env
    │   ├── UnknownTemplate       422 unknown_template
    │   ├── InputSchemaMismatch   422 input_schema_mismatch
    │   ├── InvalidReport         422 invalid_report
    │   ├── InvalidWebhook        422 invalid_webhook
    │   └── InvalidWorkflow       422 invalid_workflow
    ├── Unauthenticated           401 unauthenticated
    ├── Forbidden                 403 forbidden
    ├── NotFound                  404 not_found
    ├── Conflict                  409 conflict
    │   ├── VersionExists         409 version_exists
    │   ├── VersionImmutable      409 version_immutable
    │   ├── StaleAttempt          409 stale_attempt
    │   ├── StaleBoot             409 stale_boot
    │   ├── IllegalTransition     409 illegal_transition
    │   └── ScalingRefused        409 scaling_refused
    ├── RateLimited               429 rate_limited
    │   └── QuotaExceeded         429 quota_exceeded
    ├── BuildFailed               500 build_failed
    ├── RunnerFailed              500 runner_failed
    ├── ScalingFailed             500 scaling_failed
    └── Unavailable               503 unavailable

`status` is the HTTP status the api answers with, `code` the stable name that clients switch on.
"""

from typing import Any, ClassVar

__all__ = [
    "BuildFailed",
    "Conflict",
    "Forbidden",
    "IllegalTransition",
    "InputSchemaMismatch",
    "InvalidEnv",
    "InvalidInput",
    "InvalidModelId",
    "InvalidReport",
    "InvalidWebhook",
    "InvalidWeightsUri",
    "InvalidWorkflow",
    "NotFound",
    "QuotaExceeded",
    "RateLimited",
    "RunnerFailed",
    "ScalingFailed",
    "ScalingRefused",
    "StaleAttempt",
    "StaleBoot",
    "Unauthenticated",
    "Unavailable",
    "UnknownTemplate",
    "VersionExists",
    "VersionImmutable",
    "VyvoError",
]


class VyvoError(Exception):
    """Root of the tree.

    Args:
        detail: one sentence for a person, saying what to do where that is known.
        extra: members added to the problem document, such as `errors` of a schema check.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra
        self.headers: dict[str, str] = {}
        """Of the answer, for those that have some."""


class InvalidInput(VyvoError):
    """What the caller sent cannot be used."""

    status = 422
    code = "invalid_input"


class InvalidModelId(InvalidInput):
    """A model id that is not `owner/name` in the allowed characters."""

    code = "invalid_model_id"


class InvalidWeightsUri(InvalidInput):
    """A weights location of a scheme or an address that is not fetched."""

    code = "invalid_weights_uri"


class InvalidEnv(InvalidInput):
    """An environment name or value that cannot be carried safely."""

    code = "invalid_env"


class InvalidWebhook(InvalidInput):
    """A webhook that may not be called, or a secret that cannot sign one."""

    code = "invalid_webhook"


class InvalidWorkflow(InvalidInput):
    """A workflow's definition with faults; `problems` names the step and the path of each."""

    code = "invalid_workflow"


class UnknownTemplate(InvalidInput):
    """No runner template of that name."""

    code = "unknown_template"


class InputSchemaMismatch(InvalidInput):
    """A job's input fails the schema of the version that it is for."""

    code = "input_schema_mismatch"


class InvalidReport(InvalidInput):
    """An agent's report that cannot be used; the attempt that it was to end has failed."""

    code = "invalid_report"


class Unauthenticated(VyvoError):
    """No credential, or one that is unknown, expired or revoked."""

    status = 401
    code = "unauthenticated"


class Forbidden(VyvoError):
    """The credential is good and lacks the scope, or is another node's."""

    status = 403
    code = "forbidden"


class NotFound(VyvoError):
    """No such thing, or none that this caller may see."""

    status = 404
    code = "not_found"


class Conflict(VyvoError):
    """The thing is in a state that does not allow what was asked."""

    status = 409
    code = "conflict"


class VersionExists(Conflict):
    """That version of the model is already built or being built."""

    code = "version_exists"


class VersionImmutable(Conflict):
    """What is ready is not changed any more: a new version is made instead."""

    code = "version_immutable"


class StaleAttempt(Conflict):
    """A report for an attempt that is no longer the job's current one; nothing was changed."""

    code = "stale_attempt"


class StaleBoot(Conflict):
    """A heartbeat of an earlier start of the agent, or of a node given up as lost: it must join again."""

    code = "stale_boot"


class IllegalTransition(Conflict):
    """A state machine has no such arrow."""

    code = "illegal_transition"


class ScalingRefused(Conflict):
    """A pool cannot be scaled so: a limit, or a plan that destroys more than was asked for."""

    code = "scaling_refused"


class RateLimited(VyvoError):
    """Too many requests for this key."""

    status = 429
    code = "rate_limited"


class QuotaExceeded(RateLimited):
    """As many jobs of this key wait as may wait."""

    code = "quota_exceeded"


class BuildFailed(VyvoError):
    """A build step failed; `detail` names the step."""

    code = "build_failed"


class RunnerFailed(VyvoError):
    """A runner did not start, died, or answered nonsense."""

    code = "runner_failed"


class ScalingFailed(VyvoError):
    """What makes and removes a pool's nodes failed, or took too long; `detail` says which step."""

    code = "scaling_failed"


class Unavailable(VyvoError):
    """A server that this needs does not answer; try again later."""

    status = 503
    code = "unavailable"
