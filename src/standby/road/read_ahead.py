"""Receiving ahead: the next frames come in, and are decrypted, while the last one is worked on."""

from __future__ import annotations

import queue
import threading

from standby.wire.link import Link
from standby.wire.messages import Finish, Message

FRAMES = 3
"""Frames in memory: one that is worked on, one that waits, one that comes in."""

Frame = tuple[Message, memoryview]


class ReadAhead:
    """A link's frames, received by a thread of its own; for one thread to take.

    A payload stays what it is until the next `receive`. Nothing is read beyond a `Finish` before
    the frame behind it is asked for: the link may be another task's then. After `close` the thread
    ends with the link at the latest.
    """

    def __init__(self, link: Link) -> None:
        link.keep_payloads(FRAMES)
        self._link = link
        self._frames: queue.SimpleQueue[Frame | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(FRAMES)
        self._is_reading = False
        self._has_one = False
        self._is_closed = False

    def close(self) -> None:
        """Nobody takes another frame; the link is to be shut down unless it is at a `Finish`."""
        self._is_closed = True
        self._room.release()

    def receive(self) -> Frame:
        """The next frame; raises what the link raises, when everything before is taken."""
        if self._has_one:
            self._has_one = False
            self._room.release()
        if not self._is_reading:
            self._is_reading = True
            threading.Thread(target=self._read, name="reads ahead", daemon=True).start()
        frame = self._frames.get()
        self._has_one = True
        if isinstance(frame, BaseException):
            self._is_reading = False
            raise frame
        if isinstance(frame[0], Finish):
            self._is_reading = False
        return frame

    def _read(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._is_closed:
                    return
                frame = self._link.receive()
                self._frames.put(frame)
                if isinstance(frame[0], Finish):
                    return
        except BaseException as exc:  # the taker's to see
            self._frames.put(exc)
