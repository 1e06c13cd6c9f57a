"""All connections of clients, in one thread: nobody's silence or slowness keeps another waiting.

A connection is *at the door* until its handshake is done (and, where keys are pinned, until it
proved to have one), then a *member*. Everything has a deadline, and every buffer grows with what
arrives.
No thread is started for a client, so none can fail to start.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...errors import FrameError, PartoptError
from ..wire.accepted import Bounds
from ..wire.messages import decode
from ..wire.proofs import proven
from ..wire.sealed import announced
from ..wire.session import HELLO_BYTES, Accepting
from . import clock
from .clients import Session, Sizes
from .outgoing import Outgoing, Owed
from .places import gives_way, oldest_of_greediest, owner_of
from .quote import Quotes
from .waking import Waking

_CHUNK = 1 << 16
_PAUSE_S = 0.2


class Service(Protocol):
    """What the messages are for."""

    @property
    def is_open(self) -> bool:
        """Whether the weights are there, so that pictures are taken."""

    def handle(self, session: Session, message: bytes) -> None:
        """A message of a member. FrameError ends its session."""

    def left(self, session: Session) -> None:
        """A member is gone."""

    def refused(self, code: str) -> None:
        """Somebody was refused; for the log."""

    def trouble(self, error: Exception) -> None:
        """Something of ours failed; for the log."""

    def rest(self) -> bool:
        """Called a few times a second; whether it need not be before something happens."""


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """How clients are received.

    Attributes:
        backend: What to call ourselves.
        quote: Makes a quote for 64 bytes of report data; None outside SGX.
        clients: Public keys in hexadecimal; if there are any, a client must prove to have one.
        sizes: Of messages.
        owed: Bytes of answers that may wait to be taken.
        bounds: All other limits.
    """

    backend: str
    quote: Callable[[bytes], bytes] | None
    clients: frozenset[str]
    sizes: Sizes
    owed: int
    bounds: Bounds


class Listening:
    """The clients' port and everybody who connected to it.

    Args:
        door: A listening socket.
        welcome: How clients are received.
        service: What they want.
    """

    def __init__(self, door: socket.socket, welcome: Welcome, service: Service) -> None:
        self._door, self._welcome, self._service = door, welcome, service
        self._sessions: dict[int, Session] = {}
        self._owed = Owed(welcome.owed)
        self._waking = Waking()
        self._quotes = Quotes(welcome.quote, service.trouble, self._waking.wake)
        self._behind: deque[Session] = deque()
        self._selector = selectors.DefaultSelector()
        door.setblocking(False)
        self._selector.register(door, selectors.EVENT_READ, self._newcomers)
        self._selector.register(self._waking.sock, selectors.EVENT_READ, self._waking.woken)
        self._swept, self._resting = 0.0, False

    @property
    def members(self) -> list[Session]:
        """Those that have a place."""
        return [s for s in self._sessions.values() if s.member]

    def run(self) -> None:
        """Serve for ever."""
        self._waking.mine()
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait until something happens, or a little while, and deal with it."""
        happened = self._selector.select(None if self._resting else _PAUSE_S)
        for key, events in happened:
            if not isinstance(key.data, Session):
                key.data()
            elif not key.data.gone:
                self._serve(key.data, events)
        for session, proof in self._quotes.made():
            self._agree(session, proof)
        while self._behind:
            self._follow(self._behind.popleft())
        now = clock.now()
        if now - self._swept >= _PAUSE_S:
            self._swept = now
            for session in list(self._sessions.values()):
                self._sweep(session, now)
            self._resting = self._service.rest() and not (self._sessions or happened)
        elif happened:
            self._resting = False

    def make_quotes(self) -> None:
        """Make quotes for ever. In a thread of its own."""
        self._quotes.run()

    # ---- coming

    def _newcomers(self) -> None:
        for _ in range(16):
            try:
                sock, address = self._door.accept()
            except BlockingIOError:
                return
            except OSError:  # too many descriptors: somebody at the door has to go
                self._service.refused("full")
                self._make_room_at_the_door()
                time.sleep(0.01)
                return
            if len(self._sessions) - len(self.members) >= self._welcome.bounds.pending:
                self._make_room_at_the_door()
            self._welcome_one(sock, owner_of(address[0]))

    def _make_room_at_the_door(self) -> None:
        waiting = [s for s in self._sessions.values() if not s.member]
        if waiting:
            self._end(oldest_of_greediest(waiting), "full")

    def _welcome_one(self, sock: socket.socket, owner: str) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def behind() -> None:
            self._behind.append(session)
            self._waking.wake()

        out = Outgoing(sock, self._owed, behind)
        session = Session(sock, owner, out, since=clock.now(), begun=0.0)
        self._sessions[sock.fileno()] = session
        self._selector.register(sock, selectors.EVENT_READ, session)

    def _hello(self, session: Session) -> None:
        """The first bytes of a handshake are there."""
        accepting = Accepting(bytes(session.came[:HELLO_BYTES]), self._welcome.backend)
        del session.came[:HELLO_BYTES]
        if not self._welcome.clients and not self._given_a_place(session):
            return
        session.accepting, session.begun = accepting, clock.now()
        if self._welcome.quote is None:
            self._agree(session, b"")
        else:
            self._quotes.ask(session)

    def _agree(self, session: Session, proof: bytes | None) -> None:
        """Answer a handshake with its quote; None: it could not be made."""
        self._quotes.forget(session)
        if session.gone or session.accepting is None:
            return
        if proof is None:
            self._end(session, "quote-failed")
            return
        answer, agreed = session.accepting.answer(proof)
        session.since, session.begun = clock.now(), 0.0
        session.agree(answer, agreed, self._welcome.sizes)

    def _given_a_place(self, session: Session) -> bool:
        """Make `session` a member, perhaps instead of another, or tell it that we are full."""
        members = self.members
        if len(members) >= self._welcome.bounds.clients:
            now = clock.now()
            other = gives_way(members, session.owner, now, self._welcome.bounds.spare)
            if other is None:
                self._end(session, "full")
                return False
            self._end(other, "full" if other.under_way else "idle")
        session.member = True
        return True

    def _prove(self, session: Session, message: bytes) -> None:
        """The first message where keys are pinned."""
        head, _ = decode(message)
        key = proven(head, session.binding)
        if head.get("do") != "hello" or key not in self._welcome.clients:
            self._end(session, "client-unknown")
            return
        session.owner = key
        if self._given_a_place(session):
            self._service.handle(session, message)

    # ---- staying

    def _serve(self, session: Session, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            session.out.go_on()
            self._follow(session)
        if not events & selectors.EVENT_READ or session.gone:
            return
        try:
            more = session.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            if not more and session.came:
                raise FrameError("truncated", "the connection ended within a frame")
            if not more:
                raise ConnectionError("closed")
            session.came += more
            self._take(session)
            self._hold_incoming()
        except BlockingIOError:
            pass
        except FrameError as error:
            self._service.refused(error.code)
            self._end(session)
        except (OSError, PartoptError):
            self._end(session)
        except Exception as error:  # a fault of ours, met by one client, ends no other's session
            self._service.trouble(error)
            self._end(session)

    def _take(self, session: Session) -> None:
        """Handle all of what came that is whole."""
        while not session.gone:
            if session.opener is None:
                if session.accepting is not None or len(session.came) < HELLO_BYTES:
                    break
                self._hello(session)
                continue
            usual = session.member and self._service.is_open
            sizes = self._welcome.sizes
            session.opener.most = sizes.coming if usual else sizes.unproven
            message = session.opener.take(session.came)
            if message is None:
                break
            session.since, session.begun = clock.now(), 0.0
            if session.member:
                self._service.handle(session, message)
            else:
                self._prove(session, message)
        if not session.came:
            session.begun = 0.0 if session.accepting is None else session.begun
        elif not session.begun:
            session.begun = clock.now()

    def _hold_incoming(self) -> None:
        """Give up the slowest, where too many bytes lie here of frames that are not whole."""
        sessions = self._sessions.values()
        while sum(len(s.came) for s in sessions) > self._welcome.bounds.incoming:
            slowest = min(sessions, key=lambda s: (len(s.came) <= _CHUNK, s.begun, -len(s.came)))
            self._end(slowest, "late")

    def _follow(self, session: Session) -> None:
        """Listen for room where something is left to be sent."""
        if session.gone:
            return
        if session.out.over:
            self._service.refused("late")
            self._end(session)
            return
        write = selectors.EVENT_WRITE if session.out.waiting else 0
        self._selector.modify(session.sock, selectors.EVENT_READ | write, session)

    def _sweep(self, session: Session, now: float) -> None:
        """End what is over its time."""
        bounds = self._welcome.bounds
        if session.out.stalled(now) > bounds.stalled:
            self._end(session, "late")
            return
        since, most, code = session.since, bounds.idle, "idle"
        if session.accepting is not None:
            since, most, code = session.begun, bounds.quote, "late"
        elif not session.member:
            most, code = bounds.handshake, "late"
        elif session.begun:
            in_frame = bounds.frame + announced(session.came) / bounds.rate
            since, most, code = session.begun, in_frame, "late"
        elif session.under_way or session.out.waiting:
            return
        elif session.opener is None:
            most, code = bounds.handshake, "late"
        if now - since > most:
            self._end(session, code)

    # ---- going

    def _end(self, session: Session, code: str = "") -> None:
        """End a session, telling it why where it did nothing wrong or can do something about it."""
        if session.gone:
            return
        if code:
            self._service.refused(code)
            session.turn_away(code)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(session.sock)
        self._sessions.pop(session.sock.fileno(), None)
        session.end(code)
        self._quotes.forget(session)
        if session.member:
            self._service.left(session)
