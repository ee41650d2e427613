"""Places of jobs that are written together, against those of jobs that come one by one."""

from collections import Counter
from uuid import UUID, uuid5

from hypothesis import given
from hypothesis import strategies as st

from api.jobs.positions import Positions
from vyvo_dagster.domain.fairness import Weighing
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.store.submissions import NewJob
from vyvo_dagster.streams import keys

INTERACTIVE, STANDARD, _ = Priority
MODEL = "test/m"
NAMES = UUID(int=0)
WEIGHING = Weighing({("b", None): 2.0, ("c", MODEL): 0.5, ("c", None): 9.0})

Key = tuple[str, str, Priority, str]
queues = st.tuples(
    st.just(MODEL), st.sampled_from(["v1", "v2"]), st.just(STANDARD), st.sampled_from("abc")
)


def job(key: Key, n: int = 0) -> NewJob:
    model_id, version, priority, tenant = key
    return NewJob(
        id=uuid5(NAMES, str(n)), tenant=tenant, model_id=model_id, version_id=NAMES,
        version=version, priority=priority, input="{}", max_attempts=1, ttl_seconds=1.0,
        traceparent=None, stream=keys.jobs(model_id, version, priority, tenant),
    )  # fmt: skip


@given(
    waiting=st.dictionaries(queues, st.integers(1, 9), max_size=6),
    new=st.lists(queues, min_size=1, max_size=12),
)
def test_together_as_one_by_one(waiting: dict[Key, int], new: list[Key]) -> None:
    positions = Positions(lambda: WEIGHING)
    together = positions.of([job(k, n) for n, k in enumerate(new)], [MODEL], waiting)
    counts = Counter(waiting)
    apart: list[int] = []
    for key in new:
        apart += positions.of([job(key)], [MODEL], counts)
        counts[key] += 1
    assert together == apart


def test_a_long_queue_is_counted_on_without_asking_again() -> None:
    positions = Positions(lambda: WEIGHING)
    key = (MODEL, "v1", STANDARD, "a")
    assert positions.unknown([job(key)]) == [MODEL]
    assert positions.of([job(key)], [MODEL], {key: 300}) == [301]
    assert positions.unknown([job(key)]) == []
    assert positions.of([job(key)], [], {}) == [302]
    urgent = (MODEL, "v1", INTERACTIVE, "b")
    # What is more urgent goes before all, also where it comes with them.
    assert positions.of([job(key), job(urgent)], [], {}) == [304, 1]
    assert positions.of([job((MODEL, "v1", STANDARD, "b"))], [], {}) == [3]
