"""What goes where on a board, to the byte; what does not fit is told with what would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import butterflyc as bc
from butterflyc.compiler.errors import DoesNotFit
from butterflyc.compiler.ir import Graph, Node, Type, constant, input_node, make
from butterflyc.compiler.ir.build import result
from butterflyc.compiler.run.bare_metal import available, build, object_symbols, sizes
from butterflyc.kernels.lanes import Lanes
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program
from butterflyc.targets import mcu
from butterflyc.targets.code_size import Code, estimated
from butterflyc.targets.experts import experts_of
from butterflyc.targets.memories import sized
from butterflyc.targets.placement import MEMORIES, Placement, layer_of, place
from butterflyc.targets.registry import Core, load_core

from .firmware import sources

GOLDEN = Path(__file__).parent / "golden" / "does_not_fit.txt"
IMAGES = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
MACHINES = ["rv32imc", "cortex-m4", "esp32"]
MAIN = """\
#include "vit.h"
static unsigned char arena[VIT_ARENA_BYTES] __attribute__((aligned(64)));
static int8_t input[VIT_INPUT0_BYTES], output[VIT_OUTPUT0_BYTES];
int main(void) { return vit_predict(input, (void *)output, arena); }
"""


@cache
def compiled(target: str = "c99", experts: int = 4, router: str = "topk_softmax") -> Program:
    torch.manual_seed(0)
    layer = ButterflyConfig(16, 32, experts, 2, angle_std=1.0, gate=router)  # type: ignore[arg-type]
    shape = ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=16, heads=2, layers=2, mlp=layer
    )
    examples = (torch.from_numpy(IMAGES[:1]),)
    return bc.compile(ViT(shape).eval(), examples, target=target, calibration=IMAGES, name="vit")


def planned(**options: int | str) -> Graph:
    return compiled(**options).stages["plan_memory"]  # type: ignore[arg-type]


def placed(core: Core, code: int = 4000) -> Placement:
    return place(planned(), core, Lanes(), Code(code))


@given(
    st.sampled_from(["esp32", "esp32c3", "nrf52840", "c99"]),
    st.integers(2, 1 << 21), st.integers(1, 1 << 15), st.sampled_from([None, 1 << 12, 1 << 20]),
)  # fmt: skip
def test_what_fits_is_within_what_is_usable(
    name: str, flash: int, sram: int, psram: int | None
) -> None:
    """Each memory holds no more than it has, or says by how much; nothing is lost or twice."""
    given: dict[str, int] = {"sram": sram}
    reserved = {"esp32": 1 << 19, "esp32c3": 1 << 19, "nrf52840": 3 << 16, "c99": 0}[name]
    given["flash"] = reserved + flash
    if psram and name in ("esp32", "c99"):
        given["psram"] = psram
    found = placed(sized(load_core(name), given, MEMORIES))
    graph = planned()
    whats = [part.what for region in found.regions for part in region.parts]
    assert sorted(whats) == ["arena", "code", "inputs", "outputs", "stack", "weights"]
    digests = {node["digest"] for node in graph.nodes if node.op == "constant"}
    assert len(found.constants) == len(digests) == len(graph.constants)
    assert sum(c.bytes for c in found.constants) == sum(a.nbytes for a in graph.constants.values())
    for region in found.regions:
        usable = region.usable
        assert usable is not None
        assert region.excess == max(0, region.used - usable)
        assert not found.fits or region.used <= usable
    assert found.fits == all(region.excess == 0 for region in found.regions)
    # PSRAM is slower: it holds the arena only where SRAM cannot.
    if found.arena_memory == "psram":
        assert found.region("sram").used + found.arena.bytes > sram


def test_the_peak_is_what_is_alive() -> None:
    """The buffers at the fullest step are as many bytes as it says, and no step has more."""
    arena = placed(load_core("c99")).arena
    assert arena.peak
    assert sum(held.bytes for held in arena.held) == arena.peak.bytes <= arena.bytes
    assert arena.peak.bytes == planned().notes["arena_lower_bound"]
    assert all(step.bytes <= arena.peak.bytes for step in arena.steps)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("blocks.0.mlp.w", "blocks.0"), ("embed.weight", "embed"), ("cls", "cls"), ("0.bias", "0")],
)
def test_layers_of_names(name: str, layer: str) -> None:
    """A layer is a name up to its number, or its first word."""
    assert layer_of(name) == layer


@pytest.mark.parametrize("more", [3, 5, 7])
@pytest.mark.parametrize("router", ["topk_softmax", "softmax_topk"])
def test_experts_cost_what_they_cost(more: int, router: str) -> None:
    """The model with another number of experts has the bytes of weights that were foretold."""
    found = experts_of(planned(router=router))
    assert found
    other = planned(experts=more, router=router)
    assert (found.count, found.chosen, found.layers) == (4, 2, 2)
    assert found.weights(more) == place(other, load_core("c99"), Lanes(), Code(0)).weights


@given(st.integers(0, 1 << 20))
def test_the_most_experts_that_fit(usable: int) -> None:
    """One more would not fit; none is given where the rest alone is too much."""
    found = experts_of(planned())
    assert found
    most = found.fitting(usable)
    assert most == 0 or found.weights(most) <= usable
    assert found.weights(most + 1) > usable


def test_a_model_without_experts_has_none() -> None:
    """A graph that routes nothing has no bytes an expert, and no step: its arena is empty."""
    x = input_node("x", Type("i8", (4,)))
    graph = Graph("plain", (x,), (x,))
    assert experts_of(graph) is None
    found = place(graph, load_core("esp32"), Lanes(), Code(0))
    assert found.arena.peak is None
    tight = sized(load_core("esp32"), {"sram": 64}, MEMORIES)
    with pytest.raises(DoesNotFit, match="sram needs 1,544 bytes") as caught:
        mcu.place(graph, tight, "plain")
    assert caught.value.where == "inputs, outputs and stack alone"


def routed(count: int, blocks: tuple[int, ...], other: int) -> Graph:
    """Two layers that choose among ``count`` and ``other`` experts."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("i8", (3, 4)))
    rows: Node = make("reshape", x, shape=(3, 1, 4))
    outputs = []
    for experts in (count, other):
        scores = input_node(f"s{experts}", Type("i16", (3, experts)))
        choice = make("top_k", scores, k=1)
        chosen = result(choice, 1)
        held = constant(store, np.ones((experts, *blocks), np.int16), f"b{experts}")
        outputs.append(make("integer_rotate", rows, held, chosen, shift=1))
    inputs = tuple(dict.fromkeys([x, *(o.operands[2].operands[0].operands[0] for o in outputs)]))
    return Graph("g", inputs, tuple(outputs), store)


