"""An order's text is what its model reads, whatever stands in it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.protocol.job import RunOrder
from vyvo_dagster.protocol.order import Order

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.uuids(), st.uuids(), st.uuids(), st.integers(1, 99), text, text,
    st.dictionaries(text, values), st.floats(0.001, 1e9), st.none() | text,
)  # fmt: skip
def test_the_body_is_a_run_order(
    job, node, assignment, attempt, model, version, input, seconds, trace
):  # type: ignore[no-untyped-def]
    order = Order(
        job,
        attempt,
        node,
        assignment,
        model,
        version,
        json.dumps(input, ensure_ascii=False),
        seconds,
        trace,
    )
    read = RunOrder.model_validate_json(order.body)
    assert read == RunOrder(
        job_id=job, attempt=attempt, assignment_id=assignment, model_id=model, version=version,
        input=input, timeout_seconds=seconds, traceparent=trace,
    )  # fmt: skip
    assert json.loads(order.event) == {
        "status": "dispatched", "attempt": attempt, "node_id": str(node),
    }  # fmt: skip
