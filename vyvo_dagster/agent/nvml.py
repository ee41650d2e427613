"""GPUs by NVIDIA's management library; a host without it has none.

Calls block for up to some milliseconds: run them in a thread.
"""

import logging
from collections.abc import Callable
from typing import Any

from vyvo_dagster.protocol.node import Gpu, GpuMetrics

__all__ = ["Nvml"]

_log = logging.getLogger(__name__)


class _Lost(Exception):
    """The GPU no longer answers; why, in NVML's words."""


def _text(value: str | bytes) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else value)[:255]


class Nvml:
    """An initialised NVML, or one that stands for a host without GPUs.

    A GPU that was once seen stays in every reading: one that falls off the bus is told as lost, so
    that the indices of the others keep their meaning, and as itself again once it answers.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._seen: dict[int, Gpu] = {}
        self._lost: dict[int, str] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - no library, no driver, no permission: no GPU
            _log.info("no GPUs: %s", error)
        else:
            self._nvml = pynvml

    def driver(self) -> str | None:
        """Version of the driver; None without one, or where it does not say."""
        if self._nvml is None:
            return None
        try:
            return _text(self._nvml.nvmlSystemGetDriverVersion())
        except self._nvml.NVMLError as error:
            _log.warning("NVML tells no driver version: %s", error)
            return None

    def gpus(self) -> list[Gpu]:
        """Every GPU, in NVML's order; `lost` says of one why it cannot be used."""
        found: list[Gpu] = []
        for index in self._indices():
            try:
                gpu = self._seen[index] = self._describe(index)
                self._answers(index)
            except _Lost as lost:
                self._note_lost(index, str(lost))
                # Of one that was lost before it was ever asked, no more than its place is known.
                known = self._seen.get(index) or Gpu(index=index, uuid="", name="", memory_bytes=0)
                gpu = known.model_copy(update={"lost": str(lost)})
            found.append(gpu)
        return found

    def metrics(self) -> list[GpuMetrics]:
        """One reading of every GPU; what a GPU cannot tell is left at zero or None."""
        found: list[GpuMetrics] = []
        for index in self._indices():
            try:
                found.append(self._read(index))
                self._answers(index)
            except _Lost as lost:
                self._note_lost(index, str(lost))
                found.append(
                    GpuMetrics(
                        index=index, memory_used_bytes=0, memory_total_bytes=0,
                        utilization_ratio=0.0, lost=str(lost),
                    )
                )  # fmt: skip
        return found

    def close(self) -> None:
        """Release the library."""
        if self._nvml is not None:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                _log.warning("NVML: %s", error)
            self._nvml = None

    def _indices(self) -> list[int]:
        if self._nvml is None:
            return []
        try:
            count = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            _log.warning("NVML: %s", error)
            count = 0
        return sorted(set(range(count)) | self._seen.keys())

    def _describe(self, index: int) -> Gpu:
        nvml, handle = self._nvml, self._handle(index)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        return Gpu(
            index=index,
            uuid=_text(self._ask(nvml.nvmlDeviceGetUUID, handle) or f"index-{index}"),
            name=_text(self._ask(nvml.nvmlDeviceGetName, handle) or "unknown"),
            memory_bytes=0 if memory is None else int(memory.total),
        )

    def _read(self, index: int) -> GpuMetrics:
        nvml, handle = self._nvml, self._handle(index)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        # MIG instances and some vGPUs have no utilisation counter.
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        heat = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return GpuMetrics(
            index=index,
            memory_used_bytes=0 if memory is None else int(memory.used),
            memory_total_bytes=0 if memory is None else int(memory.total),
            utilization_ratio=0.0 if rates is None else min(max(rates.gpu / 100, 0.0), 1.0),
            temperature_celsius=None if heat is None else float(heat),
        )

    def _handle(self, index: int) -> Any:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError as error:
            # Without a handle nothing can be asked, whatever the reason.
            raise _Lost(_text(str(error))) from error

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """What NVML answers; None where this GPU or this driver cannot tell.

        Raises:
            _Lost: the GPU has fallen off the bus, or needs a reset.
        """
        try:
            return call(*args)
        except self._nvml.NVMLError as error:
            if error.value in {
                self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED,
                self._nvml.NVML_ERROR_UNINITIALIZED,
            }:  # fmt: skip
                raise _Lost(_text(str(error))) from error
            return None

    def _note_lost(self, index: int, why: str) -> None:
        if index not in self._lost:
            gpu = self._seen.get(index)
            _log.error("GPU %d (%s) is lost: %s", index, gpu.uuid if gpu else "never seen", why)
        self._lost[index] = why

    def _answers(self, index: int) -> None:
        if self._lost.pop(index, None) is not None:
            _log.warning("GPU %d answers again", index)
