"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import CannotWrite

_REASONS = {
    errno.EACCES: ("no permission", "choose another folder, or change its permissions"),
    errno.EPERM: ("no permission", "choose another folder, or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOSPC: ("the disk is full", "free some space, or choose another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another disk"),
    errno.EFBIG: ("the file would be larger than this system allows", "choose another disk"),
    errno.ENOENT: ("the folder does not exist", "make the folder first"),
    errno.ENOTDIR: ("a part of the path is no folder", "choose another path"),
    errno.EISDIR: ("there is a folder of that name", "choose another name"),
}


def write_whole(path: Path, pieces: Iterable[bytes], mode: int = 0o666) -> None:
    """The file ``path`` holds ``pieces``, one after the other, or is as it was before.

    A reader never sees half of it. ``mode`` are the file's permissions, as far as the umask lets
    them. Raises ``CannotWrite`` with the reason.
    """
    # In the same folder, so that the rename stays within one file system.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """The folder is there, and those above it. Raises ``CannotWrite`` with the reason."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CannotWrite(
            f"cannot make the folder {path}: there is a file of that name",
            help="choose another name, or remove the file",
        ) from error
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> CannotWrite:
    reason, help = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    return CannotWrite(f"cannot write {path}: {reason}", help=help)


def _sync_folder(folder: Path) -> None:
    """After this the rename survives a power cut, where the system can promise that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
