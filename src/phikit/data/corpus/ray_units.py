"""The same units on a Ray cluster: a unit is a task, a task whose worker dies is done again.

The nodes need one file system on which the corpus's folder and its input have the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from phikit.data.corpus.units import ATTEMPTS, Unit, do, raise_error
from phikit.errors import PhikitError, how_to_install

_IN_FLIGHT = 4  # tasks handed to Ray per processor: enough to keep it busy


class OnRay:
    """Does units as tasks of a Ray cluster.

    Args:
        address: the cluster's; "" starts one on this machine, or joins the one of this process.

    Raises:
        PhikitError: Ray is missing, or there is no cluster at the address.
    """

    def __init__(self, address: str = "") -> None:
        try:
            import ray
        except ImportError as e:
            raise PhikitError("working on a cluster needs ray", how_to_install("ray")) from e
        self.ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(address or None, log_to_driver=False, include_dashboard=False)
            except ConnectionError as e:
                raise PhikitError(f"no Ray cluster answers at {address!r}", str(e)) from e

    def run(self, units: Sequence[Unit], progress: Callable[[int, int], None]) -> None:
        ray = self.ray
        task = ray.remote(do).options(max_retries=ATTEMPTS - 1, num_cpus=1)
        left = [unit for unit in reversed(units) if not unit.done]
        most = max(1, int(ray.cluster_resources().get("CPU", 1))) * _IN_FLIGHT
        running: dict[Any, Unit] = {}
        done = len(units) - len(left)
        while left or running:
            progress(done, len(units))
            while left and len(running) < most:
                unit = left.pop()
                job = task.remote(unit.function, str(unit.folder), dict(unit.arguments))
                running[job] = unit
            finished, _ = ray.wait(list(running))
            for job in finished:
                unit = running.pop(job)
                try:
                    result = ray.get(job)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as e:
                    raise PhikitError(
                        f"{unit.folder}: the process doing this was killed {ATTEMPTS} times",
                        "is memory short? Smaller shard_bytes need less",
                    ) from e
                for other in list(running) if result[0] else []:
                    ray.cancel(other)
                raise_error(result)
                done += 1

    def close(self) -> None:
        """Leaves the cluster as it is: others may be at work on it."""
