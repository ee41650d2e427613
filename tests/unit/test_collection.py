"""What may be removed: never what is referred to, never what is young or among the newest."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.collection import Image, Keep, collectable

NOW = datetime(2026, 11, 24, tzinfo=UTC)
NAMES = st.sampled_from([f"image-{n}" for n in range(6)])
IMAGES = st.builds(
    Image, NAMES, st.sampled_from(["o/a", "o/b"]),
    st.integers(0, 60).map(lambda days: NOW - timedelta(days=days)),
)  # fmt: skip


@given(
    st.lists(IMAGES), st.sets(NAMES), st.sets(st.sampled_from(["o/a", "o/b"])),
    st.integers(0, 3), st.integers(0, 40),
)  # fmt: skip
def test_what_is_referred_to_young_or_newest_stays(
    images: list[Image], referred: set[str], busy: set[str], count: int, days: int
) -> None:
    keep = Keep(timedelta(days=days), count)
    found = collectable(images, referred, busy, keep, NOW)
    names = [image.name for image in found]
    assert len(names) == len(set(names))
    for image in found:
        assert image.name not in referred
        assert image.model_id not in busy
        alike = [i for i in images if i.name == image.name]
        assert all(NOW - i.since > keep.age for i in alike)
        newer = {
            i.name for i in images
            if i.model_id == image.model_id and i.since > image.since and i.name not in referred
        }  # fmt: skip
        assert len(newer | {image.name}) > count or len(newer) >= count


def test_the_newest_of_each_model_stay() -> None:
    def image(name: str, model: str, days: int) -> Image:
        return Image(name, model, NOW - timedelta(days=days))

    images = [
        image("1", "o/a", 90),
        image("2", "o/a", 80),
        image("3", "o/a", 70),
        image("4", "o/b", 90),
    ]
    found = collectable(images, {"2"}, set(), Keep(timedelta(days=30), 1), NOW)
    assert [i.name for i in found] == ["1"]
    assert [i.name for i in collectable(images, set(), {"o/a"}, Keep(timedelta(0), 0), NOW)] == [
        "4"
    ]
