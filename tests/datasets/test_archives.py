"""Archives: what is extracted, what is refused, and that an error leaves nothing behind."""

import errno
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdbnet.datasets import archives
from bdbnet.datasets.archives import ArchiveError, extract_archives

CONTENT = {"set/readme.txt": b"hello", "set/images/0001.jpg": bytes(range(256)) * 20, "set/images/empty.jpg": b""}


def make_zip(path: Path, members: dict[str, bytes], **attributes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.writestr(info, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], **attributes: Any) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def make(path: Path, members: dict[str, bytes]) -> Path:
    return make_zip(path, members) if path.suffix == ".zip" else make_tar(path, members)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive: Path, **options: Any) -> str:
    """Message of the ArchiveError; everything but the archive must be gone afterwards."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ArchiveError) as error:
        extract_archives([archive], archive.parent / "out", progress=False, **options)
    assert sorted(archive.parent.rglob("*")) == before
    assert str(archive) in str(error.value)
    return str(error.value)


every_kind = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz", "a.tar.gz"])


@every_kind
def test_content_is_extracted(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / kind, CONTENT)
    target = extract_archives([archive], tmp_path / "new" / "out", progress=False)
    assert target == (tmp_path / "new" / "out").resolve()
    assert files_below(target) == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.dictionaries(
        st.sampled_from(["a", "b/c", "b/d.jpg", "b/e/f", "ü.txt", " "]), st.binary(max_size=99), min_size=1
    )
)
@every_kind
def test_any_content_comes_back(tmp_path_factory: pytest.TempPathFactory, kind: str, members: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("round")
    target = extract_archives([make(folder / kind, members)], folder / "out", progress=False)
    assert files_below(target) == members


def test_kind_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", CONTENT).rename(tmp_path / "download")
    assert files_below(extract_archives([archive], tmp_path / "out", progress=False)) == CONTENT


def test_folder_members_and_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(plain, "./empty")
    target = extract_archives([tmp_path / "a.tar"], tmp_path / "out", progress=False)
    assert [path.name for path in target.iterdir()] == ["empty"]
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_empty_destination_is_used_and_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    extract_archives([make(tmp_path / "a.zip", CONTENT)], tmp_path / "out")
    assert files_below(tmp_path / "out") == CONTENT
    assert "extracting a.zip" in capsys.readouterr().err


def test_destination_with_files_is_left_alone(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", CONTENT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ArchiveError, match=r"holds files already\. Leave out archive="):
        extract_archives([archive], tmp_path / "out", progress=False)
    assert files_below(tmp_path / "out") == {"mine.txt": b"precious"}
    with pytest.raises(ArchiveError, match="is a file"):
        extract_archives([archive], tmp_path / "out" / "mine.txt", progress=False)


@every_kind
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..", "C:\\evil", "c:evil", "a\\..\\..\\evil", "a\nb", "a/.."]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    message = refusal(make(tmp_path / kind, {"good.txt": b"x", name: b"evil"}))
    assert repr(name) in message
    assert "out of the folder" in message


@pytest.mark.parametrize("form", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, form: int) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": b"/etc/passwd"}, create_system=3, external_attr=(form | 0o777) << 16)
    assert "'x' is a link or a device" in refusal(archive)


@pytest.mark.parametrize(
    "form", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
@pytest.mark.parametrize("kind", ["a.tar", "a.tgz"])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, form: bytes, kind: str) -> None:
    archive = make_tar(tmp_path / kind, {"x": b""}, type=form, linkname="/etc/passwd")
    assert "'x' is a link, a device" in refusal(archive)


def test_file_behind_a_link_is_not_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("images")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("images/evil"))
    assert "link" in refusal(tmp_path / "a.tar")
    assert list(outside.iterdir()) == []


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", CONTENT)
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert "is encrypted" in refusal(archive)


def test_unusual_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"x")
    assert "not compressed by deflate" in refusal(tmp_path / "a.zip")


@every_kind
@pytest.mark.parametrize("names", [("x", "x"), ("x", "x/y"), ("x/y", "x"), ("x", "./x")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_names_are_refused(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    archive = tmp_path / kind
    if kind == "a.zip":
        with zipfile.ZipFile(archive, "w") as zip_file:
            for name in names:
                zip_file.writestr(name, b"")
    else:
        with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as tar_file:
            for name in names:
                tar_file.addfile(tarfile.TarInfo(name))
    assert "earlier" in refusal(archive)


@every_kind
def test_too_many_members(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / kind, CONTENT)
    assert "more than 2 members" in refusal(archive, max_members=2)
    extract_archives([archive], tmp_path / "out", max_members=3, progress=False)


@every_kind
def test_too_many_bytes(tmp_path: Path, kind: str) -> None:
    assert "more than 5,000 bytes" in refusal(make(tmp_path / kind, CONTENT), max_bytes=5_000)


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_bomb_is_stopped_at_the_ratio(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / kind, {"zeros": bytes(8 << 20)})
    assert archive.stat().st_size < 20_000
    assert "100 times the size of the archive" in refusal(archive)
    assert files_below(extract_archives([archive], tmp_path / "out", max_ratio=2_000, progress=False))


def test_size_in_the_header_of_a_zip_is_not_trusted(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(4 << 20)})
    data = archive.read_bytes()
    claimed = (4 << 20).to_bytes(4, "little")
    assert data.count(claimed) == 2
    archive.write_bytes(data.replace(claimed, (10).to_bytes(4, "little")))
    assert "damaged" in refusal(archive)


def test_huge_header_of_a_tar_is_not_read_into_memory(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", {"header": bytes(4 << 20)}, type=tarfile.GNUTYPE_LONGNAME)
    assert "100 times the size of the archive" in refusal(archive)


@every_kind
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_truncated_archive(tmp_path_factory: pytest.TempPathFactory, kind: str, share: float) -> None:
    folder = tmp_path_factory.mktemp("truncated")
    archive = make(folder / kind, CONTENT)
    data = archive.read_bytes()
    # A tar ends with zeros: without some of them it is still complete.
    useful = len(data.rstrip(b"\0")) if kind == "a.tar" else len(data)
    archive.write_bytes(data[: int(useful * share)])
    message = refusal(archive)
    assert "truncated or damaged" in message or "is not a .zip" in message


def test_tar_cut_between_two_members(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", {"a": bytes(512), "b": bytes(512)})
    archive.write_bytes(archive.read_bytes()[:1024])
    assert "the end of the archive is missing" in refusal(archive)


def test_damaged_header_inside_a_tar(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", {"a": b"a" * 512, "b": b"b" * 512})
    data = bytearray(archive.read_bytes())
    data[1024] ^= 0xFF
    archive.write_bytes(data)
    assert "damaged header" in refusal(archive)


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_flipped_byte_is_noticed_by_the_checksum(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path / kind, {"x": b"abc"})
    data = bytearray(archive.read_bytes())
    position = data.index(b"PK\x01\x02") + 16 if kind == "a.zip" else len(data) - 8
    data[position] ^= 0xFF
    archive.write_bytes(data)
    assert "damaged" in refusal(archive)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"Rar!\x1a\x07\x00" + bytes(600)])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert "is not a .zip, .tar, .tar.gz or .tgz archive" in refusal(tmp_path / "a.zip")


def test_missing_archive_or_a_folder_in_its_place(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.zip")
    (tmp_path / "folder.zip").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder.zip")


class _FailingFile(io.BytesIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, data: Any) -> int:
        raise self.error


def fail_at_second_file(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    create: Callable[..., Any] = archives._create
    calls: list[str] = []

    def failing_create(archive: Path, name: str, path: Path) -> Any:
        calls.append(name)
        return create(archive, name, path) if len(calls) == 1 else _FailingFile(error)

    monkeypatch.setattr(archives, "_create", failing_create)


@every_kind
def test_full_disk(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_second_file(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    message = refusal(make(tmp_path / kind, CONTENT))
    assert "The disk is full" in message
    assert str(tmp_path / "out") in message


@every_kind
def test_interrupt_leaves_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(tmp_path / kind, CONTENT)
    fail_at_second_file(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        extract_archives([archive], tmp_path / "data" / "out", progress=False)
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()
    assert files_below(extract_archives([archive], tmp_path / "data" / "out", progress=False)) == CONTENT


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_folder_that_is_not_writable(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(tmp_path / "a.zip", CONTENT)

    def refuse(**options: Any) -> str:
        raise OSError(number, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert "The folder is not writable" in refusal(archive)


def test_parent_of_the_destination_is_a_file(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", CONTENT)
    with pytest.raises(ArchiveError, match=r"a\.zip"):
        extract_archives([archive], archive / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_real_archive_has_every_member(market1501_root: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "Market-1501-v15.09.15.zip") as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}
    found = {
        path.relative_to(market1501_root).as_posix(): path.stat().st_size
        for path in market1501_root.rglob("*")
        if path.is_file()
    }
    assert found == sizes


def test_several_archives_and_files_beside_them_go_into_one_folder(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a.tgz", CONTENT), make(tmp_path / "b.zip", {"set/images/0002.jpg": b"two"})
    lists = tmp_path / "annotations.mat"
    lists.write_bytes(b"MATLAB 5.0 MAT-file")
    target = extract_archives([first, lists, second], tmp_path / "out", progress=False)
    expected = {**CONTENT, "set/images/0002.jpg": b"two", "annotations.mat": b"MATLAB 5.0 MAT-file"}
    assert files_below(target) == expected


def test_the_second_of_two_archives_is_damaged(tmp_path: Path) -> None:
    good, bad = make(tmp_path / "a.zip", CONTENT), make(tmp_path / "b.tgz", {"more.jpg": bytes(range(256)) * 20})
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.raises(ArchiveError, match=r"b\.tgz is truncated or damaged"):
        extract_archives([good, bad], tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.tgz"]


def test_archives_that_hold_the_same_file_are_refused(tmp_path: Path) -> None:
    good, again = make(tmp_path / "a.zip", CONTENT), make(tmp_path / "b.zip", CONTENT)
    with pytest.raises(ArchiveError, match=r"b\.zip: member 'set/readme\.txt' has the name of an earlier member"):
        extract_archives([good, again], tmp_path / "out", progress=False)
    with pytest.raises(ArchiveError, match=r"archive=\[\] names no file"):
        extract_archives([], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
