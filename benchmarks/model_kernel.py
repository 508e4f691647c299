"""Shows the main loop of a kernel on an ARM core, beside what LLVM's model says of it.

    python benchmarks/model_kernel.py --kernel ternary_dot --core a72 --rows 65

For people who tune: nothing is measured, and the Cortex-A53 is modelled coarsely. Rows of
butterfly_experts are tokens times chosen experts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import attrs

from butterflyc.bench.cases import cases
from butterflyc.bench.cortex_a import peak_instruction
from butterflyc.bench.cortex_a_cores import CORES, peak
from butterflyc.bench.kernels import best
from butterflyc.compiler.run.cycles import timeline
from butterflyc.compiler.run.kernel_call import call_kernel
from butterflyc.compiler.run.machine_code import Block
from butterflyc.compiler.run.modelled import PARTS, MainLoop, ModelledCall, modelled
from butterflyc.kernels import all_kernels
from butterflyc.targets.cpu import LANES, machine
from butterflyc.targets.registry import load_core


def main() -> None:
    options = arguments()
    core = CORES[options.core]
    target = load_core(options.target or core.target, options.target_file)
    if options.lanes:
        target = attrs.evolve(target, lanes=options.lanes)
    built = machine(target)
    parameters = {k: int(v) for k, _, v in (p.partition("=") for p in options.parameter)}
    for case in cases(built.lanes):
        if options.kernel not in (case.name, None) or options.rows not in (case.rows, None):
            continue
        spec = case.spec.with_parameters(parameters)
        kernel = best(spec, built.lanes)
        if options.by:
            kernel = next(k for k in all_kernels() if k.name == options.by)
        call = call_kernel(kernel, spec, case.arrays, built.lanes, built.target, core.emulated)
        case.check(call.results)
        found = modelled(call, core.model, case.floats)
        instruction = peak_instruction(case, built)
        print(f"{case.name} {case.shape} by {kernel.name} on {options.core}")
        if found.loop is None:
            print("  no instruction multiplies: what it computes is not seen")
        else:
            show_loop(found.loop, peak(core.model, instruction), instruction, options.quiet)
            if options.timeline:
                print(timeline(found.loop.cost.block, core.model))
        show_call(found, case.products)
        show_blocks(found, options.blocks, options.quiet)


def show_code(block: Block) -> None:
    print("\n".join(f"    {i.address:x}  {i.text}" for i in block.instructions))


def show_loop(loop: MainLoop, most: float, instruction: str, quiet: bool) -> None:
    cost = loop.cost
    if not quiet:
        show_code(cost.block)
    print(
        f"  loop: {loop.products} MAC, {len(cost.block.instructions)} instructions, "
        f"{cost.executions} executions; {cost.each.steady:.2f} cycles, of {cost.each.bound:.2f} in "
        f"the best order; {loop.achieved:.2f} MAC/cycle, of {loop.bound:.2f} in the best order, "
        f"of {most:g} by nothing but {instruction}"
    )
    if not loop.repeats:
        print("  which does not repeat itself: its loop holds other blocks too")


def show_call(found: ModelledCall, products: int) -> None:
    print(
        f"  call: {found.instructions} instructions, {products / found.instructions:.2f} MAC each; "
        f"{found.cycles:.0f} cycles, {products / found.cycles:.2f} MAC each; "
        f"computes {found.products / products:.3f} of the products asked for"
    )
    parts = ", ".join(f"{part} {found.parts[part] / found.cycles:.1%}" for part in PARTS)
    print(f"  cycles, as to the product: {parts}")


def show_blocks(found: ModelledCall, count: int, quiet: bool) -> None:
    """The costliest blocks of the call, wherever they stand."""
    for part, cost in sorted(found.blocks, key=lambda entry: -entry[1].cycles)[:count]:
        each = cost.each
        print(
            f"  block {cost.block.address:x}, {part}: {cost.cycles / found.cycles:.1%} of cycles, "
            f"{len(cost.block.instructions)} instructions, {cost.executions} executions of "
            f"{each.steady:.2f} cycles (alone {each.once:g}), of {each.bound:.2f} in the best order"
        )
        if not quiet:
            show_code(cost.block)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", help="ternary_dot, ternary_dot_7_bits, linear ...")
    parser.add_argument("--core", default="a72", choices=CORES)
    parser.add_argument("--rows", type=int, help="1, 65 or 130")
    parser.add_argument("--lanes", choices=LANES, help="other than those of the target")
    parser.add_argument("--target", help="compile for another target than the core's own")
    parser.add_argument("--target-file", type=Path, help="a TOML file that describes the target")
    parser.add_argument("--by", metavar="KERNEL", help="the kernel's file, instead of the cheapest")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--blocks", type=int, default=0, help="so many of the costliest blocks")
    parser.add_argument("--timeline", action="store_true", help="what the loop's code waits for")
    parser.add_argument("--quiet", action="store_true", help="without the assembly")
    return parser.parse_args()


if __name__ == "__main__":
    main()
