"""Measurements on the machines of a Ray cluster, each of which has butterflyc and the same tools.

Only what is counted is spread: a time is of one machine, and says nothing of another.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ..compiler.errors import Incompatible, ToolMissing, UsageError
from ..targets.registry import Core
from .measure import Asked
from .worker import Outcome, Worker

PREFIX = "ray"


class OnNode:
    """What runs on a machine of the cluster: a worker, and what measures there."""

    def __init__(self, core: Core, limit: float) -> None:
        self._core, self._worker = core, Worker(core, limit)

    def instrument(self) -> str:
        from .meters import meter_of

        return meter_of(self._core).instrument()

    def read(self, asked: Asked) -> Outcome:
        return self._worker.read(asked)


class Cluster:
    """An `Engine` of as many workers as the cluster at ``address`` has processors.

    ``address`` is ``ray`` for a cluster that this machine is a part of, or else one of its own;
    or ``ray://HOST:PORT``. ``instrument`` is that of the records. Raises ToolMissing without Ray,
    Incompatible where a machine measures with something else.
    """

    def __init__(self, core: Core, address: str, limit: float, instrument: str) -> None:
        self._ray = _ray()
        where = None if address == PREFIX else address
        self._ray.init(address=where, log_to_driver=False, configure_logging=False)
        remote = self._ray.remote(num_cpus=1)(OnNode)
        self.width = max(int(self._ray.cluster_resources().get("CPU", 1)), 1)
        self._actors = [remote.remote(core, limit) for _ in range(self.width)]
        self._idle = list(self._actors)
        self._running: dict[Any, tuple[Hashable, Any]] = {}
        self._check(instrument)

    def submit(self, key: Hashable, asked: Asked) -> None:
        actor = self._idle.pop()
        self._running[actor.read.remote(asked)] = key, actor

    def finished(self, seconds: float) -> tuple[Hashable, Outcome] | None:
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if not done:
            return None
        key, actor = self._running.pop(done[0])
        self._idle.append(actor)
        return key, self._ray.get(done[0])

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _check(self, instrument: str) -> None:
        told = self._ray.get([actor.instrument.remote() for actor in self._actors])
        if other := sorted(set(told) - {instrument}):
            self.close()
            raise Incompatible(
                f"machines of the cluster measure with {', '.join(other)}, this one with "
                f"{instrument}: their figures cannot be compared",
                help="install the same versions everywhere",
            )


def check_address(address: str, alone: bool) -> None:
    """Raises UsageError for what is no address, or for times, which are of one machine."""
    if address != PREFIX and not address.startswith(f"{PREFIX}://"):
        raise UsageError(
            f"no engine '{address}'",
            help="local (default), ray, or ray://HOST:PORT of a Ray cluster",
        )
    if alone:
        raise UsageError(
            "times are measured on this machine alone",
            help="leave --engine out; a cluster is for targets whose instructions are counted",
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ToolMissing(
            "Ray is not installed, which spreads measurements over machines",
            help='pip install "butterflyc[ray]"',
        ) from error
    return ray
