"""Models in C, written by hand, on emulated machines: results, figures, and everything told."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from butterflyc.compiler.errors import BadInput, DoesNotFit, ToolFailed, UnknownName
from butterflyc.compiler.ir import Type
from butterflyc.compiler.run import qemu
from butterflyc.compiler.run.bare_metal import ProgramFailed, available
from butterflyc.compiler.run.machine import load_machine, machine_names
from butterflyc.compiler.run.native import RunFailed
from butterflyc.compiler.run.qemu import Emulated

HEADER = """\
#include <stdint.h>
#define TRY_ARENA_BYTES {arena}
{more}
int try_run(const void *const *in, void *const *out, void *arena);
"""
SOURCE = """\
#include "try.h"
{before}
int try_run(const void *const *in, void *const *out, void *arena) {{
    const int8_t *x = in[0];
    int8_t *y = out[0];
    (void)x, (void)y, (void)arena;
    {body}
    return 0;
}}
"""
# So that each sample takes as many instructions as it says.
TURNS = "for (volatile int i = 0; i < x[0]; i++) {}"
STEPS = "#define TRY_STEPS 3\nvoid try_tick(int done);"
ONE = Type("i8", (3,))


@pytest.fixture(params=machine_names())
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    """Each machine whose tools are there."""
    return with_tools(str(request.param), needs_tool)


@pytest.fixture
def rv32(needs_tool: Callable[..., str]) -> str:
    """One machine, for what is the same on all."""
    return with_tools("rv32imc", needs_tool)


def with_tools(machine: str, needs_tool: Callable[..., str]) -> str:
    for missing in available(machine):
        needs_tool(missing.tool)
    return machine


def emulated(
    machine: str,
    body: str,
    before: str = "",
    inputs: tuple[Type, ...] = (ONE,),
    outputs: tuple[Type, ...] = (ONE,),
    arena: int = 64,
    more: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Emulated:
    """A model whose ``try_run`` does ``body``, and whose header holds ``more``."""
    files = {
        "try.h": HEADER.format(arena=arena, more=more),
        "try.c": SOURCE.format(before=before, body=body),
    }
    return Emulated(machine, files, "try", inputs, outputs, progress)


def samples(*first: int) -> list[tuple[np.ndarray, ...]]:
    return [(np.array([x, 1, -2], np.int8),) for x in first]


def test_inputs_and_outputs_of_every_kind(machine: str) -> None:
    """Each input is where its pointer says, each output what was written, whatever their sizes."""
    inputs = (Type("i8", (3,)), Type("i32", (2, 2)), Type("f32", ()))
    outputs = (Type("i32", (2, 2)), Type("u8", (5,)), Type("i8", (3,)))
    model = emulated(
        machine,
        """
        const int32_t *words = in[1];
        if (((uintptr_t)arena | (uintptr_t)in[1] | (uintptr_t)out[0]) % 4 != 0) return 1;
        if ((uintptr_t)arena % 64 != 0 || *(const uint32_t *)in[2] != 0x3f800000u) return 2;
        for (int i = 0; i < 4; i++) ((int32_t *)out[0])[i] = words[i] * 2;
        for (int i = 0; i < 5; i++) ((uint8_t *)out[1])[i] = (uint8_t)(250 + i);
        for (int i = 0; i < 3; i++) ((int8_t *)out[2])[i] = (int8_t)-x[i];
        """,
        inputs=inputs,
        outputs=outputs,
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        x = rng.integers(-127, 127, 3, np.int8)
        words = rng.integers(-(2**30), 2**30, (2, 2), np.int32)
        doubled, counted, negated = model(x, words, np.array(1, np.float32))
        np.testing.assert_array_equal(doubled, words * 2)
        np.testing.assert_array_equal(counted, np.arange(250, 255, dtype=np.uint8))
        np.testing.assert_array_equal(negated, -x)
    assert len(model.instructions) == 2


def test_an_output_that_is_not_written_is_no_zero(rv32: str) -> None:
    """A model that forgets to write a result, or reads what the last run left, is seen to."""
    model = emulated(rv32, "y[0] = *(int8_t *)arena; y[1] = 0; *(int8_t *)arena = 1;")
    for (y,) in model.many(samples(1, 2)):
        assert y.tolist() == [0xA7 - 256, 0, 0xA7 - 256]


def test_no_sample_gives_no_result(rv32: str) -> None:
    """Nothing is run for no samples."""
    model = emulated(rv32, "")
    assert model.many([]) == []
    assert (model.instructions, model.steps, model.stack_bytes) == ((), (), 0)


def test_a_status_is_told_with_its_sample(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample that the model refuses is named, counted over all programs."""
    monkeypatch.setattr(qemu, "LOT_BYTES", 16)
    model = emulated(machine, "if (x[0] == 5) return -7;")
    with pytest.raises(RunFailed, match=f"returned status -7 on {machine} for sample 4") as caught:
        model.many(samples(1, 2, 3, 4, 5, 5))
    assert caught.value.code == "BF996"
    assert model.instructions == ()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("__builtin_trap();", "the program trapped"),
        ("extern void hal_exit(int); hal_exit(0);", "at byte 44: it is cut short"),
        ('extern void hal_print(const char *); hal_print("hello");', "cannot be read at byte 44"),
    ],
)
def test_a_model_that_harms_its_program(rv32: str, body: str, told: str) -> None:
    """A trap, an end that comes early, and output that is not the firmware's are told."""
    model = emulated(rv32, f"if (x[0] == 2) {{ {body} }}")
    with pytest.raises(ProgramFailed, match=told):
        model.many(samples(1, 3, 2, 4))