def test_layers_with_different_numbers_of_experts() -> None:
    """No one number is foretold for layers that differ in it."""
    assert experts_of(routed(4, (2, 2, 2), 5)) is None


def error_of(graph: Graph, name: str, **given: str) -> DoesNotFit:
    core = sized(load_core(name), given, MEMORIES)
    with pytest.raises(DoesNotFit) as caught:
        mcu.place(graph, core, "vit")
    assert caught.value.exit_status == 4
    return caught.value


def test_what_is_said(golden: Callable[[Path, str], None]) -> None:
    """The whole text of each kind of misfit: SRAM, flash, a partition, and both at once."""
    few, many = planned(), planned(experts=128)
    cases: Mapping[str, tuple[Graph, str, dict[str, str]]] = {
        "sram": (few, "esp32", {"sram": "4K"}),
        "flash, fewer experts": (many, "esp32", {"flash": "580K"}),
        "partition": (many, "esp32s3", {"partition": "580K"}),
        "partition of a small flash": (few, "esp32c3", {"flash": "520K", "partition": "518K"}),
        "flash in the chip": (few, "nrf52840", {"flash": "201K"}),
        "both": (few, "esp32c6", {"flash": "520K", "sram": "4K"}),
    }
    texts = [f"{what}\n{error_of(case[0], case[1], **case[2])}" for what, case in cases.items()]
    golden(GOLDEN, "\n\n".join(texts) + "\n")


