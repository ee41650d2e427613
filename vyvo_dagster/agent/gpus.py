"""Which GPU a runner gets: declared needs, booked against each GPU's memory."""

from collections.abc import Sequence
from uuid import UUID

from vyvo_dagster.errors import RunnerFailed
from vyvo_dagster.protocol.node import Gpu, GpuMetrics

__all__ = ["GpuBooking"]


class GpuBooking:
    """Bookings of GPU memory by assignment. Bytes."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = list(gpus)
        self._lost = {gpu.index for gpu in gpus if gpu.lost is not None}
        self._booked: dict[UUID, tuple[str, int]] = {}

    def note(self, readings: Sequence[GpuMetrics]) -> None:
        """Remember which GPUs are lost: nothing is booked on those until they answer again."""
        self._lost = {reading.index for reading in readings if reading.lost is not None}

    def book(self, assignment_id: UUID, need_bytes: int) -> str | None:
        """UUID of the GPU for an assignment, None when it needs none; a repeat gets the same.

        The fullest GPU with room is taken, so that room stays whole elsewhere.

        Raises:
            RunnerFailed: no GPU has that much left.
        """
        if need_bytes <= 0:
            return None
        usable = [gpu for gpu in self._gpus if gpu.index not in self._lost]
        if assignment_id in self._booked:
            booked = self._booked[assignment_id][0]
            if any(gpu.uuid == booked for gpu in usable):
                return booked
            del self._booked[assignment_id]
        free = {gpu.uuid: gpu.memory_bytes - self._used(gpu.uuid) for gpu in usable}
        fitting = [uuid for uuid, room in free.items() if room >= need_bytes]
        if not fitting:
            most = max(free.values(), default=0)
            raise RunnerFailed(
                f"the version needs {need_bytes} bytes of GPU memory; "
                + (
                    f"the emptiest GPU of this node has {most} left"
                    if free
                    else f"this node has no GPU{' that answers' if self._gpus else ''}"
                )
            )
        chosen = min(fitting, key=lambda uuid: free[uuid])
        self._booked[assignment_id] = (chosen, need_bytes)
        return chosen

    def release(self, assignment_id: UUID) -> None:
        """Give back what an assignment booked."""
        self._booked.pop(assignment_id, None)

    def _used(self, uuid: str) -> int:
        return sum(size for gpu, size in self._booked.values() if gpu == uuid)
