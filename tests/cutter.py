"""Between a client and a server: each time so many bytes went in one direction their connection is cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Cutter:
    """Counts what went in that direction, in `so_far`; of each connection that ended, in `passed`."""

    def __init__(self, port: int, after: int, direction: str) -> None:
        self._port, self._after, self._direction = port, after, direction
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.passed: list[int] = []
        self.so_far, self.cuts = 0, 0
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._port)) as far:
            down = threading.Thread(target=self._pass, args=(far, near, "down"))
            down.start()
            self._pass(near, far, "up")
            down.join()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                sink.sendall(data)
                if way == self._direction and self._is_enough(len(data)):
                    break
        if way == self._direction:
            self.passed.append(passed)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _is_enough(self, more: int) -> bool:
        with self._lock:
            self.so_far += more
            is_enough = self.so_far > (self.cuts + 1) * self._after
            self.cuts += is_enough
        return is_enough

    def close(self) -> None:
        self._listener.close()
