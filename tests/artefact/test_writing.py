"""A write that fails says why, and leaves the folder as it was."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact
from butterflyc.compiler.errors import CannotWrite
from butterflyc.compiler.files import make_folder, write_whole

ARTEFACT = Artefact({"name": "a"}, {"weights.safetensors": bytes(5000)})


def write_fails(path: Path) -> CannotWrite:
    with pytest.raises(CannotWrite) as caught:
        bfly.write(path, ARTEFACT)
    assert (caught.value.code, caught.value.exit_status) == ("BF702", 7)
    assert str(path) in caught.value.what
    return caught.value


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is named as the reason."""
    assert "the folder does not exist" in write_fails(tmp_path / "none" / "a.bfly").what


def test_file_as_folder(tmp_path: Path) -> None:
    """A file in the place of a folder is named as the reason."""
    (tmp_path / "file").write_text("")
    assert "a part of the path is no folder" in write_fails(tmp_path / "file" / "a.bfly").what


def test_folder_in_the_way(tmp_path: Path) -> None:
    """A folder of the same name is not replaced, and nothing else is left behind."""
    (tmp_path / "a.bfly").mkdir()
    assert "there is a folder of that name" in write_fails(tmp_path / "a.bfly").what
    assert os.listdir(tmp_path) == ["a.bfly"]


NOBODY = 65534


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere, so where tests run as root this one runs as nobody."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(before)


def test_no_permission_for_real(tmp_path: Path, ordinary_user: None) -> None:
    """A folder that may not be written is the reason."""
    if os.access(tmp_path, os.W_OK, effective_ids=True):
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "no permission" in write_fails(tmp_path / "a.bfly").what


@pytest.mark.parametrize(
    ("call", "number", "reason"),
    [
        ("open", errno.EACCES, "no permission"),
        ("open", errno.EROFS, "read-only"),
        ("fsync", errno.ENOSPC, "the disk is full"),
        ("fsync", errno.EDQUOT, "quota"),
        ("fsync", errno.EIO, os.strerror(errno.EIO)),
        ("replace", errno.EPERM, "no permission"),
    ],
)
def test_system_error_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, reason: str
) -> None:
    """An error of the system at any step is told, and leaves nothing half-written."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    assert reason in write_fails(tmp_path / "a.bfly").what
    monkeypatch.undo()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Control-C in the middle leaves the file of before, whole, and nothing beside it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.bfly"
    bfly.write(path, Artefact({"name": "old"}, {}))
    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bfly.write(path, ARTEFACT)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.bfly"]
    assert bfly.read(path).manifest["name"] == "old"


def test_fault_while_pieces_are_made_leaves_nothing(tmp_path: Path) -> None:
    """A fault of the caller, half-way through the pieces, leaves nothing."""

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_whole(tmp_path / "a", pieces())
    assert not os.listdir(tmp_path)


def test_real_limit_on_file_size(tmp_path: Path) -> None:
    """A system that refuses the bytes for real (a limit on file size) leaves nothing."""
    code = (
        "import sys; from pathlib import Path\n"
        "from butterflyc.compiler.files import make_folder, write_whole\n"
        "from butterflyc.compiler.errors import CannotWrite\n"
        "try: write_whole(Path(sys.argv[1]), [bytes(100_000)])\n"
        "except CannotWrite as error: print(error.what)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, tmp_path / "a.bfly"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "larger than this system allows" in done.stdout
    assert not os.listdir(tmp_path)


def test_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """The file can be read by whom the user's umask allows, as any other new file."""
    bfly.write(tmp_path / "a.bfly", ARTEFACT)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.bfly").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    """A folder is made where there was none, and may be there already."""
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the place of the folder, or of one above it, is told."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="there is a file of that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(CannotWrite, match="a part of the path is no folder"):
        make_folder(tmp_path / "file" / "a")
