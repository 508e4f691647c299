"""The pool of threads, in C: alone, under sanitizers, and where the system gives it nothing."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.lower.link import c_compiler
from butterflyc.compiler.lower.model_c import threads_of

# What pool_main.c has in the place of the system's functions.
CALLS = (
    ("calloc", "may_calloc"),
    ("pthread_mutex_init", "may_mutex_init"),
    ("pthread_cond_init", "may_cond_init"),
    ("pthread_create", "may_create"),
)
SANITIZERS = ("", "thread", "address,undefined")
_folder = TemporaryDirectory()


@cache
def program(sanitizer: str) -> Path | None:
    """The tests in C, built; None if the compiler has no such sanitizer."""
    x = input_node("x", Type("f32", (4, 4)))
    graph = Graph("g", (x,), (make("relu", x),), {}, {"threads": 5, "part_bytes": 0})
    threads, folder = threads_of(graph, "bfly"), Path(_folder.name)
    (folder / "bfly.h").write_text(threads.header())
    (folder / "pool.c").write_text(threads.pool())
    made = folder / f"main_{sanitizer.partition(',')[0]}"
    pool = made.with_suffix(".o")
    flags = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    main, renamed = Path(__file__).with_name("pool_main.c"), [f"-D{a}={b}" for a, b in CALLS]
    for files in (
        [*renamed, "-c", str(folder / "pool.c"), "-o", str(pool)],
        [f"-I{folder}", str(main), str(pool), "-o", str(made)],
    ):
        done = subprocess.run([*c_compiler(), *flags, *files], capture_output=True, text=True)
        if done.returncode != 0:
            break
    if done.returncode != 0:
        assert sanitizer, done.stderr
        assert "lib" in done.stderr, done.stderr
        return None
    return made


def check(test: str, sanitizer: str) -> None:
    made = program(sanitizer)
    if made is None:
        pytest.skip(f"the C compiler has no -fsanitize={sanitizer}")
    done = subprocess.run([made, test], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_pools_of_every_size(sanitizer: str) -> None:
    """Each phase sees all of the one before; no more threads than parts; misuse gives NULL."""
    check("sizes", sanitizer)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_two_pools_at_once(sanitizer: str) -> None:
    """Two threads of a program, each with a pool of its own, do not meet."""
    check("two", sanitizer)


# ThreadSanitizer refuses threads in a fork of a program that had some.
@pytest.mark.parametrize("sanitizer", ["", "address,undefined"])
def test_a_fork_computes_alone(sanitizer: str) -> None:
    """A forked process may use and destroy the pool, and have its own; the first goes on."""
    check("forked", sanitizer)


def test_idle_threads_sleep() -> None:
    """Between calls the workers take no time."""
    check("sleeping", "")


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_creating_may_fail_anywhere(sanitizer: str) -> None:
    """Whichever call of the system fails, there is no pool, no thread and no leak."""
    check("failing", sanitizer)


# Sanitizers need more address space than there is under a limit.
def test_what_the_system_does_not_give() -> None:
    """Without memory or threads there is no pool, and no thread is left."""
    check("limits", "")
