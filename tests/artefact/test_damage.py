"""Whatever is changed in an artefact is found, and the part that was changed is named."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler import archive
from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact
from butterflyc.compiler.errors import ButterflycError, Damaged, Incompatible, UsageError

SECTIONS = {
    "golden.safetensors": bytes(range(100)),
    "kernels/empty.o": b"",
    "kernels/up.o": b"\x7fELF" + bytes(300),
    "weights.safetensors": bytes(1000),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage")
    bfly.write(path / "whole.bfly", Artefact({"name": "digits", "target": "host"}, SECTIONS))
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    return (folder / "whole.bfly").read_bytes()


def error_of(folder: Path, data: bytes) -> ButterflycError:
    """What reading these bytes as an artefact ends with."""
    path = folder / "changed.bfly"
    path.write_bytes(data)
    with pytest.raises(ButterflycError) as caught:
        bfly.read(path)
    assert caught.value.exit_status == 6
    assert caught.value.help
    assert str(path) in caught.value.what
    return caught.value


def regions(whole: bytes) -> list[tuple[int, int, str]]:
    """Start, end and name of each part of the file, found without our reader."""
    found, at = [], 0
    with zipfile.ZipFile(BytesIO(whole)) as opened:
        for info in opened.infolist():
            head = info.header_offset
            start = head + 30 + whole[head + 26] + whole[head + 28]
            found.append((head, start, f"the zip header of '{info.filename}'"))
            found.append((start, start + info.file_size, f"'{info.filename}'"))
            at = start + info.file_size
    return [*found, (at, len(whole), "the zip directory")]


def test_every_byte_counts(folder: Path, whole: bytes) -> None:
    """A flipped bit in any byte of the file is found."""
    for offset in range(len(whole)):
        changed = bytearray(whole)
        changed[offset] ^= 1 << (offset % 8)
        assert isinstance(error_of(folder, bytes(changed)), Damaged), offset


def test_flipped_section_is_named(folder: Path, whole: bytes) -> None:
    """A flip names the section, header or directory that it lies in, and calls it changed."""
    for start, end, name in regions(whole):
        for offset in {start, (start + end) // 2, end - 1} if end > start else ():
            changed = bytearray(whole)
            changed[offset] ^= 0x10
            what = error_of(folder, bytes(changed)).what
            if "manifest.json" in name:  # all of its header is read before anything is trusted
                assert "manifest.json" in what or "its first bytes" in what or offset < 4
            else:
                assert name.strip("'") in what
                assert "changed" in what
            assert "cut short" not in what


@given(cut=st.integers(0, 10**6))
def test_cut_file_is_called_cut_short(folder: Path, whole: bytes, cut: int) -> None:
    """A file that ends anywhere too early is called cut short, in the section where it ends."""
    cut %= len(whole)
    what = error_of(folder, whole[:cut]).what
    if not cut:
        assert "it is empty" in what
        return
    assert "cut short" in what
    ends_in = next(name for start, end, name in regions(whole) if start <= cut < end)
    assert ends_in.removeprefix("the zip header of ").strip("'") in what
    assert f"{cut:,}" in what


@pytest.mark.parametrize("keep", [1, 3, 29, 30, 42, 60])
def test_cut_in_the_first_header(folder: Path, whole: bytes, keep: int) -> None:
    """A file that ends inside its first header is cut short, not foreign."""
    assert "cut short in 'manifest.json'" in error_of(folder, whole[:keep]).what


def test_longer_file_is_refused(folder: Path, whole: bytes) -> None:
    """Bytes after the end are counted."""
    assert "3 bytes too many" in error_of(folder, whole + b"abc").what


@pytest.mark.parametrize(
    "data", [b"hello", b"\x7fELF" + bytes(100), b"PK\3\4" + bytes(100)], ids=["text", "elf", "zip"]
)
def test_foreign_file_is_refused(folder: Path, data: bytes) -> None:
    """A file of another kind is called no artefact."""
    assert "no butterflyc artefact" in error_of(folder, data).what


def test_foreign_zip_is_refused(folder: Path) -> None:
    """A zip that others made, even with names that climb out of the folder, is not read."""
    path = folder / "foreign.zip"
    for name in ("a.txt", "../../etc/passwd", "/etc/passwd"):
        with zipfile.ZipFile(path, "w") as foreign:
            foreign.writestr(name, b"x")
        assert "no butterflyc artefact" in error_of(folder, path.read_bytes()).what


def hand_made(text: bytes, sections: dict[str, bytes]) -> bytes:
    """A file with every checksum right, but with a manifest that our writer would not write."""
    members = {bfly.MANIFEST: text, **sections}
    comment = b"butterflyc artefact, manifest sha256 " + hashlib.sha256(text).hexdigest().encode()
    layout = archive.Layout.of({name: len(data) for name, data in members.items()}, comment)
    return b"".join(layout.pieces({n: zlib.crc32(d) for n, d in members.items()}, members))


def manifest(sections: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    hashes = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sections.items()
    }
    return {"schema": "1.0", "hashes": hashes, **changes}


def test_hand_made_file_is_otherwise_right(folder: Path) -> None:
    """The files of the tests below are refused for their one fault only."""
    sections = {"a": b"1"}
    path = folder / "fine.bfly"
    path.write_bytes(hand_made(json.dumps(manifest(sections)).encode(), sections))
    assert bfly.read(path).sections == sections


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\x", ""])
def test_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    """A section whose name climbs out of the folder is refused, whatever its checksums say."""
    sections = {name: b"1"}
    data = hand_made(json.dumps(manifest(sections)).encode(), sections)
    assert f"'{name}' cannot be a section's name" in error_of(folder, data).what


def test_section_named_twice_is_refused(folder: Path) -> None:
    """Two entries of one name, of which tools would take the one or the other, are refused."""
    text = json.dumps(manifest({"a": b"1", "b": b"1"})).replace('"b"', '"a"').encode()
    assert "names 'a' twice" in error_of(folder, hand_made(text, {"a": b"1"})).what


def test_member_twice_is_refused(folder: Path, whole: bytes) -> None:
    """A second member appended with zip tools is refused."""
    path = folder / "appended.bfly"
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("kernels/up.o", b"other")
    assert isinstance(error_of(folder, path.read_bytes()), Damaged)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"{}", "gives no schema version"),
        (b'{"schema": 1.0}', "lists no sections"),
        (b'{"schema": "one"}', "gives no schema version"),
        (b'{"schema": "1.0"}', "lists no sections"),
        (b'{"schema": "1.0", "hashes": []}', "lists no sections"),
        (b'{"schema": "1.0", "hashes": {"a": 1}}', "section 'a' has size None"),
        (b'{"schema": "1.0", "hashes": {"a": {"bytes": -1}}}', "has size -1"),
        (b'{"schema": "1.0", "hashes": {"a": {"bytes": 1e3}}}', "has size 1000.0"),
        (b'{"schema": "1.0", "hashes": {"a": {"bytes": 5000000000}}}', "has size 5000000000"),
        (b'{"schema": "1.0", "hashes": {"a": {"bytes": 1}}}', "gives no SHA-256"),
    ],
)
def test_wrong_manifest_is_refused(folder: Path, text: bytes, what: str) -> None:
    """A manifest of the wrong form is refused with the reason."""
    assert what in error_of(folder, hand_made(text, {})).what


def test_limits_hold_when_reading(
    folder: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that claims more than the limits is refused before it is read."""
    monkeypatch.setattr(bfly, "MAX_SECTIONS", 3)
    assert "or over 3" in error_of(folder, whole).what
    monkeypatch.setattr(bfly, "MAX_MANIFEST_BYTES", 100)
    assert "limit 100" in error_of(folder, whole).what


@pytest.mark.parametrize("schema", ["1.1", "2.0", "10.0"])
def test_newer_schema_is_refused_with_a_way_out(folder: Path, schema: str) -> None:
    """A newer schema is Incompatible, not Damaged, and the help says what to install."""
    text = json.dumps({"schema": schema, "hashes": "in another form"}).encode()
    error = error_of(folder, hand_made(text, {}))
    assert isinstance(error, Incompatible)
    assert error.code == "BF602"
    assert f"has schema {schema}, this butterflyc reads up to 1.0" in error.what
    assert "pip install -U butterflyc" in str(error.help)


def test_older_schema_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later butterflyc reads today's files."""
    monkeypatch.setattr(bfly, "SCHEMA", (1, 7))
    assert bfly.read(folder / "whole.bfly").sections == SECTIONS


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A file that is not there is the caller's mistake (exit status 2), with the reason."""
    with pytest.raises(UsageError, match="No such file") as caught:
        bfly.read(tmp_path / "none.bfly")
    assert caught.value.exit_status == 2
