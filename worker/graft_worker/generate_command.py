"""`python -m graft_worker.generate_command`: one prompt, one answer on stdout, all else on stderr.

Exit code 2 and one line: a model, adapter or prompt that cannot work. 1 and one line: anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import ModelRef
from graft_scheduler.states import FailureClass
from graft_worker.link import JobError

if TYPE_CHECKING:
    from graft_worker.engine.generate import Answer

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
BAD_INPUT = (FailureClass.CONFIG, FailureClass.DATA)


def main(arguments: list[str] | None = None) -> int:
    """Answer, and return the exit code."""
    options = _parse(arguments)
    try:
        answer = _answer(options, _ignore if options.json else _print_piece)
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_INPUT if error.failure in BAD_INPUT else EXIT_FAILED
    sys.stdout.write(f"{json.dumps(asdict(answer)) if options.json else ''}\n")
    return 0


def _answer(options: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    from graft_worker.engine.device import prepared  # MLX and mlx-lm: some seconds
    from graft_worker.engine.generate import Question, generate, put_adapter, quantization_of
    from graft_worker.engine.loading import load_base

    question = Question(options.prompt, options.max_tokens, options.temperature, options.seed, options.raw)
    with prepared(None):
        quantization = None if options.adapter is None else quantization_of(options.adapter)
        base = load_base(ModelRef(source=options.model), None, Precision.AUTO, quantization)
        if options.adapter is not None:
            put_adapter(base, options.adapter)
        return generate(base, question, tell)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="graft generate", description="Answer one prompt.")
    parser.add_argument("--model", required=True, help="a model folder, or a hub id")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--adapter", type=Path, help="a folder with a trained adapter")
    parser.add_argument("--max-tokens", type=_positive, default=256)
    parser.add_argument("--temperature", type=_not_negative, default=0.0, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", action="store_true", help="without the chat template")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _not_negative(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _print_piece(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _ignore(piece: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
