"""Frames, in and out; and what the other side said while the main thread was busy.

To be imported first: what was stdout is for frames alone, and whatever is printed from here on reaches stderr.
"""
import collections
import json
import os
import struct
import sys
import threading
import traceback

OUT = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

PROTOCOL = 1
# More than any request or answer has.
MOST_HEADER, MOST_BLOB = 64 << 20, 1 << 30


class Pipe:
    """Frames, in and out."""

    def __init__(self):
        self.lock = threading.Lock()

    def send(self, op, blob=b"", **fields):
        # A NaN would be no JSON: better an error here, that is told, than a frame that can't be read.
        header = json.dumps({"op": op, **fields}, separators=(",", ":"), allow_nan=False).encode()
        try:
            with self.lock:
                OUT.write(struct.pack("<II", len(header), len(blob)) + header)
                OUT.write(blob)
                OUT.flush()
        except BrokenPipeError:
            # Nobody listens any more. Not sys.exit: Python's own end may crash, and that would be the last words.
            os._exit(1)

    @staticmethod
    def receive():
        """The next header and blob; None at the end."""
        sizes = sys.stdin.buffer.read(8)
        if len(sizes) < 8:
            return None
        head, tail = struct.unpack("<II", sizes)
        if head > MOST_HEADER or tail > MOST_BLOB:
            raise ValueError(f"a frame of {head} + {tail} bytes")
        header, blob = sys.stdin.buffer.read(head), sys.stdin.buffer.read(tail)
        if len(header) < head or len(blob) < tail:
            return None
        return json.loads(header), blob


class Inbox:
    """What the other side said and the main thread has not looked at yet."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.changed = threading.Condition()
        self.messages, self.masks, self.cancelled = collections.deque(), {}, set()
        threading.Thread(target=self.read, name="reader", daemon=True).start()

    def read(self):
        try:
            while (frame := Pipe.receive()) is not None:
                header, blob = frame
                if header["op"] == "ping":
                    self.pipe.send("pong")
                    continue
                with self.changed:
                    if header["op"] == "mask":
                        self.masks[header["id"]] = (header["kind"], blob)
                    elif header["op"] == "cancel":
                        self.cancelled.add(header["id"])
                    else:
                        self.messages.append((header, blob))
                    self.changed.notify()
        except Exception:
            traceback.print_exc()
        # Nobody is left to work for. Not sys.exit: the main thread may be deep in a forward pass.
        os._exit(0)

    def next(self, wait):
        """The next message; None if there is none or, with `wait`, once a mask or a cancellation came."""
        with self.changed:
            if wait:
                self.changed.wait_for(lambda: self.messages or self.masks or self.cancelled)
            return self.messages.popleft() if self.messages else None
