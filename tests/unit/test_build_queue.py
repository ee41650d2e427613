"""Which builds may be launched, and which may begin."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.build_queue import BuildLimits, launchable, no_place

TEMPLATES = st.sampled_from(["digits", "video", "llm"])
LIMITS = st.builds(
    BuildLimits,
    st.integers(1, 4),
    st.dictionaries(st.sampled_from(["digits", "video", "*"]), st.integers(1, 3)),
)


@given(st.lists(TEMPLATES), st.lists(TEMPLATES, max_size=6), LIMITS, st.integers(0, 4))
def test_no_limit_is_passed_and_no_place_is_left_empty(
    waiting: list[str], flying: list[str], limits: BuildLimits, hosts: int
) -> None:
    builds = list(enumerate(waiting))
    chosen = launchable(builds, flying, limits, hosts)
    assert chosen == sorted(chosen)
    free = max(limits.per_host * max(hosts, 1) - len(flying), 0)
    assert len(chosen) <= free
    at_work = Counter(flying)
    for build in chosen:
        at_work[waiting[build]] += 1
        most = limits.of_template(waiting[build])
        assert most is None or at_work[waiting[build]] <= most
    if len(chosen) < free:
        # What still waits, waits for its template.
        for build, template in builds:
            most = limits.of_template(template)
            assert build in chosen or (most is not None and at_work[template] >= most)


def test_builds_of_one_template_keep_their_order_and_hold_up_no_others() -> None:
    limits = BuildLimits(3, {"video": 1})
    waiting = [("a", "video"), ("b", "video"), ("c", "llm"), ("d", "video")]
    assert launchable(waiting, [], limits, 1) == ["a", "c"]
    assert launchable(waiting, ["video"], limits, 1) == ["c"]
    assert launchable(waiting, [], BuildLimits(1), 2) == ["a", "b"]


def test_a_build_waits_for_a_place_on_its_host_and_of_its_template() -> None:
    limits = BuildLimits(2, {"*": 3})
    busy = [("llm", "h1"), ("llm", "h1"), ("llm", "h2")]
    assert no_place("digits", "h1", busy, limits) == (
        "2 builds are at work on h1, as many as may be"
    )
    assert no_place("digits", "h2", busy, limits) is None
    assert no_place("llm", "h2", busy, limits) == ("3 builds of llm are at work, as many as may be")
