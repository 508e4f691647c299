"""The papers' tables and figures of sizes, row by row: Tables 1 and 2, Figures 4 and 7, 150x."""

from __future__ import annotations

from .accounting import (
    BUTTERFLY_MOE,
    BUTTERFLY_VIT,
    FLOAT_BITS,
    HALF_BITS,
    MB,
    MIB,
    TERNARY_BITS,
    Mlp,
    butterfly_bytes,
    compression,
    expert_bytes,
    millijoules,
    picojoules_per_bit,
    rounded,
    router_bytes,
    standard_bytes,
    truncated,
    vit_parameters,
)
from .rows import Row, Table

TABLE_2_EXPERTS = (8, 16, 32, 64)
FIGURE_4_EXPERTS = (8, 64, 256)
# Of Table 2's figures the introduction repeats the one, and the title the other.
TABLE_2_PRINTED = {(64, "standard"): "939", (64, "ratio"): "354"}
# What ButterflyMoE's author prints of the same counts: experts to MB and ratio.
MOE_PRINTED = {8: ("0.40", "80.0"), 16: ("0.61", "104.65"), 64: ("1.85", "138.10")}
MOE_PRINTED |= {256: ("6.82", "150.09")}


def table_1() -> Table:
    """Table 1 of ButterflyViT: parameters and memory of the three models for CIFAR-100."""
    printed: dict[Mlp, tuple[str, str]] = {
        "butterfly": ("ButterflyViT, 8 experts", "5,661,028"),
        "standard": ("StandardMoE ViT, 8 experts", "31,351,140"),
        "dense": ("dense ViT", "5,583,972"),
    }
    rows, counts = [], {mlp: vit_parameters(mlp) for mlp in printed}
    for mlp, (name, digits) in printed.items():
        key, count = f"table1.{mlp}", counts[mlp]
        why = "Patch 4, a class token, biases everywhere but in gates and Butterfly's up and down."
        rows.append(_row(f"{key}.parameters", name, "parameters", digits, count, 0, why))
        why = "Formula: all parameters in fp32. Measured: in int8."
        if mlp == "butterfly":
            why += " W_hat is ternary, angles have 16 bits."
        what, size = f"{name}: memory", count * 4 / MB
        rows.append(_row(f"{key}.memory", what, "MB", None, size, 2, why))
    for mlp in ("butterfly", "dense"):
        key, what = f"table1.{mlp}.compression", f"StandardMoE over {printed[mlp][0]}"
        why = "The whole model, attention too, where Table 2 has the experts alone."
        ratio = counts["standard"] / counts[mlp]
        rows.append(_row(key, what, "times", None, ratio, 2, why))
    note = (
        "Its accuracies are of models trained on CIFAR-100; they are not among these rows. What it "
        "prints of memory is not known to us. Measured: all constants of our artefacts for "
        "microcontrollers (`int8`, `--prefer size`)."
    )
    title = "Table 1 of ButterflyViT: parameters and memory"
    return Table("table1", title, note, tuple(rows))


def table_2() -> Table:
    """Table 2 of ButterflyViT: MB and ratio by the number of experts."""
    stack, rows = BUTTERFLY_VIT, []
    for experts in TABLE_2_EXPERTS:
        standard = standard_bytes(stack, experts) / MB
        butterfly = butterfly_bytes(stack, experts) / MB
        for kind, value, unit, why in (
            ("standard", standard, "MB", "Up and down, fp32, 7 layers, no biases."),
            ("butterfly", butterfly, "MB", "W_hat at 1.58 bits and fp32 angles: no W_down."),
            ("ratio", standard / butterfly, "times", "Counts W_down on one side only."),
        ):
            paper = TABLE_2_PRINTED.get((experts, kind))
            shown = rounded(value) if kind == "ratio" else truncated(value, 2)
            key, what = f"table2.{experts}.{kind}", f"{experts} experts, {_NAMES[kind]}"
            rows.append(Row(key, what, unit, paper, value, shown, why))
    note = (
        "7 layers, d = 256, F = 1024, L = 2. MB (10^6) are truncated, ratios rounded, as the "
        "table's are. 939 is from the introduction and 354 from the title. Measured: our artefacts "
        "with 16-bit angles and a ternary W_down, which is counted."
    )
    return Table("table2", "Table 2 of ButterflyViT: memory of the experts", note, tuple(rows))


