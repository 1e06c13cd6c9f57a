"""Where trials are kept, how finished ones are found again, and what becomes of orphans."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..cache import cache_dir, locked
from ..errors import PartoptError, StorageError, UsageError, first_line
from ..hashing import hash_json
from .journal import DamageError, Journal, open_journal
from .leases import LEASE, Silence
from .urls import driven, hidden, named, scrubbed


def open_storage(url: str | None) -> tuple[BaseStorage, str]:
    """Open a storage; return it and how results name it.

    Args:
        url: None for a journal file under the user's cache folder, a path that ends in ``.log`` or
            ``.journal`` for a journal file of one's own, else an SQLAlchemy URL.

    Raises:
        UsageError: The storage cannot be opened.
        StorageError: The journal cannot be written.
    """
    try:
        if url is None or url.endswith((".log", ".journal")):
            path = cache_dir("studies") / "partopt.journal" if url is None else Path(url)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return open_journal(path, ours=url is None), path.name
        return _database(url), named(url)
    except PartoptError:
        raise
    except Exception as error:
        reason = scrubbed(first_line(error, 160), url or "")
        if isinstance(error, ImportError):
            reason = (
                "the package that speaks to it is not installed: pip install 'partopt[fleet]' for "
                "PostgreSQL, pymysql for MySQL"
            )
        # Not `from error`: a traceback would show what the driver says of the password.
        raise UsageError(
            f"`storage` got {hidden(url or '')!r}, which cannot be opened ({reason}); "
            "give a .journal file or a database URL"
        ) from None


def close(storage: BaseStorage) -> None:
    """Close the connections of a database; it can be used again."""
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None:
        storage.remove_session()
        engine.dispose()


_CONNECTING_S = 10  # until a server that does not answer counts as out of reach
_TIMED = ("psycopg", "psycopg2", "pymysql", "mysqldb")


def _database(url: str) -> BaseStorage:
    """A database by its URL; what is finished in it is read once a process."""
    url = driven(url)
    scheme = url.partition("://")[0]
    keywords: dict[str, Any] = {}
    if scheme.partition("+")[0] in ("postgresql", "mysql"):
        keywords["pool_pre_ping"] = True  # a server may have been started again
        if scheme.partition("+")[2] in _TIMED:
            keywords["connect_args"] = {"connect_timeout": _CONNECTING_S}
    for left in reversed(range(4)):
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=keywords)
            return optuna.storages.get_storage(storage)
        except Exception as error:
            # Several processes that are the first at a new database all make its tables.
            text = str(error).lower()
            if not left or not ("already exists" in text or "duplicate" in text):
                raise
            time.sleep(0.2 + random.random())
    raise AssertionError("unreachable")


def finished(storage: BaseStorage, keys: Iterable[str]) -> dict[str, FrozenTrial]:
    """The latest complete trial for each of `keys`, over all studies of the storage."""
    wanted = set(keys)
    found: dict[str, FrozenTrial] = {}
    for study in storage.get_all_studies():
        trials = storage.get_all_trials(
            study._study_id, deepcopy=False, states=(TrialState.COMPLETE,)
        )
        for trial in trials:
            key = trial.user_attrs.get("key")
            if key in wanted:
                found[key] = trial
    return found


@contextmanager
def spoken(storage: BaseStorage) -> Iterator[None]:
    """Within the block, what a storage cannot do is a `StorageError` of one sentence."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except DamageError as damage:
        raise StorageError(
            f"the journal {_name(storage)!r} was damaged in line {damage.line} while it was in "
            "use; run the same command again"
        ) from damage
    except (SQLAlchemyError, StorageInternalError) as error:
        raise StorageError(
            f"the storage {_name(storage)!r} failed ({_reason(storage, error)}); what was finished "
            "is kept: see to the database and run the same command again"
        ) from error


def _reason(storage: BaseStorage, error: BaseException) -> str:
    """What a database says: its own error, where Optuna has put one of its around it."""
    inner = error.__cause__ if isinstance(error, StorageInternalError) else None
    url = str(getattr(getattr(storage, "_backend", storage), "url", ""))
    return scrubbed(first_line(inner or error, 160), url)


def _name(storage: BaseStorage) -> str:
    inner = getattr(storage, "_backend", storage)
    if isinstance(inner, Journal):
        return str(inner.path.resolve())
    return named(str(getattr(inner, "url", type(inner).__name__)))


def alone(
    storage: BaseStorage, what: str, waiting: Callable[[], None] = lambda: None
) -> AbstractContextManager[None]:
    """Keep other processes of this machine from doing `what` with the same storage meanwhile."""
    if isinstance(storage, optuna.storages.InMemoryStorage):
        return nullcontext()
    key = hash_json([_name(storage), what])
    return locked(cache_dir("studies") / f".{key[:24]}.lock", waiting)


def owner() -> dict[str, Any]:
    """Who runs a trial, to tell orphans from trials at work."""
    return {
        "host": socket.gethostname(),
        "space": _space(),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "claim": uuid.uuid4().hex,
    }


_GIVEN_UP: set[str] = set()  # claims of this process whose end no storage took


def give_up(who: Mapping[str, Any]) -> None:
    """Nobody is at an owner's trial any more, though its storage could not be told."""
    _GIVEN_UP.add(str(who.get("claim")))


def _space() -> str:
    """Within which process numbers mean the same: this boot, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


KILLED = "killed"  # attribute of a trial whose process ended without a word
CLAIM = "claim"  # attribute of a running trial: the key that its result will have
Whereabouts = Literal["here", "elsewhere", "gone"]


def whereabouts(who: Mapping[str, Any]) -> Whereabouts:
    """Whether an owner works on this machine, cannot be seen from it, or is no more."""
    if who.get("host", socket.gethostname()) != socket.gethostname():
        return "elsewhere"
    if who.get("space", _space()) != _space():
        return "elsewhere"
    if who.get("claim") in _GIVEN_UP:
        return "gone"
    pid = int(who.get("pid", 0))
    return "here" if pid and who.get("start") == _start_time(pid) else "gone"


def claimed(storage: BaseStorage, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Who is at the attacks with these keys now, over all studies of the storage."""
    wanted = set(keys)
    found: dict[str, dict[str, Any]] = {}
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(
            study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        ):
            key = trial.user_attrs.get(CLAIM)
            if key in wanted and not is_gone(trial):
                found[key] = dict(trial.user_attrs.get("owner") or {})
    return found


_SILENCE = Silence()


def is_gone(trial: FrozenTrial) -> bool:
    """Whether nobody is at a running trial any more, as far as it can be known from here.

    Of a process of this machine that is whether it lives; another machine's has to renew the lease
    of its trial. Trials of versions before leases have none, and are left alone.
    """
    where = whereabouts(trial.user_attrs.get("owner") or {})
    return where == "gone" or (
        where == "elsewhere" and LEASE in trial.user_attrs and _SILENCE.of(trial)
    )


def fail_orphans(study: optuna.Study) -> int:
    """Mark running trials that nobody is at any more as failed; return how many."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_gone(trial):
            continue
        try:
            if (trial.user_attrs.get("owner") or {}).get("claim") not in _GIVEN_UP:
                study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
            study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            continue  # another process was faster
        count += 1
    return count


def _start_time(pid: int) -> str:
    """When a process started, as the kernel counts; empty where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "alive"
