"""Fairness as properties, in simulated time: one slot is one service of a second."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vyvo_dagster.domain.fairness import AGING, OWED_EVERY, Backlog, Share, place, rivals
from vyvo_dagster.domain.job import Priority

START = 1_800_000_000_000
AGING_MS = int(AGING.total_seconds() * 1000)
INTERACTIVE, STANDARD, BATCH = Priority

tenants = st.sampled_from("abcdefg")
weights = st.floats(0.25, 8.0)


@dataclass
class Queues:
    """Waiting jobs by tenant and class: when each was made, oldest first."""

    share: Share = field(default_factory=Share)
    waiting: dict[tuple[str, Priority], list[int]] = field(default_factory=dict)
    now: int = START

    def add(self, tenant: str, priority: Priority, count: int = 1, at: int | None = None) -> None:
        made = self.now if at is None else at
        self.waiting.setdefault((tenant, priority), []).extend([made] * count)

    def serve(
        self, slots: int = 1, weight: Callable[[str], float] = lambda _: 1.0
    ) -> list[tuple[str, Priority]]:
        """One turn: `slots` jobs go, and a second passes."""
        backlogs = [
            Backlog(tenant, priority, len(jobs), jobs[0])
            for (tenant, priority), jobs in self.waiting.items()
            if jobs
        ]
        before = sum(b.count for b in backlogs)
        taken = self.share.take(backlogs, slots, self.now, weight)
        # Work conservation: no slot stays free while something waits, and nothing is invented.
        assert len(taken) == min(slots, before)
        for key in taken:
            self.waiting[key].pop(0)
        self.now += 1000
        return taken


@settings(max_examples=60)
@given(st.dictionaries(tenants, weights, min_size=2), st.sampled_from(Priority), st.integers(1, 7))
def test_shares_are_within_five_percent_of_the_weights(
    weight: dict[str, float], priority: Priority, slots: int
) -> None:
    queues = Queues()
    for tenant in weight:
        queues.add(tenant, priority, 5000)
    served: Counter[str] = Counter()
    while served.total() < 2000:
        served.update(tenant for tenant, _ in queues.serve(slots, weight.__getitem__))
    # Start-time fair queueing: two backlogged keys differ by at most one job each, so a share
    # that is but a few jobs is held to that bound, and all others to five percent.
    total = sum(weight.values())
    for tenant, own in weight.items():
        due = served.total() * own / total
        assert abs(served[tenant] - due) <= max(
            0.05 * due, 1 + own * sum(1 / w for w in weight.values())
        )


@settings(max_examples=60)
@given(
    st.dictionaries(tenants, weights, min_size=1),
    st.lists(st.tuples(tenants, st.integers(1, 30)), max_size=40),
    st.integers(1, 4),
)
def test_no_tenant_waits_longer_than_its_share(
    weight: dict[str, float], arrivals: list[tuple[str, int]], slots: int
) -> None:
    """Whatever comes and goes: between two services of a tenant that waits all along, another
    gets at most its weights' part, and one job more for each of the two ends."""
    queues = Queues()
    served: dict[str, list[str]] = {}
    pending = [(t, n) for t, n in arrivals if t in weight]
    while pending or any(queues.waiting.values()):
        if pending:
            tenant, count = pending.pop(0)
            queues.add(tenant, STANDARD, count)
        present = {t for (t, _), jobs in queues.waiting.items() if jobs}
        for gone in served.keys() - present:
            del served[gone]
        for tenant, _ in queues.serve(slots, weight.__getitem__):
            for since in served.values():
                since.append(tenant)
            served[tenant] = []
        for tenant, since in served.items():
            for other, count in Counter(since).items():
                assert count <= weight[other] / weight[tenant] + 2 + slots, (tenant, other)
        for tenant in present:
            served.setdefault(tenant, [])


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 6))
def test_a_tenant_that_comes_back_has_no_credit(idle: int, flood: int, slots: int) -> None:
    queues = Queues()
    queues.add("steady", STANDARD, 5000)
    queues.add("other", STANDARD, 1)
    for _ in range(idle + 2):
        queues.serve(slots)
    queues.add("other", STANDARD, flood)
    served = [tenant for _ in range(3) for tenant, _ in queues.serve(slots)]
    assert served.count("steady") >= min(len(served) - flood, len(served) // 2 - 1)


@given(st.integers(1, 10_000), st.integers(1, 40))
def test_a_flood_of_overdue_batch_delays_an_interactive_job_by_one_service(
    flood: int, before: int
) -> None:
    queues = Queues()
    queues.add("bulk", BATCH, flood, at=START - 100 * AGING_MS)
    for _ in range(before):
        queues.serve()
    queues.add("person", INTERACTIVE)
    assert queues.serve() == [("person", INTERACTIVE)]


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(0, 300))
def test_an_interactive_job_alone_never_waits_for_more_than_one_other(
    arrives: list[bool], standard: int
) -> None:
    """Singly arriving interactive jobs, over floods of both lower classes that are overdue."""
    queues = Queues()
    queues.add("bulk", BATCH, 1000, at=START - 100 * AGING_MS)
    queues.add("mid", STANDARD, standard, at=START - 100 * AGING_MS)
    for arrival in arrives:
        if arrival and not queues.waiting.get(("person", INTERACTIVE)):
            queues.add("person", INTERACTIVE)
        queues.serve()
        assert all(
            queues.now - at <= 2000 for at in queues.waiting.get(("person", INTERACTIVE), ())
        )