def test_a_model_that_does_not_end(rv32: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop without an end is stopped, and told."""
    monkeypatch.setattr(qemu, "FIRST_SECONDS", 0.5)
    with pytest.raises(ProgramFailed, match=r"still running after 0\.5 s"):
        emulated(rv32, "for (volatile int i = 0; i < 1;) {}").many(samples(1))


@pytest.mark.parametrize(
    ("limit", "value"), [("LOT_BYTES", 24), ("LOT_OUTPUT_BYTES", 24), ("LOT_INSTRUCTIONS", 1)]
)
def test_lots_change_nothing(
    rv32: str, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Split over several programs, results and figures are those of one, in order."""
    body = f"{TURNS} for (int i = 0; i < 3; i++) y[i] = (int8_t)(2 * x[i]);"
    told: list[str] = []
    model = emulated(rv32, body, progress=told.append)
    many = samples(*range(8))
    whole = model.many(many)
    assert len(told) == 2
    monkeypatch.setattr(qemu, limit, value)
    split = model.many(many)
    assert told[0] == "compiling try for rv32imc"
    # After the first sample seven are left, three or one in a program.
    assert told[2:] == [f"rv32imc: {n} of 8 samples done" for n in starts(limit)]
    for (x,), (one,), (other,) in zip(many, whole, split, strict=True):
        np.testing.assert_array_equal(one, 2 * x)
        np.testing.assert_array_equal(other, 2 * x)
    assert model.instructions[:8] == model.instructions[8:]
    turns = np.diff(model.instructions[:8])
    assert turns.min() == turns.max() > 0


def starts(limit: str) -> list[int]:
    return [1, 2, 3, 4, 5, 6, 7] if limit == "LOT_INSTRUCTIONS" else [1, 3, 5]


def test_stack_is_measured(machine: str) -> None:
    """The deepest run counts, to a few words, and is not forgotten by a shallow one."""
    body = "volatile char deep[4000]; if (x[0] == 1) for (int i = 0; i < 4000; i++) deep[i] = 1;"
    model = emulated(machine, body)
    shallow = emulated(machine, "")
    shallow.many(samples(0))
    model.many(samples(0, 1))
    assert 4000 <= model.stack_bytes - shallow.stack_bytes + 64 <= 4300
    deepest = model.stack_bytes
    model.many(samples(0))
    assert model.stack_bytes == deepest


def test_foreign_symbols(machine: str) -> None:
    """What the model asks of others is named; its own functions and data are not."""
    before = """
    extern int theirs(int);
    static int mine(int x) { return x + 1; }
    int more(int x) { return mine(x); }
    """
    model = emulated(machine, "y[0] = (int8_t)more(theirs(x[0]));", before)
    assert model.foreign == {"theirs"}
    assert model.machine == machine
    assert model.sizes["try.c"].text > 0
    assert set(model.sizes) == {"try.c"}
    with pytest.raises(ToolFailed, match="theirs"):
        model.many(samples(1))


def test_steps_make_up_the_run(machine: str) -> None:
    """Each step is counted by itself, to a few instructions, and telling of them costs nothing."""
    body = f"{TURNS} try_tick(1); try_tick(2); {TURNS} {TURNS} try_tick(3);"
    silent = body.replace("try_tick", "(void)")
    model = emulated(machine, body, more=STEPS)
    plain = emulated(machine, silent)
    model.many(samples(20, 100))
    plain.many(samples(20, 100))
    assert plain.steps == ((), ())
    for steps, whole, without in zip(
        model.steps, model.instructions, plain.instructions, strict=True
    ):
        once, empty, twice = steps
        assert abs(sum(steps) - whole) <= 12
        assert abs(whole - without) <= 24
        assert abs(empty) <= 4
        # Register windows are spilled in whichever step comes to it.
        assert abs(twice - 2 * once) <= 96


def test_an_input_that_does_not_fit(rv32: str) -> None:
    """Another dtype or shape is refused, as on this machine."""
    with pytest.raises(BadInput, match="input 0 is int8"):
        emulated(rv32, "")(np.zeros(4, np.int8))
    with pytest.raises(BadInput, match="input 0 is float32"):
        emulated(rv32, "")(np.zeros(3, np.float32))


def test_an_unknown_machine() -> None:
    """Machines that are emulated are listed."""
    with pytest.raises(UnknownName, match="unknown machine 'rv64'") as caught:
        Emulated("rv64", {}, "try", (ONE,), (ONE,))
    assert "rv32imc" in str(caught.value.help)


def test_too_many_constants_are_told_before_linking(machine: str) -> None:
    """By how much, and which machines have more; where there is room, such a model runs."""
    before = "const int8_t table[5 << 20] = {7, 8};"
    body = "y[0] = ((const volatile int8_t *)table)[x[1]];"
    if load_machine(machine).code_bytes > 5 << 20:
        assert emulated(machine, body, before).many(samples(0))[0][0][0] == 8
        return
    with pytest.raises(DoesNotFit) as caught:
        emulated(machine, body, before)
    error = caught.value
    assert f"try does not fit the emulated {machine}" in error.what
    assert "bytes of code and constants, 4,194,304 are there: 1," in error.what
    assert "compile it for esp32 or rv32imc" in str(error.help)
    assert error.exit_status == 4


def test_too_large_an_arena_is_told(machine: str) -> None:
    """An arena that no machine has is refused with how much it would be."""
    with pytest.raises(DoesNotFit, match="its arena and outputs") as caught:
        emulated(machine, "", arena=40_000_000)
    assert "no emulated machine has as much" in str(caught.value.help)


def test_the_limit_is_where_it_is_told(needs_tool: Callable[..., str]) -> None:
    """What is just let through is linked and runs; eight bytes more are refused."""
    machine = with_tools("cortex-m4", needs_tool)

    def with_table(size: int) -> Emulated:
        before = f"__attribute__((aligned(8))) const int8_t table[{size}] = {{3}};"
        return emulated(machine, "y[0] = ((const volatile int8_t *)table)[0];", before)

    with pytest.raises(DoesNotFit, match="4,194,304 are there") as caught:
        with_table(4 << 20)
    told = re.search(r"there: ([\d,]+) too many", caught.value.what)
    assert told
    most = (4 << 20) - (int(told[1].replace(",", "")) + 7) // 8 * 8
    assert with_table(most).many(samples(0))[0][0][0] == 3
    with pytest.raises(DoesNotFit, match=r"there: [1-8] too many"):
        with_table(most + 8)
