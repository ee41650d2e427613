"""The Dagster code location: composes, and nothing else.

Values of the environment are read here; secrets are named, so that the UI shows no value.
"""

from dagster import Definitions, EnvVar

from assets import ASSETS, JOBS
from ops import HOST_JOBS, MAINTENANCE_JOBS
from resources import (
    BuildingResource,
    DockerHostsResource,
    JsonValues,
    ObjectsResource,
    RetentionResource,
    StoreResource,
    StreamsResource,
)
from resources.docker_hosts import hosts_executor
from sensors import SCHEDULES, SENSORS
from vyvo_dagster.settings import HostsSettings, S3Settings, Settings

__all__ = ["defs"]

_settings = Settings()
_s3 = S3Settings()
_hosts = HostsSettings()

_store = StoreResource(dsn=EnvVar("VYVO_POSTGRES_DSN"))
_objects = ObjectsResource(
    endpoint=_s3.endpoint,
    access_key=EnvVar("VYVO_S3_ACCESS_KEY"),
    secret_key=EnvVar("VYVO_S3_SECRET_KEY"),
    region=_s3.region,
    bucket_prefix=_s3.bucket_prefix,
)

defs = Definitions(
    assets=ASSETS,
    jobs=[*JOBS, *MAINTENANCE_JOBS, *HOST_JOBS],
    sensors=SENSORS,
    schedules=SCHEDULES,
    # A step's own process would be paid with each step's start; steps of a build share one.
    executor=hosts_executor(_hosts),
    resources={
        "store": _store,
        "docker_hosts": DockerHostsResource.of(_store, _hosts),
        "retention": RetentionResource.of(_settings),
        "streams": StreamsResource(url=EnvVar("VYVO_REDIS_URL")),
        "objects": _objects,
        "json_values": JsonValues(objects=_objects),
        "building": BuildingResource.of(_settings),
    },
)
