"""GPUs by NVIDIA's management library; a host without it has none.

Calls block for up to some milliseconds: run them in a thread.
"""

import logging
from typing import Any

from vyvo_dagster.protocol.node import Gpu, GpuMetrics

__all__ = ["Nvml"]

_log = logging.getLogger(__name__)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Nvml:
    """An initialised NVML, or one that stands for a host without GPUs."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - no library, no driver, no permission: no GPU
            _log.info("no GPUs: %s", error)
        else:
            self._nvml = pynvml

    def driver(self) -> str | None:
        """Version of the driver; None without one."""
        return None if self._nvml is None else _text(self._nvml.nvmlSystemGetDriverVersion())[:255]

    def gpus(self) -> list[Gpu]:
        """Every GPU, in NVML's order."""
        found: list[Gpu] = []
        for index, handle in self._handles():
            found.append(
                Gpu(
                    index=index,
                    uuid=_text(self._nvml.nvmlDeviceGetUUID(handle)),
                    name=_text(self._nvml.nvmlDeviceGetName(handle)),
                    memory_bytes=int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total),
                )
            )
        return found

    def metrics(self) -> list[GpuMetrics]:
        """One reading of every GPU; what a GPU cannot tell is left at zero or None."""
        found: list[GpuMetrics] = []
        for index, handle in self._handles():
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(
                GpuMetrics(
                    index=index,
                    memory_used_bytes=int(memory.used),
                    memory_total_bytes=int(memory.total),
                    utilization_ratio=self._utilization(handle),
                    temperature_celsius=self._temperature(handle),
                )
            )
        return found

    def close(self) -> None:
        """Release the library."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _handles(self) -> list[tuple[int, Any]]:
        if self._nvml is None:
            return []
        try:
            count = int(self._nvml.nvmlDeviceGetCount())
            return [(i, self._nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
        except self._nvml.NVMLError as error:
            _log.warning("NVML: %s", error)
            return []

    def _utilization(self, handle: Any) -> float:
        # MIG instances and some vGPUs have no utilisation counter.
        try:
            return min(max(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, 0.0), 1.0)
        except self._nvml.NVMLError:
            return 0.0

    def _temperature(self, handle: Any) -> float | None:
        try:
            return float(
                self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU)
            )
        except self._nvml.NVMLError:
            return None