def whole_ffn() -> Table:
    """The ratios at 64 experts with W_down counted, which both papers leave out."""
    stack, experts = BUTTERFLY_VIT, 64
    forms = (
        ("paper", "as Table 2 counts (no W_down)", 32, 0.0, "354", "W_down left out."),
        ("down-f32", "W_down fp32, angles fp32", 32, 32.0, None, "W_down is 73 % of all bytes."),
        ("down-int8", "W_down int8, angles of 16 bits", HALF_BITS, 8.0, None, _OURS),
        ("down-ternary", "W_down ternary, angles of 16 bits", HALF_BITS, TERNARY_BITS, None, _OURS),
        ("down-int8-angles8", "W_down int8, angles of 8 bits", 8, 8.0, None, _OURS),
        ("down-ternary-angles8", "W_down ternary, angles of 8 bits", 8, TERNARY_BITS, None, _OURS),
    )
    rows = []
    for key, name, angles, down, printed, why in forms:
        ratio = compression(stack, experts, angle_bits=angles, down_bits=down)
        rows.append(_row(f"ffn.{key}", name, "times", printed, ratio, 0, why))
        if why == _OURS:
            ours = butterfly_bytes(stack, experts, angle_bits=angles, down_bits=down)
            ours += router_bytes(stack, experts, 8)
            standard = standard_bytes(stack, experts) + router_bytes(stack, experts, FLOAT_BITS)
            what, why = f"{name}; routers on both sides", "Ours int8, StandardMoE's fp32."
            rows.append(_row(f"ffn.{key}.router", what, "times", None, standard / ours, 0, why))
    note = (
        "Compression at 64 experts of all 7 layers against StandardMoE in fp32, which holds both "
        "matrices. By formula: ideal sizes, ternary weights of 1.58 bits. Measured: all constants "
        "of a layer in an `int8` artefact for microcontrollers (`--prefer size`), scales, tables "
        "and padding too; but for the rows that say so without the router, which no paper counts."
    )
    return Table("ffn", "The whole FFN, W_down counted", note, tuple(rows))


def moe_150() -> Table:
    """ButterflyMoE's 150 times at 256 experts, and what the author prints beside it."""
    stack, rows = BUTTERFLY_MOE, []
    for experts, (size, ratio) in MOE_PRINTED.items():
        butterfly = butterfly_bytes(stack, experts, angle_bits=HALF_BITS)
        found = compression(stack, experts, matrices=1, angle_bits=HALF_BITS)
        why = "W_hat at 1.58 bits, fp16 angles, L = log2 of the width on either side; MiB."
        key, name = f"moe.{experts}", f"{experts} experts"
        rows.append(_row(f"{key}.butterfly", name, "MiB", size, butterfly / MIB, 2, why))
        why = "StandardMoE's up-projection only, fp32."
        if experts == 8:
            why += " 80.0 is 32.00 / 0.40, a quotient of rounded figures."
        decimals = len(ratio.partition(".")[2])
        rows.append(_row(f"{key}.ratio", f"{name}, ratio", "times", ratio, found, decimals, why))
    both = compression(stack, 256, matrices=2, angle_bits=HALF_BITS)
    why = "Counted as ButterflyViT does, StandardMoE's down-projection too, ButterflyMoE's not."
    rows.append(_row("moe.256.both", "256 experts, ratio", "times", None, both, 2, why))
    note = (
        "One layer, d = 512, F = 2048. The abstract says 150; the digits are those of a public "
        "summary of a later version of the paper. The author's [project page]"
        "(https://github.com/AryanKarmore/butterflymoe) has the same, but for 150.10. Measured: "
        "eq. 3 compiled for microcontrollers (`int8`, 16-bit angles, `--prefer size`), without its "
        "router."
    )
    return Table("moe", "ButterflyMoE: 150 times at 256 experts", note, tuple(rows))


