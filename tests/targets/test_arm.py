"""ARM targets: cross-built, run in QEMU's user mode, from Python and from the command line."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.cli.compile import next_commands, write
from butterflyc.compiler.codes import encode, interpret_real
from butterflyc.compiler.errors import Incompatible, ToolFailed, ToolMissing
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.lower import cross
from butterflyc.compiler.lower.elf import architecture_of
from butterflyc.compiler.run.hosted import Finished, Hosted
from butterflyc.compiler.run.native import RunFailed, check_architecture, cpu_features
from butterflyc.compiler.run.user_mode import UserMode
from butterflyc.placed import programs_of
from butterflyc.program import Program
from butterflyc.targets.registry import core_names, load_core
from butterflyc.verify import verify

from .packages import IMAGES, compiled

ARM = [name for name in core_names() if load_core(name).runner in ("qemu-aarch64", "qemu-arm")]
FILES = {"vit-run", "vit.c", "vit.h", "vit_kernels.o", "libvit.a", "libvit.so"}

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="what an ARM does natively is emulated here"
)


@pytest.fixture(scope="module", params=ARM)
def program(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> Program:
    """A small model for each ARM target."""
    return for_target(str(request.param), needs_tool)


@pytest.fixture(scope="module")
def pi(needs_tool: Callable[..., str]) -> Program:
    """The same for a Raspberry Pi 3."""
    return for_target("cortex-a53", needs_tool)


def for_target(target: str, needs_tool: Callable[..., str]) -> Program:
    needs_tool(load_core(target).runner)
    if not cross.find_spec("ziglang"):
        needs_tool(load_core(target).toolchain[1])
    return compiled(target)


def test_every_arm_target_computes_what_the_model_does(program: Program) -> None:
    """In QEMU, with the processor that the target names: outputs and chosen experts."""
    on = program.on("qemu")
    found = verify(program, on=on)
    assert found.passed
    assert found.routing_agreement == 1
    assert on.hosted is not None
    assert (on.emulated, on.instructions, on.stack_bytes) == (None, (), None)
    images = torch.from_numpy(IMAGES[:5])
    together = on(images)
    assert isinstance(together, torch.Tensor)
    alone = torch.cat([on(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


class Joined(torch.nn.Module):
    """Two inputs, and a norm, which divides integers in int8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = torch.nn.LayerNorm(12), torch.nn.Linear(12, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One sum, and what a layer makes of it."""
        total = self.norm(x + y)
        return self.head(total).softmax(-1), total


@pytest.mark.parametrize("mode", ["f32", "a8", "int8"])
@pytest.mark.parametrize("target", ["aarch64", "armv7a"])
def test_several_ports_in_every_mode(
    target: str, mode: str, needs_tool: Callable[..., str]
) -> None:
    """Two inputs and two outputs are as the interpreter has them: in int8, codes and all."""
    for_target(target, needs_tool)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 7, 3, 12)).astype(np.float32)
    examples = torch.from_numpy(x[0]), torch.from_numpy(y[0])
    program = bc.compile(Joined().eval(), examples, target=target, mode=mode, name="joined")
    on = program.on("qemu")
    found = verify(program, on=on)
    assert found.passed
    assert found.bit_identical or mode != "int8"
    last = program.stages[list(program.stages)[-1]]
    tolerance = 0 if mode == "int8" else 1e-5
    for a, b in zip(x, y, strict=True):
        for got, wanted in zip(on.run(a, b), interpret_real(last, a, b), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    if mode == "int8":
        codes = tuple(encode(z, t) for z, t in zip((x[0], y[0]), program.inputs, strict=True))
        for got, wanted in zip(on.run(*codes), interpret(last, *codes), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_what_is_built_is_for_the_target(program: Program) -> None:
    """Libraries, object and program are for its processor, and the manifest has its features."""
    core = load_core(program.target)
    wanted = cross.architecture(core.triple)
    sections = program.artefact.sections
    for name in ("vit-run", "vit_kernels.o", "libvit.so"):
        assert architecture_of(sections[f"kernels/{name}"]) == wanted, name
    assert program.manifest["cpu_features"] == list(core.cpu_features or ())
    with pytest.raises(Incompatible, match=f"is for {wanted}, which this machine is not") as caught:
        program.on("native")
    assert "--on qemu" in str(caught.value.help)


def test_two_builds_are_one(pi: Program) -> None:
    """Compiling again gives the same bytes, and none of a path of this machine."""
    again = compiled.__wrapped__("cortex-a53")
    assert again.artefact.sections == pi.artefact.sections
    assert {name for name in again.artefact.sections if name.startswith("kernels/")} == {
        f"kernels/{name}" for name in FILES
    }
    for name in FILES:
        content = again.artefact.sections[f"kernels/{name}"]
        for path in (b"/tmp", str(Path.home()).encode() + b"/", str(Path.cwd()).encode()):
            assert path not in content, (name, path)


@pytest.mark.parametrize(
    ("target", "variable", "gcc"),
    [
        ("aarch64", "CC_AARCH64_LINUX_GNU", "aarch64-linux-gnu-gcc"),
        ("armv7a", "CC_ARMV7A_LINUX_GNUEABIHF", "arm-linux-gnueabihf-gcc"),
    ],
)
def test_a_cross_gcc_serves_as_well(
    target: str,
    variable: str,
    gcc: str,
    monkeypatch: pytest.MonkeyPatch,
    needs_tool: Callable[..., str],
) -> None:
    """What Debian's compiler links is right, and two builds are one."""
    needs_tool(load_core(target).runner)
    monkeypatch.setenv(variable, needs_tool(gcc))
    program = compiled.__wrapped__(target)
    assert verify(program, on=program.on("qemu")).passed
    assert compiled.__wrapped__(target).artefact.sections == program.artefact.sections


MAIN = """
#include "vit.h"
#include <stdio.h>

static unsigned char arena[VIT_ARENA_BYTES] __attribute__((aligned(64)));

int main(void) {
  static float image[VIT_INPUT0_BYTES / sizeof(float)], scores[VIT_OUTPUT0_BYTES / sizeof(float)];
  if (vit_predict(image, scores, arena) != 0) return 1;
  for (unsigned i = 0; i < sizeof scores / sizeof *scores; i++) printf("%.9g\\n", scores[i]);
  return 0;
}
"""


@pytest.mark.parametrize(
    ("target", "emulator", "gcc", "root"),
    [
        ("host", "", "cc", ""),
        ("aarch64", "qemu-aarch64", "aarch64-linux-gnu-gcc", "/usr/aarch64-linux-gnu"),
        ("armv7a", "qemu-arm", "arm-linux-gnueabihf-gcc", "/usr/arm-linux-gnueabihf"),
    ],
)
@pytest.mark.parametrize("library", [["libvit.a"], ["-L.", "-lvit", "-Wl,-rpath,."]])
def test_a_c_program_takes_either_library(
    target: str,
    emulator: str,
    gcc: str,
    root: str,
    library: list[str],
    tmp_path: Path,
    needs_tool: Callable[..., str],
) -> None:
    """A plain main, built by the system's compiler, links statically or not, and is right."""
    needs_tool(gcc)
    program = compiled(target) if target == "host" else for_target(target, needs_tool)
    for name in FILES - {"vit-run"}:
        (tmp_path / name).write_bytes(program.artefact.sections[f"kernels/{name}"])
    (tmp_path / "main.c").write_text(MAIN)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([gcc, *strict, "main.c", *library, "-o", "main"], cwd=tmp_path, check=True)
    command = [emulator, "-L", root, "./main"] if emulator else ["./main"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = compiled("host")(np.zeros((1, 1, 8, 8), np.float32))
    np.testing.assert_allclose(np.array(done.stdout.split(), float), wanted[0], rtol=1e-5)


def test_a_folder_holds_a_program_that_runs(pi: Program, tmp_path: Path) -> None:
    """`compile -o FOLDER` gives all files, the program executable; a host's is made for it."""
    for name, program in (("pi", pi), ("host", compiled("host"))):
        folder = tmp_path / name
        write(program, folder / "vit.bfly", True, False)
        assert {path.name for path in folder.iterdir()} == {*FILES, "vit.bfly"}
        assert (folder / "vit-run").stat().st_mode & 0o111 == 0o111
        assert (folder / "vit.h").stat().st_mode & 0o111 == 0
    np.save(tmp_path / "x.npy", IMAGES)
    command = [str(tmp_path / "host" / "vit-run"), "x.npy", "y.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    wanted = np.concatenate([compiled("host")(image[None]) for image in IMAGES])
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)
    assert "kernels/vit-run" not in compiled("host").artefact.sections


def test_the_commands(pi: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` and `verify` take --on qemu, and say so where this machine cannot run it."""
    path = pi.save(tmp_path / "vit.bfly")
    assert next_commands(pi, Path("x.bfly")).startswith("butterflyc verify x.bfly --on qemu   ")
    np.savez(tmp_path / "in.npz", x=IMAGES)
    line = ["run", str(path), "--inputs", str(tmp_path / "in.npz"), "--out"]
    assert run([*line, str(tmp_path / "out.npz"), "--on", "qemu"]) == 0
    with np.load(tmp_path / "out.npz") as results:
        np.testing.assert_allclose(results[results.files[0]], compiled("host")(IMAGES), rtol=1e-4)
    assert run(["verify", str(path), "--on", "qemu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert document["pass"] is True
    assert document["routing_agreement"] == 1
    assert run(["verify", str(path)]) == 6
    assert "--on qemu" in capsys.readouterr().err
    assert run(["bench", str(path), "--on", "qemu"]) == 6
    assert "are not counted" in capsys.readouterr().err


def test_an_arm_runs_what_is_for_it(pi: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the library is loaded, and `verify` is offered without an emulator."""
    monkeypatch.setattr("butterflyc.compiler.run.native.this_architecture", lambda: "aarch64")
    check_architecture(pi.artefact.section("kernels/libvit.so"))
    with pytest.raises(Incompatible, match="needs the CPU feature asimd, which"):
        pi.on("native")
    monkeypatch.setattr(cross, "this_architecture", lambda: "aarch64")
    assert next_commands(pi, Path("x.bfly")).startswith("butterflyc verify x.bfly   ")


def test_an_arm_of_64_bits_has_what_one_of_32_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux does not list neon where it has asimd, and programs of 32 bits find it there."""
    monkeypatch.setattr(Path, "read_text", lambda self: "Features\t: fp asimd crc32\n")
    assert cpu_features() >= {"asimd", "neon"}
    monkeypatch.setattr(Path, "read_text", lambda self: "Features\t: half thumb vfpv3\n")
    assert "neon" not in cpu_features()


def test_a_library_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be loaded, for whatever reason, is told as such."""
    sections = dict(compiled("host").artefact.sections)
    sections["kernels/libvit.so"] = sections["kernels/libvit.so"][:100]
    broken = Program(replace(compiled("host").artefact, sections=sections))
    with pytest.raises(Incompatible, match="this system cannot load the library"):
        broken.on("native")


def test_without_an_emulator(pi: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package that has it is named."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="qemu-aarch64 is not installed") as caught:
        pi.on("qemu")
    assert "qemu-user" in str(caught.value.help)


def hosted(pi: Program, place: UserMode, program: bytes | None = None) -> Hosted:
    code = program or pi.artefact.section("kernels/vit-run")
    return Hosted(code, pi.inputs, pi.outputs, place)


def test_a_processor_that_is_too_old(needs_tool: Callable[..., str]) -> None:
    """An instruction that the emulated processor lacks is told as that."""
    program = for_target("cortex-a76", needs_tool)
    trap = UserMode("qemu-aarch64", "cortex-a53")
    code = bytearray(program.artefact.section("kernels/vit-run"))
    entry = int.from_bytes(code[24:32], "little")
    at = code_offset(bytes(code), entry)
    code[at : at + 4] = bytes.fromhex("00940f4e")  # sdot v0.4s, v0.16b, v15.16b
    with pytest.raises(Incompatible, match="lacks an instruction that the program uses"):
        hosted(program, trap, bytes(code)).many([(IMAGES[:1],)])


def code_offset(elf: bytes, address: int) -> int:
    """Where ``address`` lies in the file, by its program headers."""
    table, size, count = (
        int.from_bytes(elf[32:40], "little"),
        int.from_bytes(elf[54:56], "little"),
        int.from_bytes(elf[56:58], "little"),
    )
    for at in range(table, table + size * count, size):
        offset, start, _, length = (
            int.from_bytes(elf[at + i : at + i + 8], "little") for i in (8, 16, 24, 32)
        )
        if elf[at] == 1 and start <= address < start + length:
            return offset + address - start
    raise AssertionError(f"{address:#x} is not in the file")


def test_what_else_can_go_wrong(pi: Program) -> None:
    """A program that takes too long, one that is none, and an emulator that fails are told."""
    with pytest.raises(ToolFailed, match="took more than 0 s"):
        hosted(pi, UserMode("qemu-aarch64", "cortex-a53", 0)).many([(IMAGES[:1],)])
    with pytest.raises(ToolFailed, match=r"status 1 on qemu-aarch64: .*unable to find CPU"):
        hosted(pi, UserMode("qemu-aarch64", "cortex-z80")).many([(IMAGES[:1],)])

    class Failing(UserMode):
        def run(self, *_: object) -> object:  # type: ignore[override]
            return Finished(12, "vit-run: the model returned status -2 for sample 0", {})

    with pytest.raises(RunFailed, match="on qemu-aarch64: vit-run: the model returned status -2"):
        hosted(pi, Failing("qemu-aarch64", None)).many([(IMAGES[:1],)])


def test_many_samples_go_in_lots(pi: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few fit at once, each sample gets its own outputs."""
    wanted = pi.on("qemu")(IMAGES)
    monkeypatch.setattr("butterflyc.compiler.run.hosted.LOT_BYTES", 3 * 300)
    np.testing.assert_array_equal(pi.on("qemu")(IMAGES), wanted)


@pytest.mark.parametrize("target", ["host", "cortex-a53", "armv7a"])
def test_the_program_computes_in_threads(
    target: str, tmp_path: Path, needs_tool: Callable[..., str]
) -> None:
    """In all that it was compiled for, or fewer, with the same bits; more are refused."""
    emulator = () if target == "host" else (needs_tool(load_core(target).runner),)
    program = compiled(target, threads=3)
    ((name, content),) = programs_of(program, lambda _: None).items()
    (tmp_path / name).write_bytes(content)
    (tmp_path / name).chmod(0o755)
    np.save(tmp_path / "images.npy", IMAGES[:4, None])

    def run_in(*threads: str) -> subprocess.CompletedProcess[str]:
        command = [*emulator, f"./{name}", *threads, "images.npy", "scores.npy"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    found = []
    for words in ((), ("--threads", "1"), ("--threads", "2"), ("--threads", "3")):
        assert run_in(*words).returncode == 0
        found.append(np.load(tmp_path / "scores.npy"))
    for scores in found[1:]:
        np.testing.assert_array_equal(scores, found[0])
    refused = run_in("--threads", "4")
    assert refused.returncode == 2
    assert "--threads takes a number of 1 to 3, got 4" in refused.stderr
