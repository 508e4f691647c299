"""NVIDIA GPUs: what is compiled for them without one, and what interpretation makes of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check
from butterflyc.cli.app import run
from butterflyc.cli.compile import next_commands
from butterflyc.compiler.errors import BadInput, Incompatible, ToolMissing, Unsupported, UsageError
from butterflyc.compiler.run import gpu as running
from butterflyc.compiler.run.plans import launches_of, unpack_plans
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.passes.select_kernels import spec_of
from butterflyc.program import Program
from butterflyc.targets import cuda, tuned
from butterflyc.targets.registry import core_names, load_core

MODES = ("f16", "bf16", "f32", "i8")
# Largest error of an output, relative, against PyTorch in float32.
LIMITS = {"f16": 2e-3, "bf16": 2e-2, "f32": 1e-5, "i8": 1e-2}
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@cache
def model() -> ViT:
    torch.manual_seed(0)
    layer = ButterflyConfig(d_model=32, d_ff=64, experts=4, top_k=2, angle_std=1.0)
    sizes = {"image": 8, "channels": 1, "patch": 2, "classes": 10, "d_model": 32, "heads": 2}
    return ViT(ViTConfig(**sizes, layers=2, mlp=layer)).eval()


@cache
def program(mode: str = "f16", target: str = "cuda-sm90") -> Program:
    return bc.compile(model(), (IMAGES[:1],), target=target, mode=mode)


def plans_of(program: Program) -> Any:
    return unpack_plans(program.artefact.section("kernels/plans.json"))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_computes_what_the_model_does(mode: str) -> None:
    """Interpreted on the CPU, tensors in and out, three images in turn."""
    on = program(mode).on("interpreter")
    with torch.no_grad():
        wanted = model()(IMAGES)
    got = on(IMAGES)
    assert isinstance(got, torch.Tensor)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < LIMITS[mode]
    kernels = {layer.kernel for layer in plans_of(program(mode)).values()}
    assert len(plans_of(program(mode))) == 2, "both layers have kernels of their own"
    assert all(name.startswith("gpu_") for name in kernels)


def check_deep(mode: str, sizes: dict[str, int], **turns: Any) -> None:
    """A layer alone has a kernel for rotations of many layers, and is PyTorch's."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"experts": 3, "top_k": 2, "angle_std": 1.0}
    layer = ButterflyMoE(ButterflyConfig(**common, **sizes, **turns)).eval()
    x = torch.randn(2, 5, sizes["d_model"])
    found = bc.compile(layer, (x,), target="cuda-sm75", mode=mode)
    (plan,) = plans_of(found).values()
    assert plan.kernel == "gpu_deep_library"
    with torch.no_grad():
        wanted = layer(x)
    got = found.on("interpreter")(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < LIMITS[mode]


@pytest.mark.parametrize("shuffle", ["deinterleave", "interleave"])
@pytest.mark.parametrize("layers", range(1, 7))
def test_any_number_of_layers(layers: int, shuffle: Any) -> None:
    """Rotations of one to six layers, with either shuffle, of widths that are padded."""
    turns = {"layers_in": layers, "layers_out": 7 - layers, "shuffle": shuffle}
    check_deep("f16", {"d_model": 48, "d_ff": 40}, **turns)


@pytest.mark.parametrize("mode", ["f32", "i8"])
def test_many_layers_in_other_modes(mode: str) -> None:
    """Rotations of three and of five layers in float32, and of rows as codes."""
    check_deep(mode, {"d_model": 32, "d_ff": 64}, layers_in=3, layers_out=5)


def test_verification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify --interpret` passes, with the golden pairs and with near-ties forced."""
    path = program().save(tmp_path / "m.bfly")
    assert run(["verify", str(path), "--interpret"]) == 0
    assert "PASS" in capsys.readouterr().out
    assert next_commands(program(), path).startswith(f"butterflyc verify {path} --interpret   ")
    outcome = check(program(), model(), [IMAGES.numpy()], on=program().on("interpreter"))
    assert outcome.passed
    assert outcome.routing_agreement is not None
    assert outcome.routing_agreement > 0.99


def test_ties_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples whose choice of experts rounding may change are compared with that choice given."""
    monkeypatch.setitem(bc.verify.NEAR_TIES, "f16", 1e9)
    outcome = check(program(), model(), [IMAGES[:1].numpy()], on=program().on("interpreter"))
    assert outcome.near_ties == (0,)
    assert outcome.forced_max_rel is not None
    assert 0 < outcome.forced_max_rel < LIMITS["f16"]


def test_an_artefact_holds_all_that_a_gpu_needs(tmp_path: Path) -> None:
    """Code of every launch, plans, codes of 2 bits; loaded again, the results are the same."""
    loaded = bc.load(program().save(tmp_path / "m.bfly"))
    symbols = {launch.symbol for launch in launches_of(plans_of(loaded))}
    cubins = {name for name in loaded.artefact.sections if name.endswith(".cubin")}
    assert cubins == {f"kernels/sm90/{symbol}.cubin" for symbol in symbols}
    last = loaded.stages["pack_weights"]
    layouts = [n.type.layout or "" for n in last.nodes if n.op == "constant"]
    assert len([name for name in layouts if name.startswith("crumbs")]) == 2
    ours, again = (each.on("interpreter")(IMAGES[:1]) for each in (program(), loaded))
    torch.testing.assert_close(again, ours, rtol=0, atol=0)


def test_two_builds_are_one() -> None:
    """Every byte of an artefact is the same the second time."""
    again = bc.compile(model(), (IMAGES[:1],), target="cuda-sm90", mode="f16")
    assert dict(again.artefact.sections) == dict(program().artefact.sections)


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Running says that none is here, and that interpretation stands in."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(ToolMissing, match="compiled for cuda-sm90, and torch sees no NVIDIA GPU"):
        program()(IMAGES[:1])
    path = program().save(tmp_path / "m.bfly")
    assert run(["verify", str(path)]) == 7
    assert "--interpret" in capsys.readouterr().err
    with pytest.raises(ToolMissing, match="no NVIDIA GPU is here"):
        bc.compile(model(), (IMAGES[:1],), target="cuda")


def test_what_cannot_be_interpreted() -> None:
    """A program for a CPU has no GPU kernels; inputs of other shapes are refused as elsewhere."""
    host = bc.compile(model(), (IMAGES[:1],))
    with pytest.raises(Incompatible, match="compiled for host, which is no GPU"):
        host.on("interpreter")
    with pytest.raises(BadInput, match="shape"):
        program().on("interpreter")(IMAGES[..., :7])


def test_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` is the target of this GPU's capability, or of the next lower one that we know."""
    for capability, name in ((90, "cuda-sm90"), (88, "cuda-sm87"), (121, "cuda-sm120")):
        monkeypatch.setattr(cuda, "_capability", lambda found=capability: found)
        assert cuda.here().name == name
        assert cuda.machine(load_core("cuda")).lanes.name == name.removeprefix("cuda-")


def test_an_old_gpu_is_told() -> None:
    """A Jetson Nano's GPU is too old: its CPU is the way."""
    with pytest.raises(Unsupported, match=r"capability 5.3.*7.5") as caught:
        bc.compile(model(), (IMAGES[:1],), target="cuda-sm53")
    assert "cortex-a57" in str(caught.value.help)


def test_modes_that_a_gpu_lacks() -> None:
    """A T4 has no bf16, and no GPU has a8."""
    with pytest.raises(UsageError, match="cuda-sm75 has no mode 'bf16'"):
        cuda.passes(load_core("cuda-sm75"), "bf16")
    with pytest.raises(UsageError, match="no mode 'a8'"):
        cuda.passes(load_core("cuda-sm90"), "a8")


def test_a_core_without_sizes(tmp_path: Path) -> None:
    """A GPU of a user's own needs a table of its sizes."""
    text = (Path(cuda.__file__).parent / "cores" / "cuda-sm90.toml").read_text()
    (tmp_path / "my.toml").write_text(text.replace("cuda-sm90", "my-gpu").partition("# Rates")[0])
    with pytest.raises(UsageError, match="says nothing of its GPU"):
        cuda.machine(load_core("my-gpu", tmp_path / "my.toml"))


@pytest.mark.parametrize("name", [n for n in core_names() if load_core(n).gpu])
def test_every_gpu_has_its_own_capability(name: str) -> None:
    """The name of a target says its capability, as its cpu does."""
    core = load_core(name)
    assert core.gpu is not None
    assert (name, core.cpu) == (f"cuda-sm{core.gpu.capability}", f"sm_{core.gpu.capability}")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling and interpreting name the extra that brings it."""
    monkeypatch.setitem(__import__("sys").modules, "butterflyc.kernels.gpu", None)
    with pytest.raises(ToolMissing, match="Triton is not installed") as caught:
        cuda.kernels()
    assert "butterflyc[gpu]" in str(caught.value.help)
    monkeypatch.setitem(__import__("sys").modules, "butterflyc.kernels.gpu.interpreted", None)
    with pytest.raises(ToolMissing, match="whose interpreter"):
        running.Interpreted().launch(SimpleNamespace(), {})  # type: ignore[arg-type]


def test_inside_torch_compile() -> None:
    """A program is one op to torch.compile and torch.export, on any device, batches and all."""
    host = bc.compile(model(), (IMAGES[:1],))

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = host.module()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x) + 1

    with torch.no_grad():
        wanted = 2 * model()(IMAGES) + 1
    compiled = torch.compile(Twice(), fullgraph=True, backend="eager")
    for form in (compiled, torch.export.export(Twice(), (IMAGES,)).module()):
        np.testing.assert_allclose(form(IMAGES).numpy(), wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_tensors_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the device of the model goes through no array, and a gradient not at all."""
    on = program().on("interpreter")
    with torch.no_grad():
        wanted = on(IMAGES)
    monkeypatch.setattr(torch.Tensor, "numpy", None)
    got = on(IMAGES.clone().requires_grad_())
    assert not got.requires_grad
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_what_was_measured_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was fastest on this kind of GPU is chosen, if it serves the layer."""
    before = program().stages["half_products"]
    (layer, _) = (node for node in before.nodes if node.op == "butterfly_layer")
    gpu = cuda.machine(load_core("cuda-sm90")).lanes

    def chosen(kernel: str, parameters: dict[str, int]) -> set[Any]:
        entry = tuned.Entry(tuned.sizes_of(spec_of(layer)), kernel, parameters, 10.0)
        held = tuned.Tuned("a GPU", gpu.capability, "3.9", "2.13", (entry,))
        monkeypatch.setattr(tuned, "find", lambda *_: (held, "as measured"))
        steps = {step.name: step for step in cuda.passes(load_core("cuda-sm90"), "f16")}
        after = steps["select_kernels"](before)
        return {node.notes["kernel"] for node in after.nodes if node.op == "butterfly_layer"}

    assert chosen("gpu_library", {}) == {"gpu_library"}
    assert chosen("gpu_of_another_release", {}) == {"gpu_fused"}
