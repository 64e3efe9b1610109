"""Python's collector of cycles, where it only costs time."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """For what makes a million objects that all stay: looking for cycles in them takes a third of the time.

    They must be gone when this ends, or the collector looks at all of them then: make them in a function of its own.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
