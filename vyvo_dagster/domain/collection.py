"""What is removed when nobody needs it any more: which images, and what is kept in any case."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

__all__ = ["CollectedKind", "Image", "Keep", "collectable"]


class CollectedKind(StrEnum):
    """What can be collected."""

    REGISTRY_IMAGE = "registry_image"
    ENGINE_IMAGE = "engine_image"
    ENVIRONMENT = "environment"
    WHEELHOUSE = "wheelhouse"


@dataclass(frozen=True, slots=True)
class Image:
    """What one build published.

    Args:
        name: as agents pull it, by digest.
        model_id: whose it is.
        since: when it was last of use: the build's end, or when its version was retired.
    """

    name: str
    model_id: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays although nobody refers to it: what is younger, and the newest of each model."""

    age: timedelta
    count: int


def collectable(
    images: Sequence[Image],
    referred: Collection[str],
    busy: Collection[str],
    keep: Keep,
    now: datetime,
) -> list[Image]:
    """Images to remove, oldest first.

    Args:
        images: of builds that have ended; the same name may come from several builds.
        referred: names that a version which may serve, or an assignment in force, refers to.
        busy: models that are being built: a build may come to a digest that is about to go.
        keep: see Keep; `count` counts images of one model that nobody refers to.
        now: the present.
    """  # fmt: skip
    newest: dict[str, Image] = {}
    for image in images:
        known = newest.get(image.name)
        if known is None or known.since < image.since:
            newest[image.name] = image
    kept: dict[str, int] = {}
    found: list[Image] = []
    for image in sorted(newest.values(), key=lambda i: (i.since, i.name), reverse=True):
        if image.name in referred or image.model_id in busy:
            continue
        kept[image.model_id] = kept.get(image.model_id, 0) + 1
        if kept[image.model_id] > keep.count and now - image.since > keep.age:
            found.append(image)
    return found[::-1]
