"""What the launcher and the workers must agree on about Celery."""

from typing import Any, Final

__all__ = ["CELERY_CONFIG", "QUEUE"]


QUEUE: Final = "dagster"

_KEY_PREFIX: Final = "vyvo:celery:"
# A run is acknowledged when it begins, so this is only for messages that nobody takes.
_VISIBILITY_SECONDS: Final = 12 * 3600

CELERY_CONFIG: Final[dict[str, Any]] = {
    "task_default_queue": QUEUE,
    "task_default_priority": 5,
    "task_acks_late": False,
    "task_track_started": True,
    # A worker takes no run before it has a process for it: what it has not begun when it is killed
    # is still in Redis, for the others.
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {
        "visibility_timeout": _VISIBILITY_SECONDS,
        "global_keyprefix": _KEY_PREFIX,
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    "broker_connection_retry_on_startup": True,
    "result_backend_transport_options": {"global_keyprefix": _KEY_PREFIX},
    "result_expires": 24 * 3600,
    "worker_hijack_root_logger": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}
