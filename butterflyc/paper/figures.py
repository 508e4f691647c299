"""The pictures of the report, as PNG bytes: the same figures make the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .accounting import BUTTERFLY_VIT, GIB, KIB, MB, compression, millijoules, rounded
from .devices import MICROCONTROLLERS_PRINTED, WAYS, Device, devices, fitting, placed_key
from .drawing import BLUE, GREEN, GREY, ORANGE, RED, SKY, label_line, new_figure, png, style
from .rows import Measured
from .tables import CURVES, FIGURE_4_EXPERTS, memory_curves

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .similarity import Similarity

COLOURS = {"standard": RED, "down-f32": ORANGE, "down-ternary": GREEN, "butterfly": BLUE}


def memory_picture(measured: Measured) -> bytes:
    """Figure 4: MB of the experts of all 7 layers by their number, both axes logarithmic.

    Our artefacts stand in it where ``measured`` has them. This and the other pictures raise
    ToolMissing without matplotlib.
    """
    counts = [2**power for power in range(1, 9)]
    with style():
        figure, (axes,) = new_figure(8.4, 4.8)
        for kind, name in CURVES.items():
            sizes = [memory_curves(count)[kind] / MB for count in counts]
            dashes = "--" if kind.startswith("down") else "-"
            axes.plot(counts, sizes, dashes, color=COLOURS[kind], marker="o", markersize=4)
            label_line(axes, counts[-1], sizes[-1], name, COLOURS[kind])
        keys = {count: f"figure4.{count}.down-ternary" for count in FIGURE_4_EXPERTS}
        ours = {count: measured[key] for count, key in keys.items() if key in measured}
        if ours:
            name = "our artefacts: scales, tables, padding too"
            axes.plot(list(ours), list(ours.values()), "kx", markersize=9, label=name)
            axes.legend(frameon=False, loc="upper left")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        axes.set_xlim(counts[0] * 0.85, counts[-1] * 1.12)
        axes.minorticks_off()
        axes.grid(True)
        ratio = rounded(compression(BUTTERFLY_VIT, 64))
        whole = rounded(compression(BUTTERFLY_VIT, 64, down_bits=32))
        axes.set(
            title=f"64 experts: {ratio} times less memory as counted, {whole} with fp32 W_down",
            xlabel="experts a layer",
            ylabel="memory of the experts, MB",
        )
        return png(figure)


def devices_picture(measured: Measured) -> bytes:
    """Figure 6: experts that fit each device, a bar for each way to count them.

    Our placements have a bar too where ``measured`` has them.
    """
    found = devices()
    series = _device_bars(found, measured)
    step = 0.8 / len(series)
    with style():
        figure, (axes,) = new_figure(9.6, 5.0)
        for number, (name, colour, counts) in enumerate(series):
            shift = (number - (len(series) - 1) / 2) * step
            places = [place + shift for place in counts]
            axes.bar(places, list(counts.values()), 0.9 * step, color=colour, label=name)
            for place, count in zip(places, counts.values(), strict=True):
                _label_bar(axes, place, max(count, _NONE), _short(count))
        low, high = (float(part) for part in MICROCONTROLLERS_PRINTED.split("-"))
        axes.fill_between([1.55, 3.45], low, high, color=GREY, alpha=0.3, linewidth=0, zorder=0)
        axes.annotate(
            f"the paper's text: {MICROCONTROLLERS_PRINTED}",
            (2.98, (low * high) ** 0.5),
            ha="center",
            va="center",
            fontsize=9,
        )
        axes.set_yscale("log")
        axes.set_ylim(_NONE, 1.5e6)
        axes.set_yticks([10**power for power in range(7)], _POWERS)
        axes.set_xticks(range(len(found)), [_place_name(device) for device in found])
        axes.tick_params(axis="x", length=0)
        axes.minorticks_off()
        axes.grid(True, axis="y")
        figure.legend(frameon=False, ncols=3, loc="outside lower center", fontsize=9)
        axes.set(
            title="Experts that fit into memory, by what an expert takes of a layer",
            ylabel="experts in each of 7 layers",
        )
        return png(figure)


def _device_bars(
    found: Sequence[Device], measured: Measured
) -> list[tuple[str, str, dict[int, float]]]:
    """Name, colour, and experts by the device's place, of every way to count."""
    names = {
        "standard": ("StandardMoE, fp32", RED),
        "equation-11": ("eq. 11, 10,240 B", BLUE),
        "table-2": ("Table 2, 5,120 B", SKY),
        "text": ("text under eq. 11, 2,560 B", GREEN),
    }
    series: list[tuple[str, str, dict[int, float]]] = []
    for way in WAYS:
        counts = {place: float(fitting(each.ram)[way]) for place, each in enumerate(found)}
        series.append((*names[way], counts))
    keys = {place: placed_key(device) for place, device in enumerate(found)}
    ours = {place: measured[key] for place, key in keys.items() if key in measured}
    if ours:
        name = "ours: the whole model, from a microcontroller's flash"
        series.append((name, "black", ours))
    return series


