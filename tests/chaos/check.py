"""What must hold of the record once all faults are over, whatever they were."""

from collections import Counter
from collections.abc import Sequence

import redis

from tests.chaos.stack import Stack
from vyvo_dagster.streams import keys

__all__ = ["check_events", "check_record", "left_over", "table", "unended"]

_ENDED = "('succeeded', 'failed', 'canceled', 'expired')"


def unended(stack: Stack) -> list[tuple[object, ...]]:
    """Jobs that are not terminal, and what they wait for."""
    return stack.rows(
        "select j.id::text, j.state, j.attempt, n.name, n.state, j.dispatched_at::text,"
        " j.lease_expires_at::text, j.retry_at::text, j.cancel_requested_at::text, now()::text"
        " from jobs j left join nodes n on n.id = j.node_id"
        f" where j.state not in {_ENDED} order by j.id"
    )


def check_record(stack: Stack, accepted: Sequence[str], canceled: set[str]) -> Counter[str]:
    """Every job that was acknowledged is there and ended once; returns the count by state."""
    rows = stack.rows("select id::text, state, attempt, error_code, completed_at from jobs")
    states = {id_: state for id_, state, *_ in rows}
    assert len(accepted) == len(set(accepted)), "two submissions were answered with one job"
    assert set(states) == set(accepted), (
        f"{len(set(accepted) - set(states))} acknowledged jobs are lost, "
        f"{len(set(states) - set(accepted))} were never acknowledged"
    )
    counts = Counter(states.values())
    assert set(counts) <= {"succeeded", "canceled"}, [r for r in rows if r[1] == "failed"][:5]
    assert all(completed is not None for *_, completed in rows)
    assert {i for i, s in states.items() if s == "canceled"} <= canceled, "canceled by nobody"

    attempts = stack.rows("select job_id::text, attempt, outcome, ended_at from job_attempts")
    assert all(ended is not None for *_, ended in attempts), "an attempt never ended"
    wins = Counter(id_ for id_, _, outcome, _ in attempts if outcome == "succeeded")
    won = {id_ for id_, state in states.items() if state == "succeeded"}
    assert set(wins) == won, "an attempt and its job disagree about success"
    assert set(wins.values()) <= {1}, "a job was completed twice"
    current = {id_: attempt for id_, _, attempt, *_ in rows}
    late = [id_ for id_, n, o, _ in attempts if o == "succeeded" and n != current[id_]]
    assert not late, f"fenced attempts completed {late[:5]}"
    counts["attempts"] = len(attempts)
    # By outcome: a canceled attempt is no lost one.
    for outcome, count in Counter(outcome for _, _, outcome, _ in attempts).items():
        counts[f"attempts {outcome}"] = count
    return counts


def left_over(stack: Stack) -> list[str]:
    """What is left in the outbox and in the streams of jobs and nodes; empty when all is done."""
    found = [f"outbox: {n}" for (n,) in stack.rows("select count(*) from outbox") if n]
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        found += [f"{s}: {client.xlen(s)}" for s in client.scan_iter("vyvo:jobs:*")]
        found += [f"{keys.QUEUES} names {s}" for s in client.smembers(keys.QUEUES)]
        for stream in client.scan_iter("vyvo:node:*"):
            pending = sum(group["pending"] for group in client.xinfo_groups(stream))
            if (length := client.xlen(stream)) or pending:
                found.append(f"{stream}: {length}, {pending} pending")
    return found


def check_events(stack: Stack) -> int:
    """No event stream tells of an end twice, or of anything after it; how many streams there are."""
    count = 0
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        for stream in client.scan_iter("vyvo:events:*", count=1000):
            kinds = [fields["kind"] for _, fields in client.xrange(stream)]
            assert kinds.count("completed") <= 1, (stream, kinds)
            count += 1
    return count


def table(title: str, rows: dict[str, object]) -> str:
    """Rows as text, for the log of the run."""
    wide = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{wide}}  {value}" for name, value in rows.items())])
