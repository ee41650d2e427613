"""Dagster resources: thin, configured wrappers over store, streams, objects and building."""

from resources.building import BuildingResource
from resources.objects import ObjectsResource
from resources.store import StoreResource
from resources.streams import StreamsResource

__all__ = ["BuildingResource", "ObjectsResource", "StoreResource", "StreamsResource"]
