"""`python -m graft_worker.export_command`: makes a model of an adapter, as the order on stdin says.

The last line of stdout is the answer as JSON; all else goes to stderr. The exit codes are those of `graft`.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError

from graft_scheduler.complaints import explain
from graft_scheduler.errors import Conflict, GraftError, InvalidInput, NotAllowed, NotFound, Unreachable
from graft_scheduler.exports import ExportAnswer, parse_order
from graft_scheduler.states import FailureClass
from graft_worker.exporting import make
from graft_worker.link import JobError

EXIT_FAILED = 1
EXIT_CODES: tuple[tuple[type[GraftError], int], ...] = (
    (InvalidInput, 2),
    (NotFound, 3),
    (NotAllowed, 4),
    (Conflict, 7),
    (Unreachable, 8),
)
JOB_EXIT_CODES = {
    FailureClass.CONFIG: 2,
    FailureClass.DATA: 2,
    FailureClass.STORE: 8,
    FailureClass.MEMORY: 22,
}


def main() -> int:
    """Do it, and return the exit code."""
    code, answer = _answer(sys.stdin.read())
    sys.stdout.write(f"{answer.model_dump_json()}\n")
    return code


def _answer(text: str) -> tuple[int, ExportAnswer]:
    try:
        return 0, ExportAnswer(report=make(parse_order(text), _tell))
    except ValidationError as error:
        return 2, ExportAnswer(error=explain(error, ()))
    except JobError as error:
        return JOB_EXIT_CODES.get(error.failure, EXIT_FAILED), ExportAnswer(error=str(error))
    except GraftError as error:
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)
        return code, ExportAnswer(error=str(error), fidelity=getattr(error, "fidelity", None))
    except KeyboardInterrupt:
        return 130, ExportAnswer(error="interrupted; nothing was written")
    except OSError as error:  # a full disk, a folder that may not be written
        return 7, ExportAnswer(error=str(error))


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
