"""Where trials are kept, how finished ones are found again, and what becomes of orphans."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ..cache import cache_dir
from ..errors import UsageError


def open_storage(url: str | None) -> tuple[BaseStorage, str]:
    """Open a storage; return it and how results name it.

    Args:
        url: None for a journal file under the user's cache folder, a path that ends in ``.log`` or
            ``.journal`` for a journal file of one's own, else an SQLAlchemy URL.

    Raises:
        UsageError: The storage cannot be opened.
    """
    try:
        if url is None or url.endswith((".log", ".journal")):
            path = cache_dir("studies") / "partopt.journal" if url is None else Path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return JournalStorage(JournalFileBackend(str(path))), path.name
        return optuna.storages.RDBStorage(url), url.partition("@")[2] or url
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
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


def owner() -> dict[str, Any]:
    """Who runs a trial, to tell orphans from trials at work."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_time(os.getpid())}


KILLED = "killed"  # attribute of a trial whose process ended without a word


def fail_orphans(study: optuna.Study) -> int:
    """Mark running trials whose process on this host is gone as failed; return how many."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        who = trial.user_attrs.get("owner") or {}
        if who.get("host", socket.gethostname()) != socket.gethostname():
            continue
        pid = int(who.get("pid", 0))
        if pid and who.get("start") == _start_time(pid):
            continue
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
