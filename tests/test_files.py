"""Files that are whole or not there, and folders that one process at a time works in."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from bdbnet.files import (
    LOCK,
    LockedError,
    WriteError,
    is_about_writing,
    is_locked,
    locked,
    remove_unfinished,
    replaced,
    similar_file,
    write_atomically,
)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_when_all_of_it_is_there(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        with replaced(path) as file:
            file.write(content)
            assert path.exists() is (content == b"two")
        assert path.read_bytes() == content
    assert [*path.parent.iterdir()] == [path]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replaced(tmp_path / "file", keep=tmp_path / "kept") as file:
        file.write(bytes(1 // (file.write(b"half") - 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((tmp_path / "file").exists()))
    with replaced(tmp_path / "file") as file:
        file.write(b"x")
    assert seen == [False, True]  # the content, then the folder's entry


@pytest.mark.parametrize("links", [True, False])
def test_the_old_file_is_kept_under_another_name(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", full)
    for content in (b"1", b"2", b"3"):
        with replaced(tmp_path / "last", keep=tmp_path / "previous") as file:
            file.write(content)
    assert ((tmp_path / "last").read_bytes(), (tmp_path / "previous").read_bytes()) == (b"3", b"2")


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"/file can't be written: No space left on device; free some space") as stop:
        write_atomically(tmp_path / "file", b"x")
    assert stop.value.errno == errno.ENOSPC
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len([*tmp_path.iterdir()]) == 1


def test_what_can_not_be_read_is_not_said_to_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as stop, replaced(tmp_path / "file"):
        (tmp_path.parent / "nothing").read_bytes()
    assert not is_about_writing(stop.value)


def test_what_a_forbidden_file_is_about(tmp_path):
    (tmp_path / "there").touch()
    assert not is_about_writing(PermissionError(errno.EACCES, "denied", str(tmp_path / "there")))
    assert is_about_writing(PermissionError(errno.EACCES, "denied", str(tmp_path / "absent")))
    assert is_about_writing(OSError(errno.EROFS, "read-only"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".last.ckpt.a8_x", ".best.ckpt.b", "last.ckpt"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {".best.ckpt.b", "last.ckpt"}


def test_a_folder_is_locked_against_other_processes_alone(tmp_path):
    hold = (
        "import sys\nfrom pathlib import Path\nfrom bdbnet.files import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert is_locked(tmp_path)
    with pytest.raises(LockedError, match="another process is working there"):
        locked(tmp_path, timeout=0)
    other.kill()  # a killed process holds no lock
    other.communicate()
    assert not is_locked(tmp_path)
    with locked(tmp_path, timeout=0), locked(tmp_path / ".." / tmp_path.name, timeout=0):
        pass
    assert (tmp_path / LOCK).is_file()


def test_a_lock_in_a_folder_that_can_not_be_written_to_names_it():
    with pytest.raises(WriteError, match=r"^/proc/bdbnet/\.lock can't be written"):
        locked(Path("/proc/bdbnet"))


def test_the_file_that_a_wrong_name_may_mean(tmp_path):
    for name in ("features.pt", "weights.pth"):
        (tmp_path / name).touch()
    (tmp_path / "feature.pt").mkdir()
    assert similar_file(tmp_path / "feature.pt.gz") == tmp_path / "features.pt"
    assert similar_file(tmp_path / "weight.pth.tar") == tmp_path / "weights.pth"
    assert similar_file(tmp_path / "zzz") is None
    assert similar_file(tmp_path / "absent" / "weights.pth") is None


def test_an_error_of_another_process_keeps_its_words(tmp_path):
    error = WriteError(tmp_path / "file", OSError(errno.ENOSPC, "No space left on device"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
