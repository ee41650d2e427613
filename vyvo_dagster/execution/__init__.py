"""How Dagster runs are executed: by warm Celery workers, each run under a lease in Redis."""
