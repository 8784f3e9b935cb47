"""The worker as a Ray actor: a thin shell around `WorkerLoop`."""

import threading
from typing import Any

import ray
from threadpoolctl import threadpool_limits

from ps.net.cancellation import Cancellation, CancelledError
from runtime.fingerprint import process_facts
from worker.loop import Ending
from worker.running import KernelSetup, WorkerSetup, make_loop, with_kernels


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"leave": 1})
class WorkerActor:
    """One worker. A dead one is replaced by a new actor with the same number.

    It may run again once it has left: kernels are compiled then, and data files are in the cache.
    """

    def __init__(self) -> None:
        # The job counts compute threads itself; BLAS threads would fight the servers for cores.
        threadpool_limits(limits=1)
        self._guard = threading.Lock()
        self._left = -1  # the latest recovery epoch that it is not to work in
        self._running: tuple[int, Cancellation] | None = None

    def describe(self, *libraries: str, on_gpu: bool = False) -> dict[str, Any]:
        """Return where this process runs and what its numbers depend on, these libraries too.

        Args:
            on_gpu: whether its GPU counts, too; where it has none that torch can use, the result
                says why, as `unfit`.
        """
        node = ray.get_runtime_context().get_node_id()
        if not on_gpu:
            return process_facts(node, *libraries)
        from worker.models.torch.gpu import NoGpuError, gpu_facts

        try:
            return process_facts(node, *libraries, more=gpu_facts())
        except NoGpuError as error:
            return {**process_facts(node, *libraries), "unfit": str(error)}

    def load_kernels(self, setup: KernelSetup) -> None:
        """Compile kernels, or load them, while the job's other processes come up.

        What it raises nobody need look at: `run` does it again, which is quick, and raises it.
        """
        with_kernels(setup)

    def run(self, setup: WorkerSetup, worker: int, incarnation: int) -> Ending:
        """Work until told to end, and say by whom; raises what made the worker fail."""
        cancellation = Cancellation()
        with self._guard:
            if setup.recovery_epoch <= self._left:
                return "left"
            self._running = setup.recovery_epoch, cancellation
        try:
            return make_loop(
                setup,
                worker=worker,
                incarnation=incarnation,
                node_id=ray.get_runtime_context().get_node_id(),
                cancellation=cancellation,
            ).run()
        except CancelledError:
            return "left"
        finally:
            self._running = None

    @ray.method(concurrency_group="leave")
    def leave(self, recovery_epoch: int) -> None:
        """End the work in this recovery epoch and those before it, running or yet to begin."""
        with self._guard:
            self._left = max(self._left, recovery_epoch)
            if self._running is not None and self._running[0] <= recovery_epoch:
                self._running[1].set()
