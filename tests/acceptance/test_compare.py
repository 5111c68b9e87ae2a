"""A comparison of all methods through a real service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import Fleet

pytestmark = pytest.mark.processes

GRAFT = str(Path(sys.executable).parent / "graft")
FAST = ["--steps", "8", "--batch-size", "4", "--lr", "1e-2", "--set", "evaluation.every=4"]


def test_all_methods_are_compared_across_two_workers(fleet: Fleet, tiny_base: Path, tiny_data: Path) -> None:
    fleet.start_scheduler()
    for name in ("one", "two"):
        fleet.start_worker(name)
    fleet.wait_for_hosts(2)
    bad = ["--variant", 'bad: lora,targets=["no_such_layer"]']
    methods = [word for method in ("lora", "qlora", "dora", "full") for word in ("--variant", method)]

    done = subprocess.run(
        [GRAFT, "compare", "-m", str(tiny_base), "-d", str(tiny_data), *FAST, *methods, *bad, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env=fleet.environment,
        check=False,
    )

    assert done.returncode == 20, done.stderr
    found = json.loads(done.stdout)
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == ["lora", "qlora", "dora", "full", "bad"]
    assert rows.pop("bad")["failure"].startswith("config: ")
    for row in rows.values():
        assert row["state"] == "completed"
        assert row["steps"] == 8
        assert row["validation_loss"] < row["initial_loss"]
        for figure in ("training_seconds", "tokens_per_second", "peak_memory_bytes", "adapter_bytes"):
            assert row[figure] > 0
    assert rows["lora"]["initial_loss"] == pytest.approx(rows["dora"]["initial_loss"], abs=1e-4)
    assert rows["full"]["trainable_share"] == 1
    assert 0 < rows["lora"]["trainable_share"] < rows["dora"]["trainable_share"] < 1
    assert found["recommendation"]["variant"] in rows
    again = fleet.client().comparison(found["comparison"]).wait(0)
    assert again.as_json() == found
