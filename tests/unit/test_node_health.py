"""What silence and heartbeats make of a node, as properties over simulated histories."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.node import NODE, HeartbeatPolicy, NodeState
from vyvo_dagster.errors import InvalidInput

SUSPECT, LOST = timedelta(seconds=30), timedelta(seconds=60)
POLICY = HeartbeatPolicy(SUSPECT, LOST)
durations = st.integers(0, 200).map(lambda s: timedelta(seconds=s))
gaps = st.lists(st.integers(1, 59).map(lambda s: timedelta(seconds=s)), max_size=80)


@dataclass
class Node:
    """A node as the rows keep it, looked at each second."""

    state: NodeState = NodeState.READY
    now: timedelta = timedelta(0)
    last: timedelta = timedelta(0)
    since: timedelta | None = timedelta(0)
    suspicions: int = 0
    suspect_at: timedelta | None = None
    changes: int = 0
    SECOND: ClassVar[timedelta] = timedelta(seconds=1)

    def silent(self, gap: timedelta) -> None:
        until = self.now + gap
        while self.now < until:
            self.now += self.SECOND
            to = POLICY.silent(self.state, self.now - self.last)
            if to is self.state:
                continue
            assert NODE.allows(self.state, to)
            if to is NodeState.SUSPECT:
                kept = (
                    self.suspect_at is not None
                    and self.now - self.suspect_at < POLICY.forgets_after
                )
                self.suspicions = self.suspicions + 1 if kept else 1
                self.suspect_at = self.now
            self.state, self.since = to, None
            self.changes += 1

    def beat(self) -> None:
        if self.since is None or self.now - self.last >= SUSPECT:
            self.since = self.now
        self.last = self.now
        self.state = POLICY.heard(self.state, self.suspicions, self.now - self.since)


@given(st.sampled_from(NodeState), durations)
def test_silence_alone_only_worsens_and_lost_stays(state: NodeState, silence: timedelta) -> None:
    after = POLICY.silent(state, silence)
    if state is NodeState.LOST or silence >= LOST:
        assert after is NodeState.LOST
    elif silence < SUSPECT:
        assert after is state, "what asks for silences of suspect_after and more would miss it"
    else:
        assert after is (NodeState.SUSPECT if state is NodeState.READY else state)


def test_the_thresholds() -> None:
    at = [POLICY.silent(NodeState.READY, timedelta(seconds=s)) for s in (0, 29, 30, 59, 60)]
    assert at == ["ready", "ready", "suspect", "suspect", "lost"]
    assert [POLICY.probation(n).total_seconds() for n in (0, 1, 2, 3, 4, 5, 6, 99)] == [
        0, 0, 30, 60, 120, 240, 240, 240,
    ]  # fmt: skip
    for suspect, lost in ((0, 60), (60, 60), (61, 60)):
        with pytest.raises(InvalidInput):
            HeartbeatPolicy(timedelta(seconds=suspect), timedelta(seconds=lost))


@given(gaps)
def test_a_node_that_is_never_lost_is_ready_after_a_steady_while(found: list[timedelta]) -> None:
    node = Node()
    for gap in found:
        node.silent(gap)
        node.beat()
    assert node.state in {NodeState.READY, NodeState.SUSPECT}
    for _ in range(25):
        node.silent(timedelta(seconds=10))
        node.beat()
    assert node.state is NodeState.READY


@given(gaps)
def test_flapping_is_damped(found: list[timedelta]) -> None:
    """Of changes between ready and suspect there are only so many in any time, however it beats."""
    node = Node()
    began: list[timedelta] = []
    for gap in found:
        before = node.suspicions
        node.silent(gap)
        node.beat()
        if node.suspicions != before:
            began.append(node.now)
    window = POLICY.forgets_after
    for start in began:
        within = sum(start <= at < start + window for at in began)
        # Each suspicion takes its silence; from the second on also the probation before it.
        assert within <= 2 + 1 + 1 + 1 + window // (POLICY.LONGEST_PROBATION * SUSPECT + SUSPECT)


def test_a_first_suspicion_ends_with_the_first_heartbeat_and_a_second_does_not() -> None:
    node = Node()
    node.silent(timedelta(seconds=45))
    assert node.state is NodeState.SUSPECT
    node.beat()
    assert node.state is NodeState.READY
    node.silent(timedelta(seconds=45))
    node.beat()
    assert node.state is NodeState.SUSPECT
    for _ in range(2):
        node.silent(timedelta(seconds=10))
        node.beat()
        assert node.state is NodeState.SUSPECT
    node.silent(timedelta(seconds=10))
    node.beat()
    assert node.state is NodeState.READY
