"""Figure 6 of ButterflyViT: how many experts fit into the memories of four devices."""

from __future__ import annotations

from dataclasses import dataclass

from ..targets.registry import load_core
from .accounting import (
    BUTTERFLY_VIT,
    FLOAT_BITS,
    GIB,
    HALF_BITS,
    TERNARY_BITS,
    equation_11_bytes,
    expert_bytes,
    experts_that_fit,
    matrix_bytes,
    standard_bytes,
)
from .rows import Row, Table


@dataclass(frozen=True)
class Device:
    """A device of Figure 6. ``ram`` bytes are all of it, ``flash`` those left for a model.

    ``core`` is our target with its processor. ``flash`` is None where weights are read from RAM.
    ``page``: experts as the project page of ButterflyMoE's author prints them, None where it does
    not.
    """

    key: str
    name: str
    ram: int
    core: str
    flash: int | None = None
    page: str | None = None


# What the papers' text says of the experts on both microcontrollers together.
MICROCONTROLLERS_PRINTED = "3-6"


def devices() -> tuple[Device, ...]:
    """The four devices; memories of microcontrollers are those of our boards' files."""
    return (
        Device("raspberry-pi", "Raspberry Pi 5, 8 GB", 8 * GIB, "cortex-a76", page="21,079"),
        Device("jetson-nano", "Jetson Nano, 4 GB", 4 * GIB, "cortex-a57", page="10,540"),
        _board("esp32s3", "ESP32-S3", "131"),
        _board("nrf52840", "Arduino Nano 33 BLE", None),
    )


def _board(core: str, name: str, page: str | None) -> Device:
    memories = {memory.name: memory for memory in load_core(core).memories}
    return Device(core, name, memories["sram"].nominal, core, memories["flash"].usable, page)


# Each way to count an expert, and why it gives something else.
WAYS = {
    "standard": ("StandardMoE, fp32", "Two fp32 matrices an expert and layer."),
    "equation-11": ("eq. 11: 10,240 B an expert and layer", "fp32, two numbers a rotation."),
    "table-2": ("Table 2: 5,120 B an expert and layer", "fp32, one angle a rotation."),
    "text": ("eq. 11's text: 2,560 B an expert and layer", "fp16, one angle a rotation."),
}


def fitting(memory: float) -> dict[str, int]:
    """Experts of the papers' 7 layers that fit ``memory`` bytes, by the keys of ``WAYS``.

    As eq. 11 has it: W_hat and angles alone, no W_down, no attention, no activations.
    """
    stack = BUTTERFLY_VIT
    shared = matrix_bytes(stack, TERNARY_BITS)
    return {
        "standard": experts_that_fit(memory, 0, standard_bytes(stack, 1)),
        "equation-11": experts_that_fit(memory, shared, equation_11_bytes(stack)),
        "table-2": experts_that_fit(memory, shared, expert_bytes(stack, FLOAT_BITS)),
        "text": experts_that_fit(memory, shared, expert_bytes(stack, HALF_BITS)),
    }


def fitting_flash(flash: float) -> int:
    """Experts that fit ``flash`` bytes beside W_hat and an int8 W_down, with fp16 angles.

    Attention, embeddings and code are not counted.
    """
    stack = BUTTERFLY_VIT
    shared = matrix_bytes(stack, TERNARY_BITS) + matrix_bytes(stack, 8)
    return experts_that_fit(flash, shared, expert_bytes(stack, HALF_BITS))


def placed_key(device: Device) -> str:
    """The key of the row with the experts that our placement finds on ``device``."""
    return f"figure6.{device.key}.{'flash' if device.flash else 'ram.ours'}"


def figure_6() -> Table:
    """Figure 6 of ButterflyViT: experts that fit, by device and by the way they are counted."""
    rows: list[Row] = []
    for device in devices():
        rows += _rows(device)
    note = (
        "7 layers, d = 256, F = 1024. `RAM` rows put W_hat and all angles into the whole RAM, as "
        "eq. 11 counts; `flash` rows count W_down too, in the flash that the firmware leaves. "
        "Measured: the papers' whole model in `int8`, as `butterflyc plan` places it, with 16-bit "
        "angles and kernels of the smallest constants. "
        "Memories of the microcontrollers are those of `targets/cores/`. The paper's text says "
        f"{MICROCONTROLLERS_PRINTED} experts for ESP32-S3 and Arduino Nano 33 together; what its "
        "figure prints for the other two is not known to us. The [project page]"
        "(https://github.com/AryanKarmore/butterflymoe) of ButterflyMoE's author gives figures for "
        "a model of its own, beside StandardMoE's 63, 31 and 0; we know no formula that gives them."
    )
    title = "Figure 6 of ButterflyViT: experts that fit"
    return Table("figure6", title, note, tuple(rows), "devices.png")


def _rows(device: Device) -> list[Row]:
    printed = MICROCONTROLLERS_PRINTED if device.flash else None
    rows = []
    for way, count in fitting(device.ram).items():
        name, why = WAYS[way]
        key, what = f"figure6.{device.key}.ram.{way}", f"{device.name}, RAM; {name}"
        paper = printed if way != "standard" else None
        rows.append(Row(key, what, "experts", paper, count, f"{count:,}", why))
    rows += _placed(device, printed)
    if device.page is not None:
        key, what = f"figure6.{device.key}.page", f"{device.name}, the author's project page"
        why = "Of ButterflyMoE; the page does not say which widths, layers and depths it counts."
        rows.append(Row(key, what, "experts", device.page, None, None, why))
    return rows


def _placed(device: Device, printed: str | None) -> list[Row]:
    """Rows of what is in our placements: attention, code, scales and padding too."""
    key = f"figure6.{device.key}"
    if device.flash is None:
        what = f"{device.name}, RAM; the whole model as we place it"
        why = "Attention, W_down, code and activations too; foretold from fewer experts."
        return [Row(placed_key(device), what, "experts", None, None, None, why)]
    count = fitting_flash(device.flash)
    what, why = f"{device.name}, flash; int8 W_down, 16-bit angles", _FLASH_WHY
    rows = [Row(placed_key(device), what, "experts", printed, count, f"{count:,}", why)]
    what, why = f"{device.name}, SRAM; activations and stack", "Weights and code stay in flash."
    rows.append(Row(f"{key}.sram", what, "bytes", None, None, None, why))
    if not count:
        what = f"{device.name}, flash that is missing"
        why = "With two experts a layer, as many as a token goes to."
        rows.append(Row(f"{key}.missing", what, "bytes", None, None, None, why))
    return rows


_FLASH_WHY = "The formula has no attention, no routers and no code, which take their part of flash."
