"""Dagster resources: thin, configured wrappers over store, streams, objects, building and hosts."""

from resources.building import BuildingResource
from resources.docker_hosts import DockerHostsResource
from resources.json_values import JsonValues
from resources.objects import ObjectsResource
from resources.retention import RetentionResource
from resources.store import StoreResource
from resources.streams import StreamsResource

__all__ = [
    "BuildingResource",
    "DockerHostsResource",
    "JsonValues",
    "ObjectsResource",
    "RetentionResource",
    "StoreResource",
    "StreamsResource",
]
