"""Ctrl-C and SIGTERM, alike: as requests, so that what is under way can be saved, or as interruptions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def interrupting() -> Generator[None]:
    """Turn SIGTERM into a KeyboardInterrupt, which Ctrl-C is already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_signals() -> Generator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the current step."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop.is_set
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
