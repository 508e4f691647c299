"""An artefact comes back as it was written, the same bytes each time, in a zip any tool opens."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact
from butterflyc.compiler.errors import CannotWrite, UsageError

PART = st.from_regex(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,8}", fullmatch=True)
NAMES = st.lists(PART, min_size=1, max_size=3).map("/".join).filter(lambda n: n != bfly.MANIFEST)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
OURS = ("schema", "hashes")
MANIFESTS = st.dictionaries(st.text(max_size=8).filter(lambda key: key not in OURS), JSON).filter(
    lambda manifest: "inf" not in repr(manifest)
)
ARTEFACTS = st.builds(
    Artefact, MANIFESTS, st.dictionaries(NAMES, st.binary(max_size=200), max_size=5)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round_trip")


@given(artefact=ARTEFACTS)
def test_what_is_written_is_read(folder: Path, artefact: Artefact) -> None:
    """Sections and manifest come back as they were, with schema and hashes added."""
    written = bfly.write(folder / "a.bfly", artefact)
    back = bfly.read(folder / "a.bfly")
    assert back == written
    assert back.sections == artefact.sections
    assert back.manifest["schema"] == "1.0"
    assert {k: v for k, v in back.manifest.items() if k not in OURS} == artefact.manifest


@given(artefact=ARTEFACTS)
def test_two_writes_are_byte_identical(folder: Path, artefact: Artefact) -> None:
    """Neither the order of sections or keys, nor time, nor the file's name shows in the bytes."""
    bfly.write(folder / "first.bfly", artefact)
    other = Artefact(
        dict(reversed([*artefact.manifest.items()])),
        dict(reversed([*artefact.sections.items()])),
    )
    bfly.write(folder / "second.bfly", other)
    first = (folder / "first.bfly").read_bytes()
    assert first == (folder / "second.bfly").read_bytes()
    bfly.write(folder / "second.bfly", bfly.read(folder / "first.bfly"))
    assert first == (folder / "second.bfly").read_bytes()


@given(artefact=ARTEFACTS)
def test_it_is_an_aligned_stored_zip(folder: Path, artefact: Artefact) -> None:
    """Python's zipfile agrees with every size, checksum and name; contents start at 64 bytes."""
    bfly.write(folder / "a.bfly", artefact)
    raw = (folder / "a.bfly").read_bytes()
    with zipfile.ZipFile(folder / "a.bfly") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [bfly.MANIFEST, *sorted(artefact.sections)]
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            name_bytes, extra_bytes = raw[info.header_offset + 26], raw[info.header_offset + 28]
            start = info.header_offset + 30 + name_bytes + extra_bytes
            assert start % 64 == 0
            assert raw[start : start + info.file_size] == archive.read(info)


def test_unzip_opens_it(tmp_path: Path, needs_tool: Callable[..., str]) -> None:
    """Python's command-line unzip, a stranger to our writer, unpacks every section."""
    python = needs_tool("python3", "python")
    bfly.write(tmp_path / "a.bfly", Artefact({"name": "a"}, {"kernels/x.o": b"x" * 100}))
    subprocess.run(
        [python, "-m", "zipfile", "-e", tmp_path / "a.bfly", tmp_path / "out"], check=True
    )
    assert (tmp_path / "out/kernels/x.o").read_bytes() == b"x" * 100
    assert json.loads((tmp_path / "out/manifest.json").read_text())["name"] == "a"


def test_a_folder_stands_for_its_artefact(tmp_path: Path) -> None:
    """A folder with one .bfly is read as that file; with none or two it is an error."""
    with pytest.raises(UsageError, match=r"must hold one \.bfly file"):
        bfly.read(tmp_path)
    bfly.write(tmp_path / "a.bfly", Artefact({"name": "a"}, {}))
    assert bfly.read(tmp_path).manifest["name"] == "a"
    bfly.write(tmp_path / "b.bfly", Artefact({}, {}))
    with pytest.raises(UsageError) as caught:
        bfly.read(tmp_path)
    assert "a.bfly, b.bfly" in str(caught.value)


def test_unknown_section_lists_the_known() -> None:
    """Asking for a section that is not there names those that are."""
    artefact = Artefact({}, {"weights.safetensors": b"", "golden.safetensors": b"1"})
    assert artefact.section("golden.safetensors") == b"1"
    with pytest.raises(UsageError) as caught:
        artefact.section("gold")
    assert "golden.safetensors, weights.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "../a", "a/../b", "a/..", "..", ".", "a//b", "a/", "a\\b", "C:a", "a\n", "é",
     "manifest.json", "x" * 256],
)  # fmt: skip
def test_unsafe_section_name_is_not_written(tmp_path: Path, name: str) -> None:
    """A section whose name could leave the folder, or hide the manifest, is refused."""
    with pytest.raises(CannotWrite, match="cannot be a section's name"):
        bfly.write(tmp_path / "a.bfly", Artefact({}, {name: b""}))
    assert not list(tmp_path.iterdir())


def test_limits_hold_when_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sections or bytes than a reader takes are refused."""
    monkeypatch.setattr(bfly, "MAX_SECTIONS", 2)
    with pytest.raises(CannotWrite, match="3 sections, limit 2"):
        bfly.write(tmp_path / "a.bfly", Artefact({}, {"a": b"", "b": b"", "c": b""}))
    monkeypatch.setattr(bfly, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CannotWrite, match="limits 1,000 and"):
        bfly.write(tmp_path / "a.bfly", Artefact({}, {"a": bytes(1000)}))
    assert not list(tmp_path.iterdir())
