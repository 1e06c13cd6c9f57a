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
from ..printable import printable
from .program.parts import Limits
from .program.tensors import from_wire
from .wire.accepted import REFUSALS, Bounds
from .wire.layouts import Layout, views
from .wire.messages import MAX_HEAD, decode, encode
from .wire.proofs import proof
from .wire.session import Hello, connect

# Head and body of a message, and when it came.
Came = tuple[dict[str, Any], bytes, float]


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
        secret: The client's own key (32 bytes), where the head worker knows its clients.

    Raises:
        SessionError: No head worker there, or it was refused.
        ServiceError: It takes no client now (``full``, ``starting``, ``quote-failed``), or not this
            one (``client-unknown``).
    """

    def __init__(
        self,
        address: tuple[str, int],
        answers: Sequence[Layout],
        limits: Limits,
        verify: Callable[[Hello], None],
        timeout: float = 120.0,
        secret: bytes | None = None,
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
            self._channel, self.hello = connect(
                self._sock,
                verify,
                limits.image_bytes + MAX_HEAD,
                sum(layout.nbytes(1) for layout in answers) + MAX_HEAD,
            )
        except BaseException:
            self._sock.close()
            raise
        self._sent: dict[int, float] = {}
        self._came: dict[int, queue.Queue[Came | Exception]] = {}
        self._lock = threading.Lock()
        self._broken: Exception | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._open = self._say_hello(secret)
        except BaseException:
            self.close()
            raise

    def _say_hello(self, secret: bytes | None) -> bool:
        """Say who we are, if anybody; returns whether the weights are open."""
        who = proof(secret, self._channel.binding) if secret is not None else {}
        return self._state(self._ask("hello", more=who))

    def _state(self, number: int) -> bool:
        return bool(self._wait(number).get("open"))

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
        """Send an image; `collect` gives its answer.

        Raises:
            ServiceError: ``locked`` or ``starting``: the head worker takes no large image yet.
        """
        if not self._open and len(image) > Bounds().unproven // 2:
            said = self._wait(self._ask("describe"))
            self._open = bool(said.get("open"))
            if not self._open and said.get("starting"):
                raise ServiceError("starting", REFUSALS["starting"])
            if not self._open:
                raise ServiceError("locked", "the weights are sealed; unlock them with their key")
        return self._ask("classify", image)

    def unlock(self, key: bytes) -> None:
        """Give the head worker the key of its weights.

        Raises:
            ServiceError: ``wrong-key``, also where the weights are open already.
        """
        self._wait(self._ask("unlock", key))
        self._open = True

    def collect(self, number: int) -> Answer:
        """Wait for the answer to a request."""
        sent = self._sent.get(number, time.perf_counter())
        head, body, came = self._came_for(number)
        return self._answer(head, body, came - sent)

    def _wait(self, number: int) -> dict[str, Any]:
        return self._came_for(number)[0]

    def _came_for(self, number: int) -> Came:
        try:
            came = self._came[number].get(timeout=self._timeout)
        except queue.Empty:
            raise ServiceError("timeout", f"no answer within {self._timeout:.0f} s") from None
        finally:
            self._came.pop(number, None)
            self._sent.pop(number, None)
        if isinstance(came, Exception):
            raise came
        if "error" in came[0]:
            raise _told(came[0])
        return came

    def _ask(self, what: str, body: bytes = b"", more: dict[str, str] | None = None) -> int:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._next += 1
            number = self._next
            self._came[number] = queue.Queue(1)
            self._sent[number] = time.perf_counter()
            try:
                self._channel.send(encode({"do": what, "id": number, **(more or {})}, body))
            except (OSError, FrameError) as error:
                del self._came[number], self._sent[number]
                if isinstance(error, FrameError):
                    raise ServiceError("too-large", str(error)) from None
                raise self._why() from error
        return number

    def _why(self) -> Exception:
        """Why the connection is over, if the head worker said so before it ended."""
        self._ended.wait(1.0)
        return self._broken or _lost()

    def _read(self) -> None:
        problem: Exception = _lost()
        try:
            while True:
                head, body = decode(self._channel.receive())
                number = head.get("id")
                if number == 0 and "error" in head:  # the last that it says
                    problem = _told(head)
                    continue
                waiting = self._came.get(number) if type(number) is int else None
                if waiting is not None:
                    with contextlib.suppress(queue.Full):
                        waiting.put_nowait((head, body, time.perf_counter()))
        except FrameError as error:
            problem = error
        except OSError:
            pass
        self._broken = problem
        self._ended.set()
        with self._lock:
            left = list(self._came.values())
        for waiting in left:
            with contextlib.suppress(queue.Full):
                waiting.put_nowait(problem)

    def _answer(self, head: dict[str, Any], body: bytes, seconds: float) -> Answer:
        if "times" not in head:
            return Answer([], {}, seconds)
        if len(body) != sum(t.nbytes(1) for t in self._answers):
            raise ServiceError("malformed", "the answer has not the model's size")
        tensors, at = [], 0
        for layout in self._answers:
            piece = bytearray(body[at : at + layout.nbytes(1)])
            tensors += from_wire(views(piece, 0, [layout], 1), [layout])
            at += layout.nbytes(1)
        try:
            times = {printable(str(k)): float(v) for k, v in head["times"].items()}
        except (AttributeError, TypeError, ValueError):
            raise ServiceError("malformed", "the answer's times are no numbers") from None
        return Answer(tensors, times, seconds)


def _lost() -> ServiceError:
    return ServiceError("head-lost", "the head worker is gone; ask again")


def _told(head: dict[str, Any]) -> ServiceError:
    """An error as the head worker tells it; it may be anybody, so its words are made harmless."""
    code = printable(str(head["error"]))[:40]
    return ServiceError(code, REFUSALS.get(code) or printable(str(head.get("text", "")))[:500])


def top(answer: Answer, labels: list[str] | None, count: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes and their probabilities (softmax of the first output)."""
    logits = answer.tensors[0].flatten().float()
    chances = torch.softmax(logits, 0)
    best = torch.topk(chances, min(count, len(chances)))
    names = [labels[i] if labels else f"class {i}" for i in best.indices.tolist()]
    return list(zip(names, best.values.tolist(), strict=True))
