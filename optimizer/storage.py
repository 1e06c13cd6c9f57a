"""Where trials are kept, how finished ones are found again, and what becomes of orphans."""

from __future__ import annotations

import os
import socket
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..cache import cache_dir, locked
from ..errors import PartoptError, StorageError, UsageError, first_line
from ..hashing import hash_json
from .journal import DamageError, Journal, open_journal


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
        return optuna.storages.RDBStorage(url), url.partition("@")[2] or url
    except PartoptError:
        raise
    except Exception as error:
        reason = first_line(error, 160)
        raise UsageError(
            f"`storage` got {url!r}, which cannot be opened ({reason}); "
            "give a .journal file or a database URL"
        ) from error


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
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(
            f"the storage {_name(storage)!r} failed ({first_line(error, 160)}); what was finished "
            "is kept: see to the database and run the same command again"
        ) from error


def _name(storage: BaseStorage) -> str:
    inner = getattr(storage, "_backend", storage)
    if isinstance(inner, Journal):
        return str(inner.path.resolve())
    return str(getattr(inner, "url", type(inner).__name__)).rpartition("@")[2]


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
            who = trial.user_attrs.get("owner") or {}
            if key in wanted and whereabouts(who) != "gone":
                found[key] = dict(who)
    return found


def fail_orphans(study: optuna.Study) -> int:
    """Mark running trials whose process on this machine is gone as failed; return how many."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        who = trial.user_attrs.get("owner") or {}
        if whereabouts(who) != "gone":
            continue
        if who.get("claim") not in _GIVEN_UP:
            study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
        study.tell(trial.number, state=TrialState.FAIL)
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
