"""What is made of a job's adapter, where only the service knows its base and its rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graft_scheduler.jobs import TrainJob
from tests.services import Fleet

pytestmark = pytest.mark.processes

RUN = "import sys; from graft_cli.main import run; sys.argv = ['graft', *sys.argv[1:]]; run()"


def test_a_jobs_adapter_is_fused_into_the_stores_base_and_checked_on_the_rows_it_held_out(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    fleet.start_scheduler()
    fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    job = TrainJob.model_validate(
        {"model": str(base), "data": str(tiny_data), "steps": 4, "batch_size": 4, "adapter": {"rank": 4}}
    )
    with fleet.client() as client:
        record = client.submit(job).wait(90)
    base.rename(tmp_path / "gone")  # only the store has it now

    fused = graft(fleet, tmp_path, "fuse", record.id[:6], "--json")
    peft = graft(fleet, tmp_path, "export", record.id, "--to", "peft", "--json")

    assert record.result is not None
    report = json.loads(fused.stdout)["report"]
    fidelity = report["fidelity"]
    assert report["notes"] == []
    assert report["model"] == "base"
    assert fidelity["origin"] == f"the rows held out of {tiny_data.name}"
    assert fidelity["rows"] == 4
    assert fidelity["adapted_loss"] == pytest.approx(record.result.final_loss, abs=1e-3)
    assert fidelity["kept"] > 0.999
    assert (tmp_path / "fused" / record.id / "model.safetensors").exists()
    assert json.loads(peft.stdout)["output"] == f"exports/{record.id}-peft"
    assert json.loads(peft.stdout)["base"] == "base"


def graft(fleet: Fleet, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on a machine of its own, with nothing but the fleet's Redis and store in common."""
    environment = {**fleet.environment, "GRAFT_DATA_DIR": str(folder / "mine")}
    command = [sys.executable, "-c", RUN, *words]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran
