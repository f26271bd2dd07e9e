"""Files that several threads read or write in pieces, each at its own position."""

import threading
from pathlib import Path
from typing import Any


class ThreadFiles:
    """Unbuffered files, of which each thread has its own, one at a time: shards can be many, and open files few."""

    def __init__(self, mode: str):
        self._mode = mode
        self._local = threading.local()
        self._open: set[Any] = set()

    def get(self, path: Path) -> Any:
        """This thread's handle of a file; its handle of another file is closed."""
        if getattr(self._local, "path", None) != path:
            if (last := getattr(self._local, "file", None)) is not None:
                self._open.discard(last)
                last.close()
            self._local.file, self._local.path = open(path, self._mode, buffering=0), path  # noqa: SIM115
            self._open.add(self._local.file)
        return self._local.file

    def close(self) -> None:
        """Close those of all threads. What is asked for again is opened again."""
        while self._open:
            self._open.pop().close()
        self._local = threading.local()