def energy_picture(measured: Measured) -> bytes:
    """Figure 7: mJ to read the weights of 64 experts once, at 6.4 pJ a bit.

    Our artefact's weights, and all that its kernels move, have bars where ``measured`` has them.
    """
    bars = _energy_bars(measured)
    values = [value for _, _, value in bars]
    with style():
        figure, (axes,) = new_figure(8.4, 1.0 + 0.6 * len(bars))
        axes.barh(range(len(bars)), values, 0.6, color=[colour for _, colour, _ in bars])
        for place, value in enumerate(values):
            inside = value > 10  # what the text says stands behind this bar
            axes.annotate(
                f"{value:.3g} mJ",
                (value, place),
                xytext=(-5 if inside else 5, 0),
                textcoords="offset points",
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
            )
        top = len(bars) - 1
        for printed in (13.0, 90.0):
            axes.plot([printed, printed], [top - 0.4, top + 0.4], color="black", linewidth=1.5)
            axes.annotate(
                f"the text: {printed:.0f}",
                (printed, top - 0.4),
                xytext=(0, -2),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=9,
            )
        axes.set_xscale("log")
        axes.set_xlim(0.05, 200)
        axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.tick_params(axis="y", length=0)
        axes.minorticks_off()
        axes.grid(True, axis="x")
        axes.set(
            title="Energy to read the weights of 64 experts once",
            xlabel="mJ a forward pass, 6.4 pJ a bit of DRAM (logarithmic)",
        )
        return png(figure)


def _energy_bars(measured: Measured) -> list[tuple[str, str, float]]:
    """Name, colour and mJ of each bar, the lowest first."""
    curves = memory_curves(64)
    bars = [(name, COLOURS[kind], millijoules(curves[kind])) for kind, name in CURVES.items()]
    ours = {
        "figure7.down-ternary": "our artefact: ternary W_down, 16-bit angles",
        "figure7.moved": "all that our kernels read and write, 65 tokens",
    }
    bars += [(name, "black", measured[key]) for key, name in ours.items() if key in measured]
    return bars[::-1]


def similarity_picture(found: Mapping[str, Similarity]) -> bytes:
    """Figure 5: a heat map of cosines for each layer, a row of them for each named model."""
    with style():
        from matplotlib.figure import Figure

        columns = max(len(each.layers) for each in found.values())
        size = (1.6 + 1.7 * columns, 0.9 + 1.75 * len(found))
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("Cosines between the experts of a layer", fontsize=12, fontweight="bold")
        grid = figure.subplots(len(found), columns, squeeze=False)
        for line, (name, each) in zip(grid, found.items(), strict=True):
            for number, axes in enumerate(line):
                if number >= len(each.layers):
                    axes.set_axis_off()
                    continue
                image = _heat_map(axes, each.layers[number], f"layer {number}")
            line[0].set_ylabel(name.replace(", ", ",\n"), fontsize=9)
        bar = figure.colorbar(image, ax=grid.ravel().tolist(), aspect=35, ticks=[-1, 0, 1])
        bar.outline.set_visible(False)
        return png(figure)


def _heat_map(axes: Any, matrix: NDArray[np.float64], name: str) -> Any:
    from .similarity import off_diagonal

    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    mean = off_diagonal(matrix).mean()
    axes.set_title(f"{name}: mean {mean:.3f}", fontsize=9, fontweight="normal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return image


_NONE = 0.5  # where a logarithmic axis begins, below 1 expert
_POWERS = ["1", "10", "100", "1,000", "10,000", "100,000", "1,000,000"]


def _place_name(device: Device) -> str:
    size = GIB if device.ram >= GIB else KIB
    unit = "GiB" if size == GIB else "KiB"
    return f"{device.name.split(',')[0]}\n{device.ram // size} {unit}"


def _short(count: float) -> str:
    """12,345 as 12k."""
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count:,.0f}"


def _label_bar(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
