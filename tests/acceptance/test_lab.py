"""A lab without a shared disk: machines that reach nothing of each other but Redis and the store.

Each machine is a network namespace with folders of its own. All that is configured on those that train and
submit is the address of Redis; where the store is an S3 server, also that one's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.file_servers import BUCKET, S3_COMMAND, S3_VARIABLES
from tests.services import eventually, find_redis_server

pytestmark = pytest.mark.processes
KNOCK = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 1)"
S3_PORT = 9000
MAKE_BUCKET = f"import urllib3; urllib3.request('PUT', 'http://127.0.0.1:{S3_PORT}/{BUCKET}')"
GRAFT = (sys.executable, "-c", "from graft_cli.main import run; run()")


@dataclass
class Machine:
    """A network namespace and a folder."""

    name: str
    folder: Path
    settings: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        own = {"GRAFT_DATA_DIR": str(self.folder / "data"), "GRAFT_CONFIG": str(self.folder / "config.toml")}
        return {**inherited, **own, **self.settings}

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self._inside(command), env=self.variables, cwd=self.folder, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def run(self, *command: str, timeout_seconds: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(command),
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )

    def graft(self, *words: str, timeout_seconds: float = 90) -> Any:
        done = self.run(*GRAFT, *words, "--json", timeout_seconds=timeout_seconds)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]


class Lab:
    """`lab` has Redis, the scheduler and the store's server; each other machine has one cable to it."""

    def __init__(self, folder: Path, store: str) -> None:
        self._folder, self._store = folder, store
        self._prefix = f"g{os.getpid()}"
        self._cables = 0
        self._machines: list[Machine] = []
        self.lab = self._machine("lab", {"GRAFT_REDIS_URL": "redis://127.0.0.1:6379/0"})

    def start(self) -> None:
        server = find_redis_server()
        assert server is not None
        options = ("--bind", "0.0.0.0", "--protected-mode", "no", "--appendonly", "yes")
        self.lab.start(server, *options, "--maxmemory-policy", "noeviction")
        if self._store == "gateway":
            self.lab.settings |= {"GRAFT_GATEWAY_ADDRESS": "0.0.0.0", "GRAFT_STORE_TOKEN": "of this lab"}
            self.lab.start(sys.executable, "-m", "graft_scheduler.gateway")
            self._wait_for(8470)
        else:
            self.lab.start(*S3_COMMAND, "-H", "0.0.0.0", "-p", str(S3_PORT))
            self._wait_for(S3_PORT)
            assert self.lab.run(sys.executable, "-c", MAKE_BUCKET).returncode == 0
        self.lab.start(sys.executable, "-m", "graft_scheduler")

    def _wait_for(self, port: int) -> None:
        knock = (sys.executable, "-c", KNOCK, str(port))
        eventually(lambda: self.lab.run(*knock).returncode == 0, 30, f"port {port} listens")

    def machine(self, name: str) -> Machine:
        """One more, that reaches `lab` at an address of its own."""
        self._cables += 1
        here, there = f"10.77.{self._cables}.2", f"10.77.{self._cables}.1"
        settings = {"GRAFT_REDIS_URL": f"redis://{there}:6379/0"}
        if self._store == "s3":
            own = {"GRAFT_STORE_URL": f"s3://{BUCKET}/graft", "AWS_ENDPOINT_URL": f"http://{there}:{S3_PORT}"}
            settings |= {**S3_VARIABLES, **own}
        machine = self._machine(name, settings)
        near, far = f"v{self._cables}n{os.getpid() % 10000}", f"v{self._cables}f{os.getpid() % 10000}"
        ip(
            "link",
            "add",
            near,
            "netns",
            machine.name,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "netns",
            self.lab.name,
        )
        for side, link, address in ((machine, near, here), (self.lab, far, there)):
            ip("-n", side.name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", side.name, "link", "set", link, "up")
        return machine

    def stop(self) -> None:
        for machine in self._machines:
            listed = subprocess.run(["ip", "netns", "pids", machine.name], capture_output=True, text=True)
            for pid in listed.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for process in machine.processes:
                process.wait()
            ip("netns", "delete", machine.name)

    def _machine(self, name: str, settings: dict[str, str]) -> Machine:
        folder = self._folder / name
        folder.mkdir()
        full = f"{self._prefix}{name}"
        ip("netns", "add", full)
        ip("-n", full, "link", "set", "lo", "up")
        shared = {"GRAFT_LEASE_SECONDS": "3", "GRAFT_CLAIM_SECONDS": "2", "GRAFT_HEARTBEAT_SECONDS": "0.5"}
        self._machines.append(Machine(full, folder, {**shared, **settings}))
        return self._machines[-1]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(params=["gateway", "s3"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need `ip` and root")
    try:
        ip("netns", "add", probe := f"probe{os.getpid()}")
        ip("netns", "delete", probe)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    lab = Lab(tmp_path, request.param)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def test_a_fine_tune_travels_through_the_store_alone(lab: Lab, tiny_base: Path) -> None:
    from tests.worker.engine.tiny import text_rows, write_rows

    hosts = {name: lab.machine(name) for name in ("one", "two")}
    laptop = lab.machine("laptop")
    data = write_rows(laptop.folder / "rows.jsonl", text_rows(40))
    base = shutil.copytree(tiny_base, laptop.folder / "base")
    workers = {
        name: machine.start(sys.executable, "-m", "graft_worker", "worker", "--name", name)
        for name, machine in hosts.items()
    }
    eventually(lambda: len(laptop.graft("hosts")) == 2, 60, "two hosts")

    job = laptop.graft(
        "train", "-m", str(base), "-d", str(data), "--steps", "800", "--batch-size", "2",
        "--set", "checkpoint.every=100",
    )["id"]  # fmt: skip
    eventually(lambda: laptop.graft("show", job)["resume"], 60, "a checkpoint")
    first = laptop.graft("show", job)["host"]
    assert laptop.graft("show", job)["state"] == "running"
    workers[first].send_signal(signal.SIGKILL)
    record = laptop.graft("wait", job)

    assert record["state"] == "completed"
    assert record["attempt"] == 2
    assert record["host"] != first
    adapter = Path(laptop.graft("pull", job, "--output", str(laptop.folder / "adapter"))["adapter"])
    assert (adapter / "adapters.safetensors").stat().st_size > 0
    assert not any((machine.folder / "data" / "store").exists() for machine in (*hosts.values(), laptop))
