"""What MLX runs on, how much memory it may use, and how it says that there was not enough."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import mlx.core as mx

from graft_scheduler.memory import Backend, cache_in
from graft_scheduler.memory.cuts import OVERHEAD_TOKENS, width_multiple
from graft_scheduler.states import FailureClass
from graft_worker.engine.cutting import Budget
from graft_worker.link import JobError

OUT_OF_MEMORY_WORDS = (
    "insufficient memory",
    "out of memory",
    "unable to allocate",
    "attempting to allocate",
    "std::bad_alloc",
)
"""From the exceptions of MLX's Metal, CUDA and CPU allocators."""


def is_gpu() -> bool:
    """Whether MLX computes on Metal or CUDA."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def device_name() -> str:
    """The chip's name as MLX knows it, with the kind of device."""
    name = mx.device_info().get("device_name", "unknown")
    return f"{name} ({'gpu' if is_gpu() else 'cpu'})"


def versions() -> dict[str, str]:
    """What a result has to be read with."""
    return {"mlx": version("mlx"), "mlx-lm": version("mlx-lm"), "python": platform.python_version()}


def backend() -> Backend:
    """What MLX computes on."""
    if not is_gpu():
        return Backend.CPU
    return Backend.METAL if mx.metal.is_available() else Backend.CUDA


def budget_here(tokens: int) -> Budget:
    """What to compute at once here; nothing is compiled on the CPU."""
    here = backend()
    return Budget(tokens, width_multiple(here), OVERHEAD_TOKENS[here])


def active_bytes() -> int:
    """What MLX's arrays take now."""
    return mx.get_active_memory()


def cache_bytes() -> int:
    """Freed buffers that MLX keeps."""
    return mx.get_cache_memory()


class _Peak:
    """MLX's own count, kept over its resets."""

    highest = 0

    @classmethod
    def reset(cls) -> None:
        cls.highest = max(cls.highest, mx.get_peak_memory())
        mx.reset_peak_memory()


def peak_bytes() -> int:
    """The most that MLX's arrays took since `prepared` began."""
    return max(_Peak.highest, mx.get_peak_memory())


def hold_to(peak_bytes: int) -> None:
    """Let MLX wait for a GPU that lags behind rather than hold more than was planned.

    On the CPU, whose queue is short, the plan counts what waits there; the limit stays the budget's.
    """
    if is_gpu():
        mx.set_memory_limit(peak_bytes)


def forget() -> None:
    """Give back what nobody needs: Python, which does not see their size, may keep arrays in circles."""
    gc.collect()
    mx.clear_cache()


def peak_of(work: Callable[[], object]) -> int:
    """The most that MLX's arrays take, in all, while `work` is done."""
    forget()
    _Peak.reset()
    work()
    return mx.get_peak_memory()


@contextmanager
def prepared(budget_bytes: int | None, wired_bytes: int | None = None) -> Iterator[None]:
    """MLX set up for one job, and as it was before afterwards, with the memory given back.

    Memory is wired, on Metal, only where the host's owner says how much: more than a Mac can spare
    panics it (mlx#3186).

    Raises:
        JobError: MLX ran out of memory; class `memory`.
    """
    limits = _set_limits(budget_bytes, wired_bytes)
    # On the CPU, MLX compiles by running a C++ compiler: 13 s for a small model's first step, and no gain.
    if not is_gpu():
        mx.disable_compile()
    mx.reset_peak_memory()
    _Peak.highest = 0
    try:
        with _memory_errors():
            yield
    finally:
        if not is_gpu():
            mx.enable_compile()
        for set_limit, before in limits:
            set_limit(before)
        forget()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether MLX failed for want of memory: it has no exception of its own for that."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in OUT_OF_MEMORY_WORDS)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak = mx.get_peak_memory() >> 20
        raise JobError(FailureClass.MEMORY, f"MLX ran out of memory at {peak} MiB: {error}") from error


def _set_limits(budget_bytes: int | None, wired_bytes: int | None) -> list[tuple[Callable[[int], int], int]]:
    """The limits that were set, each with its value before.

    The cache is bounded without a budget too, as nothing else bounds it.
    """
    cache = cache_in(budget_bytes)
    wanted = [(mx.set_cache_limit, cache)]
    if budget_bytes is not None:
        wanted.insert(0, (mx.set_memory_limit, max(budget_bytes - cache, 1)))
    if wired_bytes is not None and mx.metal.is_available():
        wanted.append((mx.set_wired_limit, wired_bytes))
    return [(set_limit, set_limit(size)) for set_limit, size in wanted]
