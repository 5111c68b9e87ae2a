"""A study against the same settings by `mlx_lm.lora`, one after another, on the same machine.

    python benchmarks/study.py [--quick] [--seeds N] [--first-seed N] [--losses] [--service] [--idle]

A random Llama (4 blocks of 256) learns synthetic rows of skewed lengths. A study proposes settings at
random (learning rate, rank, dropout); one worker trains them, first without pruning and then with
successive halving, which draws the same ones. Then `mlx_lm.lora` trains each of them in a process of its
own, as a person's loop would. The best adapters are measured by one evaluator on the same rows.

`makespan_speedup` is mlx-lm's time over the pruned study's, from the submit to its end,
`makespan_speedup_unpruned` over the other's; `warm_start_share` is the time from one trial's end to where
the next one's first step begins, over that of the first trial, from its placement, and
`warm_start_share_with_first_step` the same to that step's end; `best_loss_difference` is ours less theirs,
of the pruned study; `trial_over_cold_start` is a trial of mlx-lm over its own start, its first step
included. In full that is at least 20, and figures are medians of five seeds: 75 minutes each, so
`--first-seed` lets them be run one at a time. `--quick` has 6 short trials and one seed. `--losses`
measures the losses only, with many processes at a time. `--service` measures the service alone at 2,000
trials instead; `--idle` how long a worker of four on this machine stands still while a trial waits for a
host.

On the CPU neither side compiles, and OpenBLAS is preloaded for both where it is installed. Explains itself on
stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from typing import Any

import psutil

from benchmarks.throughput import OPENBLAS, Case, evaluate, prepare
from graft_scheduler.client import Client
from graft_scheduler.jobs import TrainJob
from graft_scheduler.studies.handle import StudyHandle
from tests.services import Fleet, RedisServer

SEARCH = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "rank": [4, 8, 16, 32],
    "dropout": [0.0, 0.05],
}
SCALE = 2.0
FULL, QUICK = Case(2048, 2, "skewed", 243, 256), Case(2048, 2, "skewed", 27, 128)
EVALUATED_ROWS = 8
"""By both sides, in a trial; the best adapters are measured on all that `prepare` wrote."""


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ends within 5 minutes on 2 cores")
    parser.add_argument("--seeds", type=int, help="how many studies; default 5, with --quick 1")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it")
    parser.add_argument("--losses", type=int, metavar="PROCESSES", help="only the losses, so many at a time")
    parser.add_argument("--trials", type=int, help="of each study; default 24, with --quick 6")
    parser.add_argument("--service", action="store_true", help="only the service, at 2,000 trials")
    parser.add_argument("--idle", action="store_true", help="only how long four workers stand still")
    parser.add_argument("--child", choices=["theirs", "evaluate"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, json.loads(options.settings))
        return
    if OPENBLAS.exists():
        os.environ["LD_PRELOAD"] = str(OPENBLAS)  # for all that is started from here
    if options.service:
        figures = service(500 if options.quick else 2000)
    elif options.idle:
        figures = idle(12 if options.quick else 24)
    else:
        count = options.seeds or (1 if options.quick else 5)
        trials = options.trials or (6 if options.quick else 24)
        case, seeds = QUICK if options.quick else FULL, range(options.first_seed, options.first_seed + count)
        if options.losses:
            found = [losses(case, seed, trials, options.losses) for seed in seeds]
        else:
            found = [one_seed(case, seed, trials) for seed in seeds]
        figures = {name: round(statistics.median(one[name] for one in found), 4) for name in found[0]}
    machine = {"system": platform.platform(), "cores": psutil.cpu_count(), "openblas": OPENBLAS.exists()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm", "optuna")}
    print(json.dumps({"benchmark": "study", "figures": figures, "machine": machine, "versions": versions}))


@contextmanager
def fleet_of(folder: Path, workers: int) -> Iterator[Client]:
    """A client of so many workers on this machine."""
    server = RedisServer(folder / "redis")
    server.start()
    fleet = Fleet(folder, server, lease_seconds=60.0, claim_seconds=10.0)
    try:
        fleet.start_scheduler()
        for number in range(workers):
            fleet.start_worker(f"w{number}")
        fleet.wait_for_hosts(workers)
        yield fleet.client()
    finally:
        fleet.stop()
        server.stop()


def one_seed(case: Case, seed: int, trials: int) -> dict[str, float]:
    """Both studies and the loop, with the settings of one seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, case, large=False)
        with fleet_of(folder, 1) as client:
            unpruned = run_study(client, folder, case, seed, trials, "none")
            unpruned_seconds = makespan(unpruned)
            say(f"seed {seed}: unpruned {unpruned_seconds:.0f} s")
            settings = settings_of(unpruned)
            shares = warm_start_shares(client, unpruned)
            pruned = run_study(client, folder, case, seed, trials, "halving")
            pruned_seconds = makespan(pruned)
            say(f"seed {seed}: pruned {pruned_seconds:.0f} s")
            assert settings_of(pruned) == settings, "the sampler drew other settings"
            ours = best_loss(client, folder, pruned)
            whole = best_loss(client, folder, unpruned)
        seconds, theirs, start_share = run_loop(folder, settings)
    figures = {
        "makespan_speedup": seconds / pruned_seconds,
        "makespan_speedup_unpruned": seconds / unpruned_seconds,
        **shares,
        "best_loss_difference": ours - theirs,
        "best_loss_difference_unpruned": whole - theirs,
        "trial_over_cold_start": 1 / start_share,
    }
    say(f"seed {seed}: mlx-lm {seconds:.0f} s, best loss {ours:.4f} against {theirs:.4f}; {figures}")
    return figures


