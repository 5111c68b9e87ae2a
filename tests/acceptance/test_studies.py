"""Studies through the whole service: real trials, killed processes, and what a person sees of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from graft_scheduler.jobs import TrainJob
from graft_scheduler.states import JobState
from graft_scheduler.studies.handle import StudyHandle
from graft_scheduler.studies.proposals import propose
from graft_scheduler.studies.record import StudyState
from tests.services import Fleet, eventually, free_port

pytestmark = pytest.mark.processes

GRAFT = str(Path(sys.executable).parent / "graft")
TRIALS = int(os.environ.get("STUDY_TRIALS", "9"))


def base_job(base: Path, data: Path, **changes: Any) -> TrainJob:
    settings = {
        "model": str(base),
        "data": str(data),
        "steps": 18,
        "batch_size": 2,
        "max_length": 64,
        **changes,
    }
    return TrainJob.model_validate(settings)


def told(handle: StudyHandle) -> int:
    return sum(trial.state.is_finished() for trial in handle.study().get_trials(deepcopy=False))


@pytest.mark.timeout(400)
def test_a_study_whose_every_process_is_killed_in_turn_ends_with_the_trials_it_would_have_had(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    """STUDY_TRIALS says how many trials; 30 are what was promised."""
    import optuna
    from optuna.trial import TrialState

    scheduler, worker = fleet.start_scheduler(), fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    job = base_job(tiny_base, tiny_data)
    handle = fleet.client().tune(
        job,
        ["learning_rate=log:1e-4..1e-1", "rank=2..8"],
        name="s",
        trials=TRIALS,
        parallel=1,
        sampler="random",
    )
    spec = handle.record().spec
    assert spec.first
    undisturbed = optuna.create_study()
    expected = [dict(propose(undisturbed, spec).params) for _ in range(TRIALS)]
    expected[0] = dict(spec.first[0])  # the job's own settings come first

    eventually(lambda: told(handle) >= 1, 90)
    scheduler.kill()
    fleet.start_scheduler("second")
    eventually(lambda: told(handle) >= TRIALS // 4, 90)
    worker.kill()
    fleet.start_worker("one")
    eventually(lambda: told(handle) >= TRIALS // 2, 90)
    fleet.redis.kill()
    fleet.redis.start()

    assert handle.wait(240).state is StudyState.FINISHED
    trials = handle.study().get_trials(deepcopy=False)
    assert [trial.params for trial in trials] == expected
    assert all(trial.state.is_finished() for trial in trials)
    assert {trial.state for trial in trials} == {TrialState.PRUNED, TrialState.COMPLETE}
    best = min((one for one in trials if one.state is TrialState.COMPLETE), key=lambda one: one.values[0])
    assert best.values[0] <= min(one.values[0] for one in trials if one.values)


def graft(fleet: Fleet, *words: str) -> str:
    done = subprocess.run([GRAFT, *words], env=fleet.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_person_tunes_looks_exports_and_pulls(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    fleet.start_scheduler()
    for name in ("one", "two"):
        fleet.start_worker(name)
    fleet.wait_for_hosts(2)
    words = ["-m", str(tiny_base), "-d", str(tiny_data), "--steps", "9", "--batch-size", "2"]
    words += ["--search", "lr=log:1e-4..1e-1", "--trials", "4", "--parallel", "2", "--study", "mine"]

    assert graft(fleet, "tune", *words, "--final", "--follow").splitlines() == ["mine"]

    assert "finished" in graft(fleet, "study", "ls")
    shown = json.loads(graft(fleet, "study", "show", "mine", "--json"))
    assert shown["progress"].startswith("4 of 4 told")
    trials = json.loads(graft(fleet, "study", "trials", "mine", "--json"))
    losses = {one["number"]: one["values"][0] for one in trials if one["state"] == "completed"}
    best = min(losses, key=lambda number: losses[number])
    assert shown["best"]["number"] == best
    assert graft(fleet, "study", "best", "mine").startswith("--set optimizer.learning_rate=")
    page = Path(graft(fleet, "study", "export", "mine", "-o", str(tmp_path / "out")).strip())
    assert "mine" in page.read_text()
    assert (page.parent / "history.png").exists()

    folder = graft(fleet, "pull", shown["final_job"], "-o", str(tmp_path / "adapter")).strip()
    assert load_file(Path(folder) / "adapters.safetensors")
    record = fleet.client().get(shown["final_job"])
    assert record.state is JobState.COMPLETED
    assert record.result is not None
    assert record.result.final_loss == losses[best]


def test_optunas_dashboard_shows_the_studies(fleet: Fleet, tiny_base: Path, tiny_data: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    fleet.client().tune(base_job(tiny_base, tiny_data), name="shown", trials=2)
    port = free_port()
    serving = subprocess.Popen(
        [GRAFT, "dashboard", "--port", str(port)], env=fleet.environment, stderr=subprocess.PIPE, text=True
    )

    def listed() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                return "shown" in answer.read().decode()
        except OSError:
            return False

    try:
        eventually(listed, 40, "the dashboard lists the study")
    finally:
        serving.terminate()
        serving.wait(20)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--search", "learning_rate=log:1e-3..1e-5"], "empty"),
        (["--search", "lerning_rate=1e-3,1e-4"], "did you mean"),
        (["--trials", "0"], "`trials` is 0"),
        (["--pruner", "median", "--set", "evaluation.every=100"], "evaluation.every"),
        (["--search", "layers=1,99"], "at most 2"),
        (["--objective", "loss,seconds", "--pruner", "median"], "Optuna"),
        (["--sampler", "grid"], "steps"),
    ],
)
def test_what_cannot_be_a_study_is_refused_in_words_and_nothing_is_queued(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, words: list[str], told: str
) -> None:
    given = ["tune", "-m", str(tiny_base), "-d", str(tiny_data), "--steps", "9", *words]
    done = subprocess.run([GRAFT, *given], env=fleet.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert fleet.client().studies.all() == []
    assert fleet.client().jobs() == []
