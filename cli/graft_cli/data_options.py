"""The options that say how a data set is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graft_scheduler.jobs import DataRef

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A file, a folder, a data set of the fleet, or a hub id."),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="chat, completion, text, alpaca or sharegpt; default: detected."),
]
Column = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="A field under another name; repeatable."),
]
SplitName = Annotated[str | None, typer.Option("--split", help="Of a hub data set; default: train.")]
Subset = Annotated[str | None, typer.Option(help="Of a hub data set that has several.")]
Revision = Annotated[str | None, typer.Option(help="Of a hub data set: a branch, tag or commit.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KIND", help="A kind of fault that is there on purpose; repeatable."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows with faults.")]


def data_ref(
    source: str, columns: Sequence[str] | None, allow: Sequence[str] | None, **given: Any
) -> DataRef:
    """What the options mean.

    Raises:
        InvalidInput: names the option, its value, and what would be right.
    """
    from pydantic import ValidationError

    from graft_scheduler.complaints import explain
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.jobs import DataRef

    mapped = {}
    for one in columns or ():
        ours, separator, theirs = one.partition("=")
        if not (separator and ours and theirs):
            raise InvalidInput(f"`--column` is {one!r}; it must be OURS=THEIRS, such as prompt=question")
        mapped[ours] = theirs
    kinds = [kind for one in allow or () for kind in one.split(",")]
    values = {"source": source, "columns": mapped, "allow": kinds, **given}
    try:
        return DataRef.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise InvalidInput(explain(error, tuple(DataRef.model_fields))) from error
