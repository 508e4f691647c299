"""The driver for several threads: ``NAME_run_mt`` goes through the phases of `split_work`.

A phase is a function of which every thread of the pool calls some parts. A part computes its rows
of one op after the other; where an op has no parts, part 0 computes all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..ir import Graph, Node
from ..ir.parts import Split, split_of
from ..ir.schedule import Step, steps_of
from .driver import Driver, text_of

HEADER = """\
/* {name}_run_mt computes what {name}_run does, to the bit, in up to so many threads. */
#define {upper}_THREADS {threads}
/* Bytes of its working memory, aligned to {alignment}. */
#define {upper}_MT_ARENA_BYTES {bytes}

/* Threads that wait for work: {name}_run_mt has them compute with the thread that calls it. A pool
   serves any number of calls, one at a time. */
typedef struct {name}_pool {name}_pool;

/* A pool of `threads`, the caller's among them: 1 starts none. More than {upper}_THREADS would have
   nothing to do, and are not started. NULL if the system gives no memory or no thread. */
{name}_pool *{name}_pool_create(int threads);

/* Ends the threads and frees the pool, which must not be at work; NULL does nothing. */
void {name}_pool_destroy({name}_pool *pool);

/* As {name}_run, in an arena of {upper}_MT_ARENA_BYTES. -1 also if there is no pool. In a process
   that was forked off the one that made the pool, the caller's thread computes alone. */
int {name}_run_mt(const void *const *in, void *const *out, void *arena, {name}_pool *pool);
"""

SHARED = """
/* For several threads: what they compute, phase by phase; part 0 does what has no parts. */
struct call {{
  const void *const *in;
  void *const *out;
  unsigned char *arena;
}};

void {name}_pool_run({name}_pool *pool, void (*phase)(const void *, int), const void *data,
    int parts);
"""

RUN = """
int {name}_run_mt(const void *const *in, void *const *out, void *arena, {name}_pool *pool) {{
  const struct call call = {{in, out, (unsigned char *)arena}};
  const unsigned char *const w = {name}_weights;
  unsigned char *const a = (unsigned char *)arena;
  (void)a, (void)w;
  if (in == 0 || out == 0 || pool == 0 || (arena == 0 && {bytes} > 0)) return -1;
  if ((uintptr_t)arena % {alignment} != 0) return -2;
{calls}{copies}  return 0;
}}
"""

PHASE = """
static void phase_{number}(const void *data, int part) {{
  const struct call *const call = (const struct call *)data;
  const void *const *const in = call->in;
  void *const *const out = call->out;
  unsigned char *const a = call->arena;
  unsigned char *const t = a + {arena} + (size_t)part * {part_bytes};
  const unsigned char *const w = {name}_weights;
  (void)in, (void)out, (void)a, (void)t, (void)w;
{body}}}
"""


@dataclass(frozen=True)
class Threads:
    """What a graph says of threads: how many, and the bytes of a part's scratch."""

    graph: Graph
    name: str
    alignment: int

    @property
    def count(self) -> int:
        """1 where only ``NAME_run`` is wanted."""
        return int(self.graph.notes.get("threads", 1))  # type: ignore[arg-type]

    @property
    def arena(self) -> int:
        return int(self.graph.notes.get("arena_bytes", 0))  # type: ignore[arg-type]

    @property
    def part_bytes(self) -> int:
        return int(self.graph.notes["part_bytes"])  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        """Of the arena, with the scratch of all parts behind it."""
        return self.arena + self.count * self.part_bytes

    def header(self) -> str:
        return HEADER.format(
            name=self.name,
            upper=self.name.upper(),
            threads=self.count,
            alignment=self.alignment,
            bytes=self.bytes,
        )

    def pool(self) -> str:
        """The C of the pool: pool.c, with ``bfly`` in its names as the model is called."""
        text = (Path(__file__).parent / "pool.c").read_text()
        names = {"bfly": self.name, "BFLY": self.name.upper()}
        return re.sub("bfly|BFLY", lambda found: names[found[0]], text)

    def source(self, driver: Driver, copies: Sequence[str]) -> str:
        """All phases, and the function that goes through them; ``copies`` are its last lines."""
        text, calls = SHARED.format(name=self.name), ""
        steps = steps_of(self.graph)
        for number, found in groupby(steps, lambda step: step.nodes[0].notes["phase"]):
            phase = list(found)
            text += PHASE.format(
                number=number,
                arena=self.arena,
                part_bytes=self.part_bytes,
                name=self.name,
                body=self._body(driver, phase),
            )
            if any("split" in step.nodes[0].notes for step in phase):
                calls += f"  {self.name}_pool_run(pool, phase_{number}, &call, {self.count});\n"
            else:
                calls += f"  phase_{number}(&call, 0);\n"
        return text + RUN.format(
            name=self.name,
            bytes=self.bytes,
            alignment=self.alignment,
            calls=calls,
            copies="".join(copies),
        )

    def _body(self, driver: Driver, steps: Sequence[Step]) -> str:
        """The calls of a phase; what goes by the same rows stands together."""
        text = ""
        for split, found in groupby(steps, lambda step: step.nodes[0].notes.get("split", 0)):
            some = list(found)
            if split:
                text += self._parts(driver, [node for step in some for node in step.nodes])
            else:
                whole = "".join(driver.step(step) for step in some)
                text += f"  if (part == 0) {{\n{_indented(whole)}  }}\n"
        return text

    def _parts(self, driver: Driver, nodes: Sequence[Node]) -> str:
        """The calls of ops of as many rows, which part 0 and those behind it may have more of."""
        splits = [(node, split) for node in nodes if (split := split_of(node)) is not None]
        rows = splits[0][1].rows
        sizes = splits[0][1].sizes(self.count)
        small, larger = divmod(rows, self.count)
        opened = f"{{ /* {rows} rows: {_listed(sizes)} */\n"
        if not small:
            row = "    const int row = part;\n"
            return f"  if (part < {larger}) {opened}{row}{_calls(driver, splits, 1, 4)}  }}\n"
        if not larger:
            row = f"    const int row = part * {small};\n"
            return f"  {opened}{row}{_calls(driver, splits, small, 4)}  }}\n"
        row = f"    const int row = part * {small} + (part < {larger} ? part : {larger});\n"
        many = _calls(driver, splits, small + 1, 6)
        few = _calls(driver, splits, small, 6, comments=False)
        return (
            f"  {opened}{row}    if (part < {larger}) {{\n{many}    }} else {{\n{few}    }}\n  }}\n"
        )


def _calls(
    driver: Driver,
    splits: Sequence[tuple[Node, Split]],
    rows: int,
    spaces: int,
    comments: bool = True,
) -> str:
    lines, indent = [], " " * spaces
    for node, split in splits:
        lines += [f"{indent}/* {text_of(node)} */"] if comments else []
        lines.append(f"{indent}{driver.part(node, split, rows)}")
    return "\n".join([*lines, ""])


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{count} part{'s' if count > 1 else ''} of {rows}" for count, rows in sizes)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
