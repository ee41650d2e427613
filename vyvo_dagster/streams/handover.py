"""Handing attempts to their nodes: event, order and acknowledgement of each, in one script call."""

from collections.abc import Sequence
from typing import Final

from vyvo_dagster.domain.job import JobEventKind
from vyvo_dagster.protocol.job import OrderKind
from vyvo_dagster.protocol.order import Order
from vyvo_dagster.streams import keys
from vyvo_dagster.streams.client import AsyncRedis
from vyvo_dagster.streams.entries import Entry
from vyvo_dagster.streams.events import PUBLISH, PUBLISH_LIMITS
from vyvo_dagster.streams.queues import DONE
from vyvo_dagster.streams.scripts import Script

__all__ = ["hand_over"]

# KEYS: queues, all-events stream, then of each order the job's event stream and the node's stream,
# then of each entry its queue. ARGV: limits of the event streams, group, how many orders, whether
# this was tried before, event kind, order kind, life of a node's stream in ms; of each order job id,
# event data, body; of each entry its id. An agent may start at once, so all events stand before the
# first order.
_HAND_OVER: Final = Script(
    PUBLISH
    + DONE
    + """
local limits, group, orders = {ARGV[1], ARGV[2], ARGV[3]}, ARGV[4], tonumber(ARGV[5])
local again, kind, order, life = ARGV[6] == '1', ARGV[7], ARGV[8], ARGV[9]
for i = 1, orders do
  local stream, data = KEYS[2 * i + 1], ARGV[3 * i + 8]
  local told = false
  if again then
    for _, event in ipairs(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 128)) do
      told = told or (event[2][2] == kind and event[2][4] == data)
    end
  end
  if not told then publish(KEYS[2], stream, ARGV[3 * i + 7], kind, data, limits) end
end
for i = 1, orders do
  redis.call('XADD', KEYS[2 * i + 2], '*', 'kind', order, 'body', ARGV[3 * i + 9])
  redis.call('PEXPIRE', KEYS[2 * i + 2], life)
end
for i = 2 * orders + 3, #KEYS do
  done(KEYS[i], group, ARGV[orders + i + 7])
end
for i = 2 * orders + 3, #KEYS do
  drop(KEYS[1], KEYS[i])
end
return orders
"""
)


async def hand_over(
    redis: AsyncRedis, orders: Sequence[Order], done: Sequence[Entry], *, again: bool = False
) -> None:
    """Tell each job's followers, write the nodes' streams, and acknowledge queue entries: all or nothing.

    Args:
        again: an earlier call may have succeeded unheard. Nobody is told twice then; an order may
            be written twice, which its agent sees.
    """
    if not orders and not done:
        return
    await _HAND_OVER(
        redis,
        [
            keys.QUEUES,
            keys.ALL_EVENTS,
            *(k for o in orders for k in (keys.job_events(o.job_id), keys.node(o.node_id))),
            *(entry.stream for entry in done),
        ],
        [
            *PUBLISH_LIMITS,
            keys.GROUP_ORCHESTRATOR,
            len(orders),
            int(again),
            JobEventKind.DISPATCHED.value,
            OrderKind.RUN.value,
            keys.NODE_MS,
            *(value for o in orders for value in (str(o.job_id), o.event, o.body)),
            *(entry.id for entry in done),
        ],
    )
