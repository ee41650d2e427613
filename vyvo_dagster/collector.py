"""Python's cycle collector, set for a process that serves.

What a server imports and opens at its start lives as long as it does, and is most of its heap: by
default each full collection goes through all of it, and a load of short-lived objects sets many off.
"""

import gc
from typing import Final

__all__ = ["settle"]

# Allocations less deallocations per youngest collection, then how many of each per older one.
# Nearly all that we make ends by its reference count; what is in cycles goes with the youngest.
_THRESHOLDS: Final = (10_000, 20, 50)


def settle() -> None:
    """Leave what exists now out of all collections to come, and collect less often.

    For the end of a process's start, once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
