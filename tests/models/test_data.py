"""Data: the digits split, CIFAR-100's files, and pickles that are refused."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.errors import BadInput, ButterflycError, Damaged, ToolMissing, UsageError
from butterflyc.models.data import cifar100, digits, read_pickle


def write_cifar(folder: Path, **changes: Any) -> Path:
    """A CIFAR-100 folder of 5 images a file; ``changes`` replace entries of 'train'."""
    random = np.random.default_rng(0)
    entries = {
        b"data": random.integers(0, 256, (5, 3072), dtype=np.uint8),
        b"fine_labels": [0, 99, 5, 7, 7],
        b"coarse_labels": [0] * 5,
        b"filenames": [b"a.png"] * 5,
    }
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(entries, protocol=2))
    changed = {key.encode(): value for key, value in changes.items()}
    kept = {k: v for k, v in {**entries, **changed}.items() if v is not None}
    (folder / "train").write_bytes(pickle.dumps(kept, protocol=2))
    return folder


def test_digits_split() -> None:
    """1437 images to train on, 360 to test on, 64 of the former to calibrate; pixels of 0..16."""
    pytest.importorskip("sklearn", reason="scikit-learn brings the images")
    split = digits()
    assert split.train.images.shape == (1437, 1, 8, 8)
    assert split.test.images.shape == (360, 1, 8, 8)
    assert split.calibration.images.shape == (64, 1, 8, 8)
    assert split.test.images.max() == split.test.white == 16
    assert split.test.floats().dtype == np.float32
    assert split.test.floats().max() == 1.0
    assert np.bincount(split.test.labels, minlength=10).min() > 20
    assert np.array_equal(digits().test.labels, split.test.labels)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the error says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ToolMissing, match="scikit-learn") as caught:
        digits()
    assert "pip install" in str(caught.value.help)


def test_cifar100_is_read(tmp_path: Path) -> None:
    """Images come as [N, 3, 32, 32] with their fine labels."""
    split = cifar100(write_cifar(tmp_path))
    assert split.train.images.shape == (5, 3, 32, 32)
    assert split.train.labels.tolist() == [0, 99, 5, 7, 7]
    raw = read_pickle(tmp_path / "train")[b"data"]
    assert split.train.images[2, 1, 0, 3] == raw[2, 1024 + 3]
    assert split.train.floats().max() <= 1.0


def test_cifar100_of_python_2_is_read(tmp_path: Path) -> None:
    """The published files name numpy.core.multiarray; they are read under today's NumPy."""
    write_cifar(tmp_path)
    today = b"cnumpy._core.multiarray\n"
    content = (tmp_path / "train").read_bytes()
    assert today in content
    (tmp_path / "train").write_bytes(content.replace(today, b"cnumpy.core.multiarray\n"))
    assert cifar100(tmp_path).train.images.shape == (5, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": None}, "no entries 'data'"),
        ({"data": np.zeros((5, 3072), np.float32)}, "'data' is float32 \\[5, 3072\\]"),
        ({"data": [1, 2]}, "'data' is a list"),
        ({"fine_labels": [1, 2]}, "'fine_labels' is int64 \\[2\\]"),
        ({"fine_labels": [0, 1, 2, 3, 100]}, "all in 0..99"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """A pickle with other content than CIFAR-100's is bad input, with the path and the cure."""
    with pytest.raises(BadInput, match=says) as caught:
        cifar100(write_cifar(tmp_path, **changes))
    assert str(tmp_path) in str(caught.value.where)
    assert "cifar-100-python" in str(caught.value.help)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    """A missing folder or file is named, with where to get it."""
    with pytest.raises(UsageError, match="no folder"):
        cifar100(tmp_path / "nowhere")
    (write_cifar(tmp_path) / "test").unlink()
    with pytest.raises(UsageError, match="no CIFAR-100 file 'test'"):
        cifar100(tmp_path)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "run")


class Spawner:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """A pickle that calls a function is refused before anything of it runs."""
    target = tmp_path / "written"
    (tmp_path / "evil").write_bytes(pickle.dumps({b"data": Malicious(target)}))
    with pytest.raises(Damaged, match="which is no array"):
        read_pickle(tmp_path / "evil")
    assert not target.exists()
    (tmp_path / "evil").write_bytes(pickle.dumps(Spawner()))
    with pytest.raises(Damaged, match=r"asks for (posix|nt)\.system"):
        read_pickle(tmp_path / "evil")


@pytest.mark.parametrize("payload", [b"", b"\x80\x04", b"not a pickle", b"cbuiltins\neval\n."])
def test_broken_pickles_are_damaged(tmp_path: Path, payload: bytes) -> None:
    """An empty, cut or foreign file is damaged, whatever the unpickler trips over."""
    (tmp_path / "train").write_bytes(payload)
    with pytest.raises(Damaged, match="cannot read this pickle"):
        read_pickle(tmp_path / "train")


def test_a_cut_cifar_file_is_damaged(tmp_path: Path) -> None:
    """Every cut of a file ends in one of our errors."""
    content = (write_cifar(tmp_path) / "train").read_bytes()
    for end in range(0, len(content), 997):
        (tmp_path / "train").write_bytes(content[:end])
        with pytest.raises(ButterflycError):
            cifar100(tmp_path)
