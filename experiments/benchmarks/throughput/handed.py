# SPDX-License-Identifier: Apache-2.0
"""A function that runs from start to end, made to stop at each of its reports until it is asked on.

Peers train in one call and tell about it through a callback; only so can they take turns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Report = Callable[[Any], None]


class _Stop(BaseException):
    """Unwinds the function; nothing in it may catch this."""


class Handed:
    """Runs ``work(report)`` in a thread, of which one at a time moves: this one or its caller's.

    Args:
      work: calls ``report(value)`` now and then.
    """

    def __init__(self, work: Callable[[Report], None]):
        self._work, self._stopping = work, False
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """Lets the work go on to its next report, which is returned.

        Raises:
          RuntimeError: if it ends instead.
          Exception: whatever it raises.
        """
        self._go.put(None)
        value, error = self._out.get()
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """Ends the work where it stands."""
        self._stopping = True
        self._go.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._wait()
            self._work(self._report)
            self._out.put((None, RuntimeError("it ended before its last report")))
        except _Stop:
            return
        except BaseException as error:
            self._out.put((None, error))

    def _wait(self) -> None:
        self._go.get()
        if self._stopping:
            raise _Stop

    def _report(self, value: Any) -> None:
        self._out.put((value, None))
        self._wait()
