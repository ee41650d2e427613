"""Placement of ops on hosts, as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.host import (
    Device,
    HostView,
    OpRequest,
    Placed,
    Waiting,
    parse_request,
    place,
)
from vyvo_dagster.domain.node import NodeState
from vyvo_dagster.errors import InvalidInput

GIB = 1 << 30


def host(
    name: str,
    gpus: int = 1,
    *,
    kind: str = "NVIDIA H100 80GB HBM3",
    state: NodeState = NodeState.READY,
    schedulable: bool = True,
    pool: str | None = None,
    in_use: frozenset[str] | None = frozenset(),
    ops: int = 0,
) -> HostView:
    devices = tuple(Device(f"{name}-{i}", kind, (i + 1) * GIB) for i in range(gpus))
    labels = {} if pool is None else {"pool": pool}
    return HostView(name, state, schedulable, labels, devices, 64 * GIB, 8, in_use, ops)


devices = st.integers(0, 4)
hosts = st.lists(
    st.builds(
        lambda n, g, k, s, c, p, used, ops: host(
            f"n{n}", g, kind=k, state=s, schedulable=c, pool=p, ops=ops,
            in_use=None if used is None else frozenset(f"n{n}-{i}" for i in used),
        ),
        st.integers(0, 5), devices, st.sampled_from(["NVIDIA H100", "NVIDIA L4"]),
        st.sampled_from(NodeState), st.booleans(), st.sampled_from([None, "a", "b"]),
        st.none() | st.sets(st.integers(0, 3)), st.integers(0, 3),
    ),
    max_size=6, unique_by=lambda h: h.name,
)  # fmt: skip
requests = st.builds(
    OpRequest,
    host=st.none() | st.sampled_from(["n0", "n1", "gone"]),
    pool=st.none() | st.sampled_from(["a", "b", "c"]),
    gpus=st.sampled_from([None, 0, 1, 2, -1]),
    gpu_name=st.none() | st.sampled_from(["h100", "l4"]),
    memory_bytes=st.none() | st.sampled_from([GIB, 100 * GIB]),
    cpus=st.none() | st.sampled_from([0.5, 99.0]),
)


@given(requests, hosts)
def test_an_op_gets_what_it_asks_for_and_nothing_that_others_hold(
    request: OpRequest, views: list[HostView]
) -> None:
    got = place(request, views)
    if isinstance(got, Waiting):
        assert got.reason
        return
    found = next(v for v in views if v.name == got.host)
    assert found.state is NodeState.READY
    assert found.schedulable
    assert request.host in {None, found.name}
    assert request.pool in {None, found.labels.get("pool")}
    assert found.in_use is not None
    assert not found.in_use & set(got.devices)
    assert len(set(got.devices)) == len(got.devices)
    named = [d for d in found.devices if (request.gpu_name or "") in d.name.lower()]
    assert set(got.devices) <= {d.uuid for d in named}
    assert len(got.devices) == (len(named) if request.gpus == -1 else request.gpus or 0)
    assert (request.memory_bytes or 0) <= found.memory_bytes
    assert (request.cpus or 0) <= found.cpus


@given(requests, hosts)
def test_the_order_of_the_hosts_does_not_matter(request: OpRequest, views: list[HostView]) -> None:
    assert place(request, views) == place(request, list(reversed(views)))


def test_rooms_are_kept_whole() -> None:
    views = [host("big", 4), host("small", 1), host("used", 2, in_use=frozenset({"used-0"}))]
    assert place(OpRequest(gpus=1), views) == Placed("small", ("small-0",))
    assert place(OpRequest(gpus=2), views) == Placed("big", ("big-3", "big-2"))


def test_who_waits_is_told_the_tag_and_what_is_in_the_way() -> None:
    views = [host("a", in_use=frozenset({"a-0"}), pool="p"), host("b", in_use=None, pool="p")]
    gone = place(OpRequest(host="gone"), views)
    assert gone == Waiting("no node matches vyvo/host=gone")
    assert place(OpRequest(pool="p", gpus=1, gpu_name="h100"), views) == Waiting(
        "no node is free for vyvo/pool=p, vyvo/gpu=h100:1: "
        "a has no GPU free; b has an engine that does not answer"
    )


@pytest.mark.parametrize(
    ("tags", "asked"),
    [
        ({}, None),
        ({"vyvo/memory": "1GiB"}, None),
        ({"vyvo/host": "gpu-01"}, OpRequest(host="gpu-01")),
        ({"vyvo/gpu": "2"}, OpRequest(gpus=2)),
        ({"vyvo/gpu": "all"}, OpRequest(gpus=-1)),
        ({"vyvo/gpu": "0"}, OpRequest(gpus=0)),
        ({"vyvo/gpu": "h100"}, OpRequest(gpus=1, gpu_name="h100")),
        ({"vyvo/gpu": "RTX 4090:2"}, OpRequest(gpus=2, gpu_name="RTX 4090")),
        ({"vyvo/gpu": "l4:all"}, OpRequest(gpus=-1, gpu_name="l4")),
        (
            {"vyvo/pool": "p", "vyvo/memory": "512MiB", "vyvo/cpus": "0.5"},
            OpRequest(pool="p", memory_bytes=512 << 20, cpus=0.5),
        ),
    ],
)
def test_tags_are_read(tags: dict[str, str], asked: OpRequest | None) -> None:
    assert parse_request(tags) == asked


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("vyvo/host", "-oProxyCommand=x"),
        ("vyvo/host", ""),
        ("vyvo/gpu", ""),
        ("vyvo/gpu", "-1"),
        ("vyvo/gpu", "100"),
        ("vyvo/gpu", "h100:0"),
        ("vyvo/memory", "1GB"),
        ("vyvo/memory", "1"),
        ("vyvo/cpus", "nan"),
        ("vyvo/cpus", "0"),
        ("vyvo/cpus", "many"),
    ],
)
def test_a_tag_that_is_none_is_named(tag: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=tag):
        parse_request({"vyvo/pool": "p", tag: value})