def figure_4() -> Table:
    """Figure 4 of ButterflyViT: memory by the number of experts."""
    stack, rows = BUTTERFLY_VIT, []
    for experts in FIGURE_4_EXPERTS:
        for kind, value in memory_curves(experts).items():
            key, name = f"figure4.{experts}.{kind}", f"{experts} experts, {CURVES[kind]}"
            rows.append(_row(key, name, "MB", None, value / MB, 2, _FIGURE_4_WHY[kind]))
    each = expert_bytes(stack)
    why = "Its angles in fp32, where StandardMoE takes two fp32 matrices of 14.68 MB in all."
    rows.append(_row("figure4.each", "one more Butterfly expert", "MB", None, each / MB, 4, why))
    note = (
        "7 layers, d = 256, F = 1024; rounded, where Table 2 truncates. What the figure prints is "
        "not known to us. Measured: our artefacts, scales, tables and padding counted."
    )
    title = "Figure 4 of ButterflyViT: memory and the number of experts"
    return Table("figure4", title, note, tuple(rows), "memory.png")


CURVES = {
    "standard": "StandardMoE, fp32",
    "down-f32": "Butterfly with fp32 W_down",
    "down-ternary": "Butterfly with ternary W_down, fp16 angles",
    "butterfly": "Butterfly as the papers count",
}


def memory_curves(experts: int) -> dict[str, float]:
    """Bytes of the papers' 7 layers with so many experts, by the keys of ``CURVES``."""
    stack = BUTTERFLY_VIT
    return {
        "standard": standard_bytes(stack, experts),
        "down-f32": butterfly_bytes(stack, experts, down_bits=32),
        "down-ternary": butterfly_bytes(
            stack, experts, angle_bits=HALF_BITS, down_bits=TERNARY_BITS
        ),
        "butterfly": butterfly_bytes(stack, experts),
    }


def figure_7() -> Table:
    """Figure 7 of ButterflyViT: energy to read all experts' weights once from DRAM."""
    rows = []
    for kind, count in memory_curves(64).items():
        paper, why = None, _FIGURE_4_WHY[kind]
        if kind == "standard":
            paper = "13 and 90"
            why = (
                "The text says both. 13 is what 256 MB take (13.1), ButterflyMoE's figure for its "
                f"own layer; 90 would be {picojoules_per_bit(90, count):.1f} pJ a bit."
            )
        key, name = f"figure7.{kind}", f"64 experts, {CURVES[kind]}"
        rows.append(_row(key, name, "mJ", paper, millijoules(count), 3, why))
    name = "64 experts, all that our kernels read and write"
    why = "Of 65 tokens: each kernel reads every operand once, and writes every result; no cache."
    rows.append(Row("figure7.moved", name, "mJ", None, None, None, why))
    note = (
        "Every weight of all 7 layers is read once a forward pass at 6.4 pJ a bit of DRAM. That "
        "is the paper's model: it knows no cache, no activations and no expert that no token "
        "chose. Measured: bytes of our artefacts at the same price."
    )
    title = "Figure 7 of ButterflyViT: energy of a forward pass"
    return Table("figure7", title, note, tuple(rows), "energy.png")


_NAMES = {"standard": "StandardMoE", "butterfly": "ButterflyViT", "ratio": "ratio"}
_OURS = "Not in the papers: what can be shipped."
_FIGURE_4_WHY = {
    "standard": "Two fp32 matrices an expert.",
    "down-f32": "W_down counted: one fp32 matrix a layer, whatever the number of experts.",
    "down-ternary": "W_down counted at 1.58 bits a weight.",
    "butterfly": "W_hat at 1.58 bits, fp32 angles; W_down left out.",
}


def _row(
    key: str, what: str, unit: str, paper: str | None, value: float, digits: int, why: str
) -> Row:
    """A row whose formula is shown rounded to ``digits`` decimals."""
    return Row(key, what, unit, paper, value, rounded(value, digits), why)