@given(st.sampled_from([INTERACTIVE, STANDARD]), st.integers(1, 3))
def test_a_class_that_is_overdue_gets_its_part_of_a_flood(urgent: Priority, slots: int) -> None:
    queues = Queues()
    queues.add("bulk", BATCH, 500)

    def flooded(seconds: int) -> int:
        """How many batch jobs are served meanwhile."""
        served = 0
        for _ in range(seconds):
            queues.add("flood", urgent, slots)
            served += sum(1 for _, priority in queues.serve(slots) if priority is BATCH)
        return served

    assert flooded(AGING_MS // 1000) == 0
    assert abs(flooded(100) - 100 * slots / (OWED_EVERY + 1)) <= slots


def test_all_three_classes_are_served_when_the_lower_two_are_overdue() -> None:
    queues = Queues()
    for priority in Priority:
        queues.add("t", priority, 1000, at=START - 2 * AGING_MS)
    taken = Counter(priority for _ in range(300) for _, priority in queues.serve())
    assert taken[INTERACTIVE] > taken[STANDARD] >= taken[BATCH] > 300 // (2 * (OWED_EVERY + 2))


@given(st.integers(1, 6))
def test_classes_are_strict_while_nobody_is_overdue(slots: int) -> None:
    queues = Queues()
    for priority in (BATCH, INTERACTIVE, STANDARD):
        queues.add("t", priority, 10)
    taken = [priority for _ in range(30) for _, priority in queues.serve(slots)]
    assert taken == [INTERACTIVE] * 10 + [STANDARD] * 10 + [BATCH] * 10


EXACT = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])  # so that clocks add up without rounding


@given(
    counts=st.dictionaries(st.sampled_from("bcdefg"), st.integers(1, 40), max_size=6),
    urgent=st.integers(0, 5), ahead=st.integers(0, 30),
    weighs=st.fixed_dictionaries(dict.fromkeys("abcdefg", EXACT)),
)  # fmt: skip
def test_a_place_is_the_turn_at_which_the_job_is_served(
    counts: dict[str, int], urgent: int, ahead: int, weighs: dict[str, float]
) -> None:
    others = [Backlog(t, STANDARD, n, START) for t, n in counts.items()]
    own = Backlog("a", STANDARD, ahead + 1, START + 1)
    first = [Backlog("z", INTERACTIVE, urgent, START)]
    order = Share().take([*first, *others, own], 1000, START + 2, lambda t: weighs.get(t, 1.0))
    mine = [n for n, (tenant, _) in enumerate(order, 1) if tenant == "a"]
    assert place(urgent, ahead, weighs["a"], rivals(counts, weighs.__getitem__)) == mine[ahead]


@given(
    counts=st.dictionaries(st.sampled_from("bcdefg"), st.integers(1, 40), max_size=6),
    ahead=st.integers(0, 30), weighs=st.fixed_dictionaries(dict.fromkeys("abcdefg", weights)),
)  # fmt: skip
def test_a_later_job_never_has_an_earlier_place(
    counts: dict[str, int], ahead: int, weighs: dict[str, float]
) -> None:
    others = rivals(counts, weighs.__getitem__)
    places = [place(0, n, weighs["a"], others) for n in range(ahead + 2)]
    assert places == sorted(set(places))
    assert ahead + 2 <= places[-1] <= ahead + 2 + sum(counts.values())
