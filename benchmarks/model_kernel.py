"""Shows the main loop of a kernel on an ARM core, beside what LLVM's model says of it.

    python benchmarks/model_kernel.py --kernel ternary_dot --core a72 --rows 65

For people who tune: nothing is measured, and the Cortex-A53 is modelled coarsely.
"""

from __future__ import annotations

import argparse

from butterflyc.bench.cases import cases
from butterflyc.bench.cortex_a import CORES, Core
from butterflyc.bench.kernels import best
from butterflyc.compiler.run.kernel_call import call_kernel
from butterflyc.compiler.run.modelled import PARTS, ModelledCall, modelled
from butterflyc.kernels import all_kernels
from butterflyc.targets.cpu import LANES


def main() -> None:
    options = arguments()
    core, lanes = CORES[options.core], LANES[options.lanes]
    parameters = {k: int(v) for k, _, v in (p.partition("=") for p in options.parameter)}
    for case in cases(lanes):
        rows = int(case.shape.partition("x")[0])
        if options.kernel not in (case.name, "all") or options.rows not in (rows, None):
            continue
        spec = case.spec.with_parameters(parameters)
        kernel = best(spec, lanes)
        if options.by:
            kernel = next(k for k in all_kernels() if k.name == options.by)
        call = call_kernel(kernel, spec, case.arrays, lanes, core.description, core.emulated)
        case.check(call.results)
        found = modelled(call, core.model, case.floats)
        print(f"{case.name} {case.shape} by {kernel.name} on {options.core}")
        show(found, case.products, core)


def show(found: ModelledCall, products: int, core: Core) -> None:
    loop = found.loop
    if loop is None:
        print("  no instruction multiplies: what it computes is not seen")
    else:
        print("\n".join(f"    {i.text}" for i in loop.block.instructions))
        print(
            f"  loop: {loop.products} products, {len(loop.block.instructions)} instructions, "
            f"{loop.cycles.steady:.1f} cycles of {loop.cycles.bound:.1f} at least: "
            f"{loop.achieved:.2f} products a cycle of {loop.bound:.2f}"
        )
        if not loop.repeats:
            print("  which does not repeat itself: other blocks stand in its loop")
    print(
        f"  call: {found.instructions} instructions, {products / found.instructions:.2f} products "
        f"each; {found.cycles:.0f} cycles, {products / found.cycles:.2f} products each; "
        f"computed {found.products / products:.3f} of the products asked for"
    )
    parts = ", ".join(f"{part} {found.parts[part] / found.cycles:.1%}" for part in PARTS)
    print(f"  cycles: {parts}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="all", help="ternary_dot, linear ...")
    parser.add_argument("--core", default="a72", choices=CORES)
    parser.add_argument("--rows", type=int, help="of those that the suite has: 1, 65 or 130")
    parser.add_argument("--lanes", default="scalar", choices=LANES)
    parser.add_argument("--by", metavar="KERNEL", help="the kernel's file, instead of the cheapest")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=NUMBER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
