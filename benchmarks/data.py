"""How long `graft data validate` takes for a million short rows, and how much memory.

    python benchmarks/data.py [--quick]

Chats of a question and an answer, about thirty tokens each, in JSONL; once without a model and once with the
tokens of the base that Graft ships counted. `seconds` and `peak_mb` are those of the whole command;
`rows_per_second` and `parse_share` (what Python's own `json.loads` of every line takes of it) tell machines
apart. Explains itself on stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, where `queue.py` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from importlib import metadata

import psutil

from graft_cli import samples

GRAFT = str(Path(sys.executable).with_name("graft"))
MIB = 1 << 20


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 rows instead of a million")
    rows = 100_000 if parser.parse_args().quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, rows)
        say(f"{rows:,} chats, {path.stat().st_size // MIB} MiB")
        figures = measure(path, rows)
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "tokenizers", "jinja2")}
    print(json.dumps({"benchmark": "data", "figures": figures, "machine": machine, "versions": versions}))


def measure(path: Path, rows: int) -> dict[str, float]:
    """All figures."""
    parse_seconds = parse(path)
    say(f"json.loads of every line: {parse_seconds:.1f} s")
    seconds, peak = validate(path)
    say(f"without a model: {seconds:.1f} s, {peak // MIB} MiB")
    counted_seconds, counted_peak = validate(path, "--model", str(samples.base_model()))
    say(f"with tokens counted: {counted_seconds:.1f} s, {counted_peak // MIB} MiB")
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "peak_mb": peak // MIB,
        "seconds_with_tokens": round(counted_seconds, 1),
        "peak_mb_with_tokens": counted_peak // MIB,
        "rows_per_second": round(rows / seconds),
        "parse_share": round(parse_seconds / seconds, 3),
    }


def write_rows(path: Path, rows: int) -> None:
    """Questions and answers of a few words."""
    draw = random.Random(0)
    words = [
        f"{draw.choice('bdgklmnprst')}{draw.choice('aeiou')}{draw.choice('lmnrst')}" for _ in range(5000)
    ]
    with path.open("w") as file:
        for number in range(rows):
            asked = f"question {number}: {' '.join(draw.choices(words, k=8))}?"
            messages = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": " ".join(draw.choices(words, k=8))},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def parse(path: Path) -> float:
    """Seconds that reading the JSON alone takes."""
    started = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
    return time.perf_counter() - started


def validate(path: Path, *words: str) -> tuple[float, int]:
    """Seconds and bytes at the peak of `graft data validate`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [GRAFT, "data", "validate", str(path), "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert report["accepted"], report["faults"][:3]
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * scale


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
