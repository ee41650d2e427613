"""The runner of the agent's tests: a Cog predictor that does as its input says."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cog import BaseRunner, CancelationException, Input, current_scope, streaming


class Predictor(BaseRunner):
    """Steps slowly, fails, dies, ignores its cancellation, answers a file inline, or lies."""

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
            default="well",
            choices=["well", "fail", "die", "exit", "stubborn", "inline", "env", "huge", "lie"],
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
            if how != "huge":
                print(f"step {step + 1}", flush=True)
        self.misbehave(how, text)
        yield self.answer(how, text, steps)

    def misbehave(self, how: str, text: str) -> None:
        if how == "fail":
            raise ValueError(f"bad thing: {text}")
        if how == "die":
            os.kill(os.getppid(), 9)
            time.sleep(30)
        if how == "exit":
            os._exit(3)

    def answer(self, how: str, text: str, steps: int) -> Any:
        if how == "huge":
            return "x" * (steps + 1) * (1 << 20)
        if how == "lie":
            return {
                "type": "image", "url": text, "size_bytes": steps, "mime_type": "image/png",
                "expires_at": None,
            }  # fmt: skip
        if how == "inline":
            return "data:image/png;base64," + base64.b64encode(text.encode("latin-1")).decode()
        if how == "env":
            names = ("GREETING", "VYVO_MODEL_ID", "PORT", "VYVO_AGENT_JOIN_TOKEN")
            return {name: os.environ.get(name) for name in names}
        return {"text": text, "weights": self.weights.decode(), "pid": os.getpid()}