def losses(case: Case, seed: int, trials: int, processes: int) -> dict[str, float]:
    """The best losses of the pruned study and of the loop, whose trainings run side by side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, case, large=False)
        with fleet_of(folder, 1) as client:
            pruned = run_study(client, folder, case, seed, trials, "halving")
            settings, ours = settings_of(pruned), best_loss(client, folder, pruned)
        with ThreadPoolExecutor(processes) as pool:
            found = list(pool.map(lambda one: train_theirs(folder, *one)[2], enumerate(settings)))
    say(f"seed {seed}: best loss {ours:.4f} against {min(found):.4f}")
    return {"best_loss_difference": ours - min(found)}


def idle(trials: int) -> dict[str, float]:
    """Longest time in which one of four workers had nothing to do and a trial was queued."""
    case = Case(2048, 2, "skewed", 18, 128)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, case, large=False)
        with fleet_of(folder, 4) as client:
            handle = run_study(client, folder, case, 0, trials, "halving", parallel=4)
            busy, queued = spans_of(client, handle)
    gaps = [(before[1], after[0]) for one in busy.values() for before, after in pairwise(sorted(one))]
    idle = [min(gap[1], wait[1]) - max(gap[0], wait[0]) for gap in gaps for wait in queued]
    say(f"{len(gaps)} gaps on {len(busy)} workers; a trial was queued for at most {max(idle):.2f} s of one")
    return {"idle_seconds": round(max(idle), 3)}


Span = tuple[float, float]


def spans_of(client: Client, handle: StudyHandle) -> tuple[dict[str, list[Span]], list[Span]]:
    """When each worker had a trial, and when each trial was queued."""
    busy: dict[str, list[Span]] = {}
    queued: list[Span] = []
    for trial in handle.studies.trials(handle.record()):
        waits_since = began = 0.0
        host = ""
        for event in client.events(trial.user_attrs["job"]):
            if event.name in {"submitted", "resumed"}:
                waits_since = event.at
            elif event.name == "running":
                queued.append((waits_since, event.at))
                began, host = event.at, event.data["host_name"]
            elif event.name in {"paused", "completed"}:
                busy.setdefault(host, []).append((began, event.at))
    return busy, queued


def run_study(
    client: Client, folder: Path, case: Case, seed: int, trials: int, pruner: str, parallel: int = 2
) -> StudyHandle:
    """A study to its end."""
    job = TrainJob.model_validate(
        {
            "model": str(folder / "model"),
            "data": str(folder / "data"),
            "adapter": {"scale": SCALE},
            "optimizer": {"name": "adam", "bias_correction": False, "max_grad_norm": None},
            "schedule": {"name": "constant", "warmup": 0.0},
            "batch_size": case.batch_size,
            "steps": case.steps,
            "max_length": case.max_length,
            "evaluation": {"every": case.steps // 3, "rows": EVALUATED_ROWS},
            "checkpoint": {"every": case.steps},
        }
    )
    handle = client.tune(
        job, SEARCH, name=pruner, trials=trials, parallel=parallel, sampler="random", pruner=pruner, seed=seed
    )
    handle.wait()
    return handle


def settings_of(handle: StudyHandle) -> list[dict[str, Any]]:
    """What each trial trained with."""
    from graft_scheduler.studies.proposals import values_of

    record = handle.record()
    return [values_of(one.params, record.spec.space) for one in handle.studies.trials(record)]


def makespan(handle: StudyHandle) -> float:
    """Seconds from the submit to the end."""
    record = handle.record()
    assert record.ended_at is not None
    return record.ended_at - record.created_at


def warm_start_shares(client: Client, handle: StudyHandle) -> dict[str, float]:
    """From the end of one trial to where the next one's first step begins, and to its end, over the same
    of the first, which was cold.
    """
    spans = []
    for trial in handle.studies.trials(handle.record()):
        record = client.get(trial.user_attrs["job"])
        result = record.result
        if result is None or trial.user_attrs.get("duplicate_of") is not None:
            continue
        at = {event.name: event.at for event in client.events(record.id)}
        step = (result.tokens or 0) / (result.tokens_per_second or 1.0) / (result.steps or 1)
        stepped_at = at["running"] + (result.first_step_seconds or 0.0)
        spans.append((at["placed"], stepped_at - step, stepped_at, at["completed"]))
    spans.sort()
    shares = {}
    for name, place in (("warm_start_share", 1), ("warm_start_share_with_first_step", 2)):
        cold = spans[0][place] - spans[0][0]
        gaps = [after[place] - before[3] for before, after in pairwise(spans)]
        say(f"{name}: cold {cold:.2f} s; warm {', '.join(f'{gap:.2f}' for gap in gaps)}")
        shares[name] = statistics.median(gaps) / cold
    return shares


def best_loss(client: Client, folder: Path, handle: StudyHandle) -> float:
    """Validation loss of the study's adapter."""
    job = handle.record().final_job
    assert job is not None
    adapter = client.pull(job, folder / f"ours-{handle.record().name}")
    return float(run_child("evaluate", folder, {"adapter": str(adapter)})["loss"])