def test_no_board_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing that is known would help, that is what the error says."""
    monkeypatch.setattr("butterflyc.targets.fit.core_names", lambda: ())
    error = error_of(planned(), "esp32c3", sram="4K")
    assert error.help
    assert re.fullmatch(
        r"--sram \dK, if the firmware leaves that much of the chip's 400K in one piece", error.help
    )
    graph = planned()
    core = sized(load_core("c99"), {"sram": "4K"}, MEMORIES)
    with pytest.raises(DoesNotFit) as caught:
        mcu.place(graph, core, "vit")
    assert caught.value.help == "no board that is known holds it: make the model smaller"


def wide(snr: float) -> Program:
    """A model whose down-projection is most of its weights."""
    torch.manual_seed(0)
    layer = ButterflyConfig(32, 256, 2, 1, angle_std=1.0)
    shape = ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=32, heads=2, layers=1, mlp=layer
    )
    examples, model = (torch.from_numpy(IMAGES[:1]),), ViT(shape).eval()
    return bc.compile(
        model, examples, target="esp32c3", calibration=IMAGES, name="wide", weight_snr=snr
    )


def test_fewer_digits_save_what_is_said() -> None:
    """Where they make a model fit, and the model compiled so has the bytes that were foretold."""
    before, after = wide(40), wide(20)
    graph, saved = before.stages["plan_memory"], before.memory["weights"] - after.memory["weights"]
    assert saved > 1000
    sections = before.artefact.sections
    files = {key.removeprefix("kernels/"): sections[key] for key in sections if "src/" in key}
    full = mcu.place(graph, load_core("esp32c3"), "wide", files).region("flash").used
    for missing, told in ((saved - 64, True), (saved + 64, False)):
        core = sized(load_core("esp32c3"), {"partition": (1 << 19) + full - missing}, MEMORIES)
        with pytest.raises(DoesNotFit) as caught:
            mcu.place(graph, core, "wide", files)
        assert (f"--weight-snr 20: saves {saved:,} bytes" in str(caught.value.help)) is told


@settings(max_examples=30)
@given(st.integers(100, 20_000), st.integers(100, 20_000))
def test_the_figures_of_an_error_add_up(flash: int, sram: int) -> None:
    """Needed less usable is too many, and what an option is said to need is enough."""
    core = sized(load_core("c99"), {"flash": flash, "sram": sram}, MEMORIES)
    try:
        mcu.place(planned(), core, "vit")
    except DoesNotFit as error:
        found = re.findall(r"needs ([\d,]+) bytes, ([\d,]+) are usable: ([\d,]+) too", error.what)
        assert found
        for needs, usable, excess in [[int(n.replace(",", "")) for n in row] for row in found]:
            assert needs - usable == excess > 0


def test_suggestions_are_enough() -> None:
    """Taken up, each option that an error names makes the model fit."""
    graph = planned()
    text = str(error_of(graph, "esp32", sram="4K").help)
    options = dict(re.findall(r"--(\w+) (\d+[KM])", text))
    assert set(options) == {"sram", "psram"}
    for name, size in options.items():
        given = {"sram": "4K", name: size}
        assert mcu.place(graph, sized(load_core("esp32"), given, MEMORIES), "vit").fits
    text = str(error_of(graph, "esp32s3", partition="520K").help)
    (size,) = re.findall(r"--partition (\d+K)", text)
    larger = sized(load_core("esp32s3"), {"partition": size}, MEMORIES)
    assert mcu.place(graph, larger, "vit").fits


def test_compile_tells_before_kernels_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot fit is refused by compile, with the sizes that it was given."""
    monkeypatch.setattr(mcu, "emit", lambda *_: pytest.fail("kernels were built"))
    with pytest.raises(DoesNotFit, match="does not fit nrf52840: sram needs"):
        bc.compile(
            ViT(ViTConfig(image=8, channels=1, patch=4, classes=3, d_model=16, heads=2, layers=1,
                          mlp=ButterflyConfig(16, 32, 4, 2))).eval(),
            (torch.from_numpy(IMAGES[:1]),), target="nrf52840", memories={"sram": "2K"},
        )  # fmt: skip


