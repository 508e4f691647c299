"""Models on another machine: by stand-ins of ssh and scp, and by a real server on this machine."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.compiler.errors import (
    ButterflycError,
    Incompatible,
    ToolFailed,
    ToolMissing,
    UsageError,
)
from butterflyc.compiler.ir import Graph, Type, constant, make
from butterflyc.compiler.lower import cross
from butterflyc.compiler.run import remote as module
from butterflyc.compiler.run.hosted import Hosted
from butterflyc.compiler.run.remote import Remote, remote
from butterflyc.program import Program
from butterflyc.verify import verify

from .commands import command_of
from .packages import IMAGES, STAND_INS, compiled


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-ins were called with; all they make is below ``tmp_path / "tmp"``."""
    (tmp_path / "tmp").mkdir()
    python = str(Path(sys.executable).parent)
    path = os.pathsep.join([str(STAND_INS / "ssh"), python, os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture
def pi(needs_tool: Callable[..., str]) -> Program:
    """A model for a Raspberry Pi."""
    needs_tool("qemu-aarch64")
    if not cross.find_spec("ziglang"):
        needs_tool("aarch64-linux-gnu-gcc")
    return compiled("cortex-a53")


def left_behind(log: Path) -> list[str]:
    return [path.name for path in (log.parent / "tmp").glob("butterflyc.*")]


def test_a_model_runs_there(log: Path, pi: Program) -> None:
    """Outputs and chosen experts come back, and nothing is left."""
    on = pi.on("ssh:pi@raspberry")
    found = verify(pi, on=on)
    assert found.passed
    assert found.routing_agreement == 1
    np.testing.assert_array_equal(on(IMAGES), pi.on("qemu")(IMAGES))
    assert left_behind(log) == []
    lines = log.read_text().splitlines()
    assert {line.split()[0] for line in lines} == {"ssh", "scp"}
    assert all("BatchMode=yes" in line and " -- " in line for line in lines)


def test_a_shell_that_greets_is_understood(log: Path, pi: Program) -> None:
    """What a shell prints when it starts is told apart from an answer."""
    np.testing.assert_array_equal(pi.on("ssh:chatty")(IMAGES[:1]), pi.on("qemu")(IMAGES[:1]))
    assert left_behind(log) == []


def test_a_library_of_this_machine_runs_there(log: Path) -> None:
    """A program for a machine like this one is linked when it is asked for."""
    program = compiled("host")
    np.testing.assert_array_equal(program.on("ssh:twin")(IMAGES), program(IMAGES))


def test_the_commands(
    log: Path, pi: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run` and `verify` take --on ssh:HOST."""
    path = pi.save(tmp_path / "vit.bfly")
    np.savez(tmp_path / "in.npz", x=IMAGES)
    files = ["--inputs", str(tmp_path / "in.npz"), "--out", str(tmp_path / "out.npz")]
    assert run(["run", str(path), *files, "--on", "ssh:pi@raspberry"]) == 0
    with np.load(tmp_path / "out.npz") as results:
        np.testing.assert_allclose(results[results.files[0]], compiled("host")(IMAGES), rtol=1e-4)
    assert run(["verify", str(path), "--on", "ssh:pi@raspberry"]) == 0
    assert "routing agreement  100.00%" in capsys.readouterr().out
    assert run(["verify", str(path), "--on", "ssh:-oProxyCommand=x"]) == 2
    assert run(["verify", str(path), "--on", "ssh:unreachable"]) == 7
    assert "No route to host" in capsys.readouterr().err
    assert run(["bench", str(path), "--on", "ssh:pi@raspberry"]) == 2


def test_a_model_without_inputs(log: Path, tmp_path: Path) -> None:
    """What it computes comes back as often as it is asked for."""
    store: dict[str, np.ndarray] = {}
    value = constant(store, np.array([-1, 2], np.float32), "c")
    code = command_of(Graph("fixed", (), (make("neg", value),), store), tmp_path).read_bytes()
    hosted = Hosted(code, (), (Type("f32", (2,)),), remote("ssh:twin"))
    for (got,) in hosted.many([(), ()]):
        np.testing.assert_array_equal(got, [1, -2])


@pytest.mark.parametrize(
    ("host", "error", "told", "help"),
    [
        ("unreachable", ToolFailed, "unreachable cannot be reached: ssh: connect", "a password"),
        ("crowded", ToolFailed, "crowded has no folder for us: mktemp: No space", ""),
        ("wordless", ToolFailed, "wordless answered 'restricted: type help", "mktemp -d"),
        ("full", ToolFailed, "cannot copy to full: scp: write remote: No space", "full disk"),
        ("forgetful", ToolFailed, "cannot copy from forgetful: scp: out0.npy", ""),
        ("lost", ToolFailed, "lost was lost: ssh: connect to host lost port 22", ""),
        ("other", Incompatible, "other cannot execute the program: ", "compile for its processor"),
        ("elder", Incompatible, "the processor of elder lacks an instruction", "aarch64"),
        ("slow", ToolFailed, "ssh took more than 1 s", "ssh -o BatchMode"),
    ],
)
def test_what_goes_wrong(
    log: Path,
    pi: Program,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    error: type[ButterflycError],
    told: str,
    help: str,
) -> None:
    """Each fault is told with the machine's name and its words, and nothing is left behind."""
    if host == "slow":
        monkeypatch.setattr(module, "SHORT_SECONDS", 1.0)
    with pytest.raises(error) as caught:
        pi.on(f"ssh:{host}")(IMAGES[:1])
    assert told in caught.value.what
    assert help in str(caught.value.help)
    assert left_behind(log) == []


@pytest.mark.parametrize(
    "place",
    [
        "-oProxyCommand=x",
        "",
        "a b",
        "a;b",
        "a$(b)",
        "a@b@c",
        "a:b",
        "a:",
        "a/b",
        "@a",
        "a@-b",
        "a\nb",
    ],
)
def test_what_is_no_machine(place: str) -> None:
    """What could be an option, or more than a name, never reaches ssh."""
    with pytest.raises(UsageError, match="names no machine"):
        remote(f"ssh:{place}")


def test_names_of_machines() -> None:
    """A user, a host, an alias and a port are told apart."""
    assert remote("ssh:pi@raspberrypi.local") == Remote("pi@raspberrypi.local")
    assert remote("ssh:my-pi_4") == Remote("my-pi_4")
    assert remote("ssh:pi@10.0.0.7:2222") == Remote("pi@10.0.0.7", "2222")


@pytest.mark.parametrize("there", ["ssh", "scp", ""])
def test_without_the_tools(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing one of ssh and scp is named, and the package that has it."""
    if there:
        shutil.copy(STAND_INS / "ssh" / there, tmp_path / there)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = "scp" if there == "ssh" else "ssh"
    with pytest.raises(ToolMissing, match=f"{missing} is not installed") as caught:
        remote("ssh:pi")
    assert "openssh-client" in str(caught.value.help)


def test_c_for_a_bare_machine_goes_nowhere(log: Path) -> None:
    """A model for a microcontroller is no program that a system runs."""
    with pytest.raises(Incompatible, match="as C for a machine of its own"):
        compiled("c99").on("ssh:twin")


CONFIG = """\
Host board
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking {strict}
"""
SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/pid
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


@pytest.fixture
def server(
    tmp_path: Path, needs_tool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An ssh server of our own on a free port, which the alias ``board`` reaches."""
    monkeypatch.setenv("PATH", os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    sshd = needs_tool("sshd")
    keygen = needs_tool("ssh-keygen")
    for name in ("host", "key"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {"port": port, "user": getpass.getuser(), "folder": tmp_path, "strict": "accept-new"}
    (tmp_path / "config").write_text(CONFIG.format(**words))
    (tmp_path / "sshd").write_text(SERVER.format(**words))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir()
    for tool in ("ssh", "scp"):  # they read the configuration of the user, wherever HOME is
        wrapper = tmp_path / "bin" / tool
        wrapper.write_text(f'#!/bin/sh\nexec {needs_tool(tool)} -F {tmp_path}/config "$@"\n')
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    with subprocess.Popen([sshd, "-D", "-e", "-f", str(tmp_path / "sshd")]) as process:
        try:
            wait_for(port)
            yield tmp_path
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"no server at port {port}")


def test_a_real_server(server: Path, pi: Program) -> None:
    """By the real ssh and scp: a model of this machine is right, one of another is told."""
    before = set(Path("/tmp").glob("butterflyc.*"))
    program = compiled("host")
    on = program.on("ssh:board")
    found = verify(program, on=on)
    assert found.passed
    assert found.routing_agreement == 1
    np.testing.assert_array_equal(on(IMAGES), program(IMAGES))
    with pytest.raises(Incompatible, match=r"board cannot execute the program: .*[Ee]xec format"):
        pi.on("ssh:board")(IMAGES[:1])
    assert set(Path("/tmp").glob("butterflyc.*")) <= before


def test_a_real_server_that_lets_nobody_in(server: Path) -> None:
    """Without a key, or with a machine that is not known, no one is asked for a password."""
    config = server / "config"
    good = config.read_text()
    config.write_text(good.replace("accept-new", "yes"))
    with pytest.raises(ToolFailed, match="board cannot be reached: Host key verification failed"):
        compiled("host").on("ssh:board")(IMAGES[:1])
    config.write_text(good)
    (server / "key.pub").write_text("")
    with pytest.raises(ToolFailed, match=r"board cannot be reached: .*Permission denied"):
        bc.load(compiled("host").save(server / "x.bfly")).on("ssh:board")(IMAGES[:1])
