"""What a runner's exit code says of why it died without a word."""

from __future__ import annotations

import signal

from graft_scheduler.states import FailureClass
from graft_worker.memory_watch import MemoryWatch

KILLED_FOR_MEMORY = {signal.SIGKILL, signal.SIGABRT}
"""How a process ends for lack of memory when nobody says so (facts of MLX on Metal and of the system)."""
CRASHED_FOR_MEMORY = {signal.SIGSEGV, signal.SIGBUS}
"""How it may end where an allocation fails that nobody checks, as on MLX's CPU build; mostly it is a bug."""


def cause_of_death(exit_code: int, watch: MemoryWatch | None) -> tuple[FailureClass, str]:
    """The failure, and what the job's owner reads of it; `watch` knows how much memory was left."""
    if exit_code >= 0:
        text = f"the runner left without a word (exit code {exit_code}); see the log"
        return FailureClass.INTERNAL, text
    name = signal.Signals(-exit_code).name
    if -exit_code in KILLED_FOR_MEMORY:
        return FailureClass.MEMORY, f"the runner was killed ({name}), most likely for lack of memory"
    why = watch.explain_crash() if watch and -exit_code in CRASHED_FOR_MEMORY else None
    if why is not None:
        return FailureClass.MEMORY, f"the runner crashed ({name}), most likely for lack of memory: {why}"
    return FailureClass.INTERNAL, f"the runner crashed ({name})"