def run_loop(folder: Path, settings: list[dict[str, Any]]) -> tuple[float, float, float]:
    """The settings by mlx-lm: seconds of all, the best loss, and the share of a trial that is its start."""
    found = [train_theirs(folder, number, one) for number, one in enumerate(settings)]
    seconds, starts, losses = zip(*found, strict=True)
    shares = [start / took for took, start in zip(seconds, starts, strict=True)]
    return sum(seconds), min(losses), statistics.median(shares)


def train_theirs(folder: Path, number: int, settings: dict[str, Any]) -> tuple[float, float, float]:
    """One of the settings by mlx-lm: seconds, those of its start among them, and the loss."""
    began = time.monotonic()
    adapter = str(folder / f"theirs-{number}")
    start = float(run_child("theirs", folder, {"adapter": adapter, **settings})["start_seconds"])
    took = time.monotonic() - began
    loss = float(run_child("evaluate", folder, {"adapter": adapter})["loss"])
    say(f"    mlx-lm {number}: {took:.1f} s, {start:.1f} s of them its start, loss {loss:.4f}")
    return took, start, loss


def run_child(side: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The last line of a process of its own."""
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder)]
    done = subprocess.run([*command, "--settings", json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def child(side: str, folder: Path, settings: dict[str, Any]) -> None:
    """In a process of its own: one training by mlx-lm, or the loss of an adapter."""
    if side == "evaluate":
        print(json.dumps({"loss": evaluate(folder, Path(settings["adapter"]))[0]}))
    else:
        print(json.dumps({"start_seconds": train_with_mlx_lm(folder, settings)}))


def train_with_mlx_lm(folder: Path, settings: dict[str, Any]) -> float:
    """Through its own entry point; seconds from the start of the process to its first step's end."""
    import mlx.core as mx
    import mlx_lm.lora as lora
    from mlx_lm.tuner.callbacks import TrainingCallback

    case = Case(**json.loads((folder / "settings.json").read_text())["case"])
    first: list[float] = []

    class Listener(TrainingCallback):
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            first.append(time.time() - psutil.Process().create_time())

    if mx.default_device() == mx.cpu:
        mx.disable_compile()
    parameters = {"rank": settings["adapter.rank"], "dropout": settings["adapter.dropout"], "scale": SCALE}
    arguments = {
        **lora.CONFIG_DEFAULTS,
        "model": str(folder / "model"),
        "data": str(folder / "data"),
        "train": True,
        "batch_size": case.batch_size,
        "iters": case.steps,
        "val_batches": EVALUATED_ROWS // case.batch_size,
        "test": False,
        "learning_rate": settings["optimizer.learning_rate"],
        "steps_per_report": 1,
        "steps_per_eval": case.steps // 3,
        "adapter_path": settings["adapter"],
        "save_every": case.steps,
        "max_seq_length": case.max_length,
        "lora_parameters": parameters,
    }
    vars(lora)["get_reporting_callbacks"] = lambda *_, **__: Listener()
    namespace = argparse.Namespace(**arguments)
    namespace.num_layers = json.loads((folder / "model" / "config.json").read_text())["num_hidden_layers"]
    lora.run(namespace)
    return first[0]


def service(trials: int) -> dict[str, float]:
    """What asking, ten reports with their decisions, and telling cost at the last of so many trials."""
    import optuna
    from optuna.trial import TrialState

    from graft_scheduler.studies.storage import study_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        try:
            study = optuna.create_study(
                storage=study_storage(server.url), study_name="s", pruner=optuna.pruners.MedianPruner()
            )
            took = []
            for number in range(trials):
                began = time.perf_counter()
                trial = study.ask()
                rate = trial.suggest_float("rate", 1e-5, 1e-2, log=True)
                trial.suggest_int("rank", 2, 64)
                trial.suggest_float("dropout", 0.0, 0.2)
                state = TrialState.COMPLETE
                for step in range(10):
                    trial.report(abs(rate - 1e-3) + 1 / (step + 1) + (number % 7) / 50, step)
                    if trial.should_prune():
                        state = TrialState.PRUNED
                value = rate if state is TrialState.COMPLETE else None
                study.tell(trial, value, state=state)
                took.append(time.perf_counter() - began)
            began = time.perf_counter()
            opened = optuna.load_study(study_name="s", storage=study_storage(server.url))
            assert len(opened.get_trials(deepcopy=False)) == trials
            opening = time.perf_counter() - began
        finally:
            server.stop()
    milliseconds = 1000 * statistics.median(took[-100:])
    say(f"trial {trials}: {milliseconds:.0f} ms, the median of the last 100; opened in {opening:.2f} s")
    return {"trial_ms_at_the_end": round(milliseconds, 1), "open_seconds": round(opening, 3)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
