"""Length-prefixed frames over a socket pair, and the clock both of its ends share.

A frame is four bytes of length, big-endian, and a JSON object. The other end's death is an
end-of-file here, whatever killed it: that is what ties a runner's life to its supervisor's.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
import time

from pydantic import BaseModel

MAX_FRAME_BYTES = 16 << 20
MAX_OUTBOUND_BYTES = 1 << 20
"""Kept for an end that does not read; more than any honest one lets pile up."""
_LENGTH = struct.Struct(">I")


def sleepless_clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps; only differences mean something.

    `time.monotonic` stands still in sleep on both systems: Linux calls the other one BOOTTIME,
    on macOS it is CLOCK_MONOTONIC itself.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Channel:
    """One end of the pair. Any thread may send; one thread receives.

    A supervisor uses `offer`, as no runner may hold it up; a runner uses `send`, and waits.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._end = end
        self._send_lock = threading.Lock()
        self._buffer = bytearray()
        self._outbound = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: BaseModel) -> bool:
        """Whether the frame was handed to the system; false when the other end is gone."""
        body = message.model_dump_json().encode()
        try:
            with self._send_lock:
                self._end.sendall(_LENGTH.pack(len(body)) + body)
        except OSError:
            return False
        return True

    def offer(self, message: BaseModel) -> bool:
        """As `send` without waiting; false when the other end is gone or has read nothing for long."""
        body = message.model_dump_json().encode()
        with self._send_lock:
            self._outbound += _LENGTH.pack(len(body)) + body
            try:
                sent = self._end.send(self._outbound, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return False
            del self._outbound[:sent]
            return len(self._outbound) <= MAX_OUTBOUND_BYTES

    def receive(self, timeout_seconds: float | None = None) -> bytes | None:
        """The next frame's JSON, or nothing when none came in time.

        Raises:
            EOFError: the other end is gone and everything it sent was received.
            ValueError: the stream is not made of our frames.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (frame := self._take_frame()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._end], [], [], left)[0]:
                return None
            self._fill()
        return frame

    def _take_frame(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return frame

    def _fill(self) -> None:
        try:
            chunk = self._end.recv(1 << 16)
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise EOFError("the other end of the channel is gone")
        self._buffer += chunk

    def close(self) -> None:
        self._end.close()
