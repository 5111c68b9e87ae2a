"""The contract on a laptop: no MLX, no slow imports."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mlx", "mlx_lm", "transformers", "datasets", "huggingface_hub", "torch"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_contract_imports_and_builds_a_job_without_mlx() -> None:
    code = BLOCKED + (
        "from graft_scheduler import Client, TrainJob, CountJob, JobRecord\n"
        "import graft_scheduler.leader, graft_scheduler.submission, graft_scheduler.broker\n"
        "print(TrainJob(model='base', data='rows.jsonl').adapter.rank)"
    )

    assert run(code) == "8"


def test_the_worker_process_never_imports_mlx() -> None:
    code = (
        "import sys, graft_worker.service, graft_worker.supervisor, graft_worker.runner\n"
        "slow = {'mlx', 'mlx_lm', 'transformers'}\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in slow))"
    )

    assert run(code) == "[]"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    assert run("import graft_scheduler\nprint(hasattr(graft_scheduler, 'nothing'))") == "False"
