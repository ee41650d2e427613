"""The runner of the agent's tests: a Cog predictor that does as its input says."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cog import BaseRunner, CancelationException, Input, current_scope, streaming


class Predictor(BaseRunner):
    """Steps slowly, fails, dies, ignores its cancellation, or answers a file inline."""

    def setup(self) -> None:
        if os.environ.get("SETUP") == "fail":
            raise RuntimeError("weights missing on purpose")
        weights = os.environ.get("VYVO_WEIGHTS")
        self.weights = Path(weights).read_bytes() if weights else b""

    @streaming
    def run(
        self,
        text: str = Input(default="hello"),
        steps: int = Input(default=2, ge=0, le=1000),
        seconds: float = Input(default=0.02),
        how: str = Input(
            default="well", choices=["well", "fail", "die", "stubborn", "inline", "env"]
        ),
    ) -> Iterator[Any]:
        scope = current_scope()
        for step in range(steps):
            try:
                time.sleep(seconds)
            except CancelationException:
                if how != "stubborn":
                    raise
            scope.record_metric("progress", (step + 1) / steps)
            print(f"step {step + 1}", flush=True)
        if how == "fail":
            raise ValueError(f"bad thing: {text}")
        if how == "die":
            os.kill(os.getppid(), 9)
            time.sleep(30)
        if how == "inline":
            yield "data:image/png;base64," + base64.b64encode(text.encode()).decode()
        elif how == "env":
            yield {
                name: os.environ.get(name)
                for name in ("GREETING", "VYVO_MODEL_ID", "PORT", "VYVO_AGENT_JOIN_TOKEN")
            }
        else:
            yield {"text": text, "weights": self.weights.decode(), "pid": os.getpid()}
