"""The client's side: talk to a head worker, over its encrypted session."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import FrameError, ServiceError, SessionError
from .program.parts import Limits
from .wire.layouts import Layout, views
from .wire.messages import decode, encode
from .wire.session import Hello, connect


@dataclass(frozen=True)
class Answer:
    """The network's answer to one image.

    Attributes:
        tensors: The model's outputs, first dimension 1.
        times: Seconds by stage, as the head worker says: queue, decrypt, preprocess, head,
            hand-off, tail, return, and inside (all of them).
        seconds: From sending to receiving, at the client.
    """

    tensors: list[torch.Tensor]
    times: dict[str, float]
    seconds: float


class Client:
    """A session with a head worker; requests may overlap.

    Args:
        address: Host and port.
        answers: Layouts of the model's outputs, from the bundle.
        limits: What the head worker accepts.
        verify: Raises unless the head worker is what it should be.
        timeout: Seconds to wait for an answer.

    Raises:
        SessionError: No head worker there, or it was refused.
    """

    def __init__(
        self,
        address: tuple[str, int],
        answers: Sequence[Layout],
        limits: Limits,
        verify: Callable[[Hello], None],
        timeout: float = 120.0,
    ) -> None:
        self._answers, self._timeout, self._next = answers, timeout, 0
        try:
            self._sock = socket.create_connection(address, 10.0)
        except OSError as error:
            raise SessionError(
                f"no head worker at {address[0]}:{address[1]} ({error}); start partopt serve"
            ) from error
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._channel, self.hello = connect(self._sock, verify, limits.image_bytes + (1 << 16))
        except BaseException:
            self._sock.close()
            raise
        self._sent: dict[int, float] = {}
        self._came: dict[int, queue.Queue[Answer | Exception]] = {}
        self._lock = threading.Lock()
        self._broken: Exception | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def classify(self, image: bytes) -> Answer:
        """Send an encoded image (JPEG, PNG, WebP, BMP) and wait for the answer.

        Raises:
            ServiceError: Refused, with its code; or ``head-lost`` when the connection broke.
        """
        return self.collect(self.submit(image))

    def submit(self, image: bytes) -> int:
        """Send an image; `collect` gives its answer."""
        return self._ask("classify", image)

    def unlock(self, key: bytes) -> None:
        """Give the head worker the key of its weights.

        Raises:
            ServiceError: ``wrong-key``.
        """
        self.collect(self._ask("unlock", key))

    def collect(self, number: int) -> Answer:
        """Wait for the answer to a request."""
        try:
            came = self._came[number].get(timeout=self._timeout)
        except queue.Empty:
            raise ServiceError("timeout", f"no answer within {self._timeout:.0f} s") from None
        finally:
            self._came.pop(number, None)
        if isinstance(came, Exception):
            raise came
        return came

    def _ask(self, what: str, body: bytes) -> int:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._next += 1
            number = self._next
            self._came[number] = queue.Queue(1)
            self._sent[number] = time.perf_counter()
            try:
                self._channel.send(encode({"do": what, "id": number}, body))
            except OSError as error:
                del self._came[number]
                raise ServiceError("head-lost", "the head worker is gone; ask again") from error
        return number

    def _read(self) -> None:
        problem: Exception = ServiceError("head-lost", "the head worker is gone; ask again")
        try:
            while True:
                head, body = decode(self._channel.receive())
                waiting = self._came.get(head.get("id", -1))
                if waiting is not None:
                    with contextlib.suppress(queue.Full):
                        waiting.put_nowait(self._answer(head, body))
        except FrameError as error:
            problem = error
        except OSError:
            pass
        with self._lock:
            self._broken = problem
        for waiting in list(self._came.values()):
            with contextlib.suppress(queue.Full):
                waiting.put_nowait(problem)

    def _answer(self, head: dict[str, Any], body: bytes) -> Answer | Exception:
        seconds = time.perf_counter() - self._sent.pop(head["id"], time.perf_counter())
        if "error" in head:
            return ServiceError(str(head["error"]), str(head.get("text", "")))
        if "times" not in head:
            return Answer([], {}, seconds)
        if len(body) != sum(t.nbytes(1) for t in self._answers):
            return ServiceError("malformed", "the answer has not the model's size")
        tensors, at = [], 0
        for layout in self._answers:
            piece = bytearray(body[at : at + layout.nbytes(1)])
            tensors += views(piece, 0, [layout], 1)
            at += layout.nbytes(1)
        return Answer(tensors, {str(k): float(v) for k, v in head["times"].items()}, seconds)


def top(answer: Answer, labels: list[str] | None, count: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes and their probabilities (softmax of the first output)."""
    logits = answer.tensors[0].flatten().float()
    chances = torch.softmax(logits, 0)
    best = torch.topk(chances, min(count, len(chances)))
    names = [labels[i] if labels else f"class {i}" for i in best.indices.tolist()]
    return list(zip(names, best.values.tolist(), strict=True))