def test_code_that_is_only_estimated_does_not_refuse_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is too large only by the estimate is refused once the code is all there is to know."""
    graph = planned()
    weights = placed(load_core("c99")).weights
    core = sized(load_core("c99"), {"flash": weights + 10}, MEMORIES)
    assert not mcu.place(graph, core, "vit").fits
    with pytest.raises(DoesNotFit, match="flash needs"):
        mcu.place(graph, core, "vit", {"vit.c": b""})


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    """Each machine whose tools are there."""
    name = str(request.param)
    for missing in available(name):
        needs_tool(missing.tool)
    return name


def test_the_report_has_the_figures_of_the_linker(machine: str, tmp_path: Path) -> None:
    """Weights, arena, in- and outputs to the byte, and the code of the objects that were built."""
    program = compiled(machine)
    report = json.loads(program.artefact.section("report/report.json"))
    elf = build(machine, {**sources(program), "main.c": MAIN}, tmp_path)
    parts = {
        part["what"]: part["bytes"] for each in report["memory"].values() for part in each["parts"]
    }
    linked = {symbol.name: symbol.size for symbol in object_symbols(machine, elf)}
    assert linked["vit_weights"] == parts["weights"] == report["weights"]["bytes"]
    assert linked["arena"] == parts["arena"] == report["arena"]["bytes"]
    assert linked["input"] == parts["inputs"]
    assert linked["output"] == parts["outputs"]
    objects = [sizes(machine, tmp_path / f"{file}.o") for file in ("vit.c", "vit_kernels.c")]
    assert sum(size.text + size.data + size.bss for size in objects) == parts["code"]
    assert report["code"]["measured"] == machine
    high = estimated(program.stages["plan_memory"]).bytes
    assert 0.2 * high <= parts["code"] <= high


def test_the_report_tells_all() -> None:
    """What the report says of weights, experts, arena and files agrees with the program."""
    program = compiled("esp32c3")
    report = program.placement
    assert report
    assert (report["model"], report["target"], report["mode"]) == ("vit", "esp32c3", "int8")
    weights = report["weights"]
    assert weights["bytes"] - weights["padding"] == program.memory["weights"]
    for key in ("by_kind", "by_layer"):
        assert sum(weights[key].values()) == weights["bytes"]
    assert {layer["experts"] for layer in report["experts"]["layers"]} == {4}
    assert report["experts"]["would_fit"] > 1000
    assert report["arena"]["peak"]["bytes"] == max(s["bytes"] for s in report["arena"]["timeline"])
    assert report["accuracy"]["samples"] == 9
    assert report["accuracy"]["max_abs"] < report["accuracy"]["largest"]
    files = {s.removeprefix("kernels/") for s in program.artefact.sections if "kernels/" in s}
    assert set(report["files"]) == files
    text = program.artefact.section("report/report.md").decode()
    for part in ("# vit on esp32c3", "## Experts", "4 experts a layer, 2 of them a token"):
        assert part in text
    assert compiled("c99").placement != report


def test_a_report_without_experts(tmp_path: Path) -> None:
    """A model that routes nothing, compiled without a compiler of the chip, is reported too."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()).eval()
    program = bc.compile(model, (torch.randn(1, 6),), target="c99", name="net")
    report = program.placement
    assert report
    assert "would_fit" not in report["experts"]
    assert any("high estimate" in warning for warning in report["warnings"])
    text = program.artefact.section("report/report.md").decode()
    assert "No layer chooses experts." in text
    assert "no limit known" in text
