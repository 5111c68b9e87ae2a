"""`graft data`: check data sets, give them names, find and compare them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli.amounts import age, size
from graft_cli.asking import confirmed
from graft_cli.data_options import (
    Allow,
    Column,
    Format,
    Revision,
    SkipBad,
    SourceArgument,
    SplitName,
    Subset,
    data_ref,
)
from graft_cli.exits import ExitCode
from graft_cli.options import AsJson, RedisUrl, StoreUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.data.names import DatasetVersion
    from graft_scheduler.data.opening import Source
    from graft_scheduler.errors import GraftError
    from graft_scheduler.jobs import DataRef
    from graft_scheduler.rendering import ChatTokenizer

app = typer.Typer(help="Check data sets, name them, and find them again.", rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@v3 or NAME@sha256:...")]
HEADER = ("NAME", "VERSIONS", "FORMAT", "ROWS", "SIZE", "PUSHED", "BY")
VERSION_HEADER = ("VERSION", "FORMAT", "ROWS", "SIZE", "PUSHED", "BY", "FROM", "DIGEST")
DEFAULT_MAX_LENGTH = 2048


@app.command()
def validate(
    source: SourceArgument,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Whose tokens are counted: a folder or a hub id.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=8, help="Longest row in tokens, as in training.")
    ] = DEFAULT_MAX_LENGTH,
    data_format: Format = None,
    column: Column = None,
    split: SplitName = None,
    subset: Subset = None,
    revision: Revision = None,
    allow: Allow = None,
    skip_bad_rows: SkipBad = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page too.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Check every row of a data set, and show what will be trained on."""
    from graft_cli.data_view import tell_report
    from graft_scheduler.data.report import make_report

    given = {"format": data_format, "split": split, "subset": subset, "revision": revision}
    ref = data_ref(source, column, allow, skip_bad_rows=skip_bad_rows, **given)
    report, _ = make_report(
        opened(ref, redis_url), max_length=max_length, model=model, tokenizer=tokenizer_of(model)
    )
    if html is not None:
        write_page(report, html)
    if as_json:
        out.json(report.model_dump(mode="json"))
    else:
        tell_report(report)
    if html is not None:
        out.note(f"the page is {html}")
    if not report.accepted:
        refused = sum(count for kind, count in report.counts.items() if refuses(report, kind))
        out.error(f"{source} is not accepted: {refused} fault{'s' if refused != 1 else ''}")
        if report.allowable:
            kinds = ",".join(report.allowable)
            out.hint(f"what is there on purpose can be allowed: `--allow {kinds}`")
        raise typer.Exit(ExitCode.USAGE)
    out.hint(
        f"`graft data push {source} --name NAME` gives it a name, `graft train -d {source}` trains on it"
    )


@app.command()
def push(
    source: SourceArgument,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Default: that of the file or folder.")
    ] = None,
    data_format: Format = None,
    column: Column = None,
    split: SplitName = None,
    subset: Subset = None,
    revision: Revision = None,
    allow: Allow = None,
    skip_bad_rows: SkipBad = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Store a data set under a name, as its next version; prints NAME@vN."""
    from graft_scheduler.data.faults import Kind

    given = {"format": data_format, "split": split, "subset": subset, "revision": revision}
    ref = data_ref(source, column, allow, skip_bad_rows=skip_bad_rows, **given)
    with connect(redis_url, store_url=store_url) as client:
        pushed = client.datasets.push(ref, name or name_of(source))
    if as_json:
        out.json({**pushed.version.as_json(), "is_new": pushed.is_new})
    else:
        out.data(str(pushed.version))
    told = rows_text(pushed.version)
    out.note(f"{told}, {size(pushed.version.contents.bytes)}" if pushed.is_new else "it is there already")
    counts = pushed.inspection.faults.counts
    if left_out := pushed.version.contents.left_out:
        out.warning(f"{left_out} rows with faults were left out; `graft data validate {source}` names them")
    if counts[Kind.DUPLICATE]:
        out.warning(
            f"{counts[Kind.DUPLICATE]} rows are there twice; `graft data validate {source}` names them"
        )
    out.hint(f"`graft train -d {pushed.version} -m MODEL` trains on it, from any machine")


@app.command()
def ls(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only its versions.")] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List the data sets of the fleet, or the versions of one."""
    with connect(redis_url) as client:
        found = client.datasets.newest() if name is None else client.datasets.versions(name)
    if as_json:
        out.json([version.as_json() for version in found])
    elif not found:
        out.note("no data set has a name yet")
        out.hint("`graft data push FILE --name NAME` gives one")
    elif name is None:
        out.table(HEADER, [_row(version) for version in found], shrink=(0, 6))
    else:
        out.table(VERSION_HEADER, [_version_row(version) for version in found], shrink=(6, 7))


