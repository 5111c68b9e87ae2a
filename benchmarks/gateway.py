"""The gateway's downloads against a plain `sendfile` loop over the same folder, and its memory.

    python benchmarks/gateway.py [--quick | --memory MB]

Both serve the same blob on loopback to the same client, in turns; a run's time is from the request to the
last byte. `download_share` is the gateway's speed over the loop's (medians); `upload_mb_per_second` what
`Store.put_file` gets, hashing at both ends and syncing included; `memory_ratio` the gateway's resident memory
after a large blob went both ways, over that after one of 20 MB. With `--memory` nothing else is measured:
the most memory that gateway and client have while a file of zeros of that size goes both ways, over the same
for one of 20 MB. Explains itself on stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, where `queue.py` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib import metadata

import psutil

from graft_scheduler.store import Store, open_store
from graft_scheduler.store.folder import FolderDepot
from tests.services import eventually, free_port, listens

MIB = 1 << 20
SMALL_MIB = 20
TOKEN = "benchmark"


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a blob of 256 MB instead of 2 GB")
    parser.add_argument("--memory", type=int, metavar="MB", help="only the peak of memory, for such a file")
    options = parser.parse_args()
    if options.memory:
        figures = compare_peaks(options.memory)
    else:
        figures = measure(256 if options.quick else 2048, 5 if options.quick else 7)
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "starlette", "uvicorn")}
    print(json.dumps({"benchmark": "gateway", "figures": figures, "machine": machine, "versions": versions}))


def measure(large_mib: int, runs: int) -> dict[str, float]:
    """All figures, from one folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        gateway = start_gateway(folder, port)
        loop_port = free_port()
        loop = multiprocessing.get_context("spawn").Process(target=serve_plainly, args=(folder, loop_port))
        loop.start()
        try:
            eventually(lambda: listens(port) and listens(loop_port), 30)
            store = open_store(f"http://127.0.0.1:{port}", TOKEN)
            both_ways(store, folder, SMALL_MIB)
            small_bytes = psutil.Process(gateway.pid).memory_info().rss
            file, upload_seconds = both_ways(store, folder, large_mib)
            large_bytes = psutil.Process(gateway.pid).memory_info().rss
            path = (
                FolderDepot.open(folder / "served").path(store.put_file(file)).relative_to(folder / "served")
            )
            ours, plain = [], []
            for _ in range(runs):
                plain.append(download(loop_port, f"/{path}", large_mib * MIB))
                ours.append(download(port, f"/v1/blobs/sha256:{path.name}", large_mib * MIB))
        finally:
            for process in (gateway, loop):
                process.kill()
    speeds = [large_mib / statistics.median(seconds) for seconds in (ours, plain)]
    say(f"{large_mib} MB: {speeds[0]:.0f} MB/s, the plain loop {speeds[1]:.0f} MB/s")
    say(f"uploaded at {large_mib / upload_seconds:.0f} MB/s; {small_bytes / MIB:.0f} MB of memory after")
    say(f"{SMALL_MIB} MB both ways, {large_bytes / MIB:.0f} MB after {large_mib} MB both ways")
    return {
        "download_share": round(speeds[0] / speeds[1], 3),
        "upload_mb_per_second": round(large_mib / upload_seconds, 1),
        "memory_ratio": round(large_bytes / small_bytes, 3),
    }


def compare_peaks(large_mib: int) -> dict[str, float]:
    """Of gateway and client, the large file's over the small one's."""
    small, large = peaks(SMALL_MIB), peaks(large_mib)
    return {f"{name}_peak_ratio": round(large[name] / small[name], 3) for name in small}


def peaks(mib: int) -> dict[str, int]:
    """The most memory of each while a file of zeros goes both ways, both in new processes."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        gateway = start_gateway(folder, port)
        try:
            eventually(lambda: listens(port), 30)
            with (folder / "zeros").open("wb") as file:
                file.truncate(mib * MIB)
            client = multiprocessing.get_context("spawn").Process(target=carry, args=(folder, port))
            client.start()
            found = {"gateway": psutil.Process(gateway.pid), "client": psutil.Process(client.pid)}
            highest = dict.fromkeys(found, 0)
            while client.is_alive():
                for who, process in found.items():
                    with suppress(psutil.Error):
                        highest[who] = max(highest[who], process.memory_info().rss)
                client.join(0.05)
            assert client.exitcode == 0
        finally:
            gateway.kill()
            gateway.wait()
    say(f"{mib} MB both ways: " + ", ".join(f"{who} {most / MIB:.1f} MB" for who, most in highest.items()))
    return highest


def carry(folder: Path, port: int) -> None:
    """In a process of its own: up and down."""
    store = open_store(f"http://127.0.0.1:{port}", TOKEN)
    store.get_file(store.put_file(folder / "zeros"), folder / "back")


def start_gateway(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A real one."""
    settings = {
        "GRAFT_GATEWAY_FOLDER": str(folder / "served"),
        "GRAFT_GATEWAY_PORT": str(port),
        "GRAFT_STORE_TOKEN": TOKEN,
        "GRAFT_DATA_DIR": str(folder / "data"),
    }
    return subprocess.Popen([sys.executable, "-m", "graft_scheduler.gateway"], env={**os.environ, **settings})


def both_ways(store: Store, folder: Path, mib: int) -> tuple[Path, float]:
    """A file of random bytes through the store and back; how long the upload took."""
    file = folder / f"{mib}"
    with file.open("wb") as out:
        for _ in range(mib):
            out.write(os.urandom(MIB))
    began = time.perf_counter()
    digest = store.put_file(file)
    seconds = time.perf_counter() - began
    store.get_file(digest, folder / "back")
    (folder / "back").unlink()
    return file, seconds


def serve_plainly(folder: Path, port: int) -> None:
    """One connection after the other: a path in the first line, the file by `sendfile` after a short head."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                words = connection.recv(4096).split()
                if len(words) < 2:
                    continue
                path = folder / "served" / words[1].decode().lstrip("/")
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {path.stat().st_size}\r\n\r\n"
                connection.sendall(head.encode())
                with path.open("rb") as file:
                    connection.sendfile(file)


def download(port: int, path: str, size: int) -> float:
    """Seconds until the last of `size` bytes is here; thrown away."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    buffer = bytearray(MIB)
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request.encode())
        received = 0
        while count := connection.recv_into(buffer):
            received += count
    assert received > size, "the answer was cut short"
    return time.perf_counter() - began


def say(text: str) -> None:
    """Explain, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
