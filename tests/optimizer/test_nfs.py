from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock

from partopt.optimizer import journal as journal_module
from partopt.optimizer.journal import open_journal
from partopt.optimizer.nfs import on_nfs

MOUNTS = r"""
/dev/vda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb /home/local ext4 rw 0 0
server:/with\040space /mnt/with\040space nfs rw 0 0
old:/x /data nfs rw 0 0
/dev/vdc /data ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/home/me/s.journal", True),
        ("/home", True),
        ("/homes/s.journal", False),
        ("/home/local/s.journal", False),
        ("/mnt/with space/s.journal", True),
        ("/data/s.journal", False),
        ("/srv/s.journal", False),
    ],
)
def test_the_deepest_mount_says_which_file_system_it_is(path, there):
    assert on_nfs(Path(path), MOUNTS) is there


def test_the_table_of_this_machine_can_be_read(tmp_path):
    assert on_nfs(tmp_path) in (True, False)
    assert on_nfs(tmp_path, "nonsense\n\n") is False


def test_on_nfs_the_journal_takes_the_lock_that_holds_there(tmp_path, monkeypatch):
    path, held = tmp_path / "s.journal", []
    monkeypatch.setattr(journal_module, "on_nfs", lambda p: True)
    acquire = JournalFileOpenLock.acquire

    def noted(self):
        found = acquire(self)
        lock = Path(f"{path}.lock")
        held.append(lock.is_file() and not lock.is_symlink())
        return found

    monkeypatch.setattr(JournalFileOpenLock, "acquire", noted)
    storage = open_journal(path, ours=True)
    study = optuna.create_study(storage=storage, study_name="s")
    study.ask()
    assert held
    assert all(held)
    assert not Path(f"{path}.lock").exists()
    assert len(optuna.load_study(study_name="s", storage=open_journal(path, ours=True)).trials) == 1
