"""What public figures say of how fast a chip computes: a first guess, until jobs were measured on it."""

from __future__ import annotations

import re

TERA = 1e12
GIGA = 1e9

APPLE_TERAFLOPS: dict[str, float] = {
    "M1": 2.6,
    "M1 Pro": 5.2,
    "M1 Max": 10.4,
    "M1 Ultra": 20.8,
    "M2": 3.6,
    "M2 Pro": 6.8,
    "M2 Max": 13.6,
    "M2 Ultra": 27.2,
    "M3": 4.1,
    "M3 Pro": 7.4,
    "M3 Max": 16.4,
    "M3 Ultra": 32.8,
    "M4": 4.6,
    "M4 Pro": 9.2,
    "M4 Max": 18.4,
    "M5": 15.0,
    "M5 Pro": 30.0,
    "M5 Max": 60.0,
}
"""Of the GPU with all its cores, in 16 bits. Apple names none: M1 to M4 are cores x 128 x 2 x clock, as
16 bits are no faster there than 32; M5 is what its neural accelerators make of its memory's speed
(about 1.5 a core), and no more than a guess."""
NVIDIA_TERAFLOPS: dict[str, float] = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16, from NVIDIA's data sheets; the longer name is looked for first."""

APPLE_UTILISATION = 0.35
NVIDIA_UTILISATION = 0.25
"""Of those figures, in training. Of an H100 a step of 8 x 1,024 tokens of a 1B model reached 27%
(docs/performance.md); for Apple it is assumed. What finished jobs measure replaces both."""
CORE_FLOPS = 1.5 * GIGA
"""Of one core with MLX's CPU build for Linux, whose matrix products are the reference BLAS: a machine of two
cores was measured at 2 to 6 GFLOP/s."""
USED_CORES = 4
"""More cores do not help the reference BLAS, which works on one at a time."""

_APPLE = re.compile(r"\bM\d+(?: (?:Pro|Max|Ultra))?\b")
_CORES = re.compile(r"(\d+) cores?\b")


def guessed_flops_per_second(backend: str, device: str) -> float | None:
    """What training probably reaches on this device; nothing for a chip that nobody has listed."""
    match backend:
        case "metal":
            found = _APPLE.search(device)
            peak = APPLE_TERAFLOPS.get(found[0]) if found else None
            return None if peak is None else peak * TERA * APPLE_UTILISATION
        case "cuda":
            peak = next((value for name, value in NVIDIA_TERAFLOPS.items() if name in device), None)
            return None if peak is None else peak * TERA * NVIDIA_UTILISATION
        case "cpu":
            cores = _CORES.search(device)
            return None if cores is None else min(int(cores[1]), USED_CORES) * CORE_FLOPS
        case _:
            return None