@app.command()
def show(name: NameArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Show what is known of a data set's version; the newest unless one is named."""
    with connect(redis_url) as client:
        version = client.datasets.find(name)
    if as_json:
        out.json(version.as_json())
        return
    contents = version.contents
    made_of = contents.source
    if contents.source_format != contents.format:
        made_of += f" ({contents.source_format} rows)"
    pairs = [
        ("format", contents.format.value),
        ("rows", rows_text(version)),
        ("size", size(contents.bytes)),
        ("made of", made_of),
        ("there twice", str(contents.duplicates or "")),
        ("left out", str(contents.left_out or "")),
        ("pushed", f"{age(time.time() - version.pushed_at)} by {version.submitter}"),
        ("digest", version.digest),
    ]
    out.pairs(str(version), pairs)
    out.hint(f"`graft data validate {version} -m MODEL` shows its rows as they are trained on")


@app.command()
def diff(
    first: NameArgument,
    second: NameArgument,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Say which rows the second version has and the first has not, and the other way round."""
    from graft_cli.data_view import difference_json, tell_difference

    with connect(redis_url, store_url=store_url) as client:
        found = client.datasets.diff(first, second)
    if as_json:
        out.json(difference_json(found))
    else:
        tell_difference(found)


@app.command()
def rm(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Take a name from a version, or from all of them; what jobs refer to stays in the store."""
    with connect(redis_url) as client:
        version = client.datasets.find(name)
        what = str(version) if "@" in name else f"all versions of {version.name}"
        if not yes and not confirmed(f"Forget {what}?"):
            raise typer.Exit
        count = client.datasets.remove(name)
    out.note(f"{count} version{'s' if count != 1 else ''} of {version.name} forgotten")


def opened(ref: DataRef, redis_url: str | None) -> Source:
    """The data set, brought here from the store if it is one of the fleet.

    Raises:
        InvalidInput, NotFound: there is none of that name.
    """
    from graft_scheduler.data.names import Reference
    from graft_scheduler.data.opening import open_source
    from graft_scheduler.data.sources import ENDINGS, ending_of

    is_path = ending_of(Path(ref.source)) in ENDINGS or not Reference.is_one(ref.source)
    if is_path or Path(ref.source).exists():
        return open_source(ref)
    with connect(redis_url) as client:
        named = client.datasets.named(ref)
        folder = client.datasets.folder(client.datasets.find(ref.source))
    return open_source(named, folder)


def tokenizer_of(model: str | None) -> ChatTokenizer | GraftError | None:
    """The model's tokenizer, or why it cannot be had here."""
    from graft_scheduler.basemodels import local_folder
    from graft_scheduler.errors import GraftError

    if model is None:
        return None
    from graft_scheduler.rendering import fetch_tokenizer, open_tokenizer

    folder = local_folder(model)
    try:
        return fetch_tokenizer(model) if folder is None else open_tokenizer(folder)
    except GraftError as error:
        return error


def write_page(report: Any, path: Path) -> None:
    """The report as a page, there whole or not at all.

    Raises:
        InvalidInput: the file cannot be written.
    """
    from graft_scheduler.data.report_page import as_html
    from graft_scheduler.errors import InvalidInput

    if not path.name or path.is_dir():
        raise InvalidInput(f"`--html` is {path}; it must be a file, such as report.html")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(as_html(report), encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        raise InvalidInput(f"`--html` is {path}, which cannot be written: {error.strerror}") from error


def name_of(source: str) -> str:
    """A name for what nobody named: that of the file without its ending."""
    import re

    stem = Path(source).name.split(".")[0] or Path(source).absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"


def refuses(report: Any, kind: str) -> bool:
    """Whether faults of that kind refuse the data set."""
    return any(one.refuses for one in report.faults if one.kind == kind)


def rows_text(version: DatasetVersion) -> str:
    """How many rows each split has."""
    return ", ".join(f"{rows:,} {split}" for split, rows in version.contents.rows.items()) + " rows"


def _row(version: DatasetVersion) -> tuple[str, ...]:
    contents = version.contents
    pushed = age(time.time() - version.pushed_at)
    rows = f"{sum(contents.rows.values()):,}"
    newest = f"v{version.number}"
    return (version.name, newest, contents.format, rows, size(contents.bytes), pushed, version.submitter)


def _version_row(version: DatasetVersion) -> tuple[str, ...]:
    contents = version.contents
    rows = " + ".join(f"{rows:,}" for rows in contents.rows.values())
    pushed = age(time.time() - version.pushed_at)
    digest = version.digest.removeprefix("sha256:")[:12]
    told = (contents.format.value, rows, size(contents.bytes), pushed, version.submitter, contents.source)
    return (f"v{version.number}", *told, digest)
