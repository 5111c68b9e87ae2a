"""`graft data`: the report as a person and a script read it, names, differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft_cli import samples
from tests.cli.conftest import Graft
from tests.scheduler.data.writing import CHAT, chat, turn, write

MODEL = str(samples.base_model())


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Three faults, and a row that is there twice."""
    rows = [CHAT, "{", chat(turn("user")), chat(turn("user", ""), turn("assistant")), CHAT]
    return write(tmp_path / "rows.jsonl", *rows)


def test_every_fault_is_told_by_line_and_the_data_set_is_not_accepted(graft: Graft, broken: Path) -> None:
    run = graft("data", "validate", str(broken))

    assert run.code == 2
    for line in (2, 3, 4, 5):
        assert f"{broken}:{line}: " in run.stdout
    assert "refused: 1 syntax, 1 nothing-to-learn, 1 empty" in run.stdout
    assert "to know: 1 duplicate" in run.stdout
    assert f"{broken} is not accepted: 3 faults" in run.stderr
    assert "--allow nothing-to-learn" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_good_data_set_is_shown_as_it_is_trained_on(graft: Graft) -> None:
    run = graft("data", "validate", str(samples.data_folder()), "-m", MODEL)

    assert run.code == 0
    assert "1,024 rows" in run.stdout
    assert "lengths of train" in run.stdout
    assert "tokens" in run.stdout
    sample = run.stdout.partition("as it is trained on")[2].partition("\n")[2]
    learned = sample.partition("«")[2].partition("»")[0]
    first = json.loads((samples.data_folder() / "train.jsonl").read_text().splitlines()[0])
    assert first["messages"][-1]["content"].strip() in learned
    assert first["messages"][0]["content"].strip() not in learned


def test_json_has_the_whole_report(graft: Graft, broken: Path) -> None:
    run = graft("data", "validate", str(broken), "-m", MODEL, "--json")

    assert run.code == 2
    report = run.json
    assert (report["accepted"], report["format"], report["tokens_note"]) == (False, "chat", None)
    assert [(one["line"], one["kind"], one["refuses"]) for one in report["faults"]] == [
        (2, "syntax", True),
        (3, "nothing-to-learn", True),
        (4, "empty", True),
        (5, "duplicate", False),
    ]
    (train,) = report["splits"]
    assert (train["rows"], train["bad_rows"], train["lengths"]["unit"]) == (2, 3, "tokens")
    assert sum(train["lengths"]["histogram"]["counts"]) == 2


def test_the_page_shows_what_rows_say_and_runs_none_of_it(graft: Graft, tmp_path: Path) -> None:
    row = chat(turn("user", "<script>alert(1)</script>"), turn("assistant", "no & never"))
    data, page = write(tmp_path / "rows.jsonl", row, CHAT), tmp_path / "out" / "report.html"

    run = graft("data", "validate", str(data), "-m", MODEL, "--html", str(page))

    assert run.code == 0
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<mark>" in text
    assert "<svg" in text


def test_a_long_row_is_told_with_what_is_cut(graft: Graft, tmp_path: Path) -> None:
    rows = [
        chat(turn("user", "short"), turn("assistant", "long " * 60)),
        chat(turn("user", "long " * 60), turn("assistant", "x")),
    ]
    path = write(tmp_path / "rows.jsonl", *rows)

    report = graft("data", "validate", str(path), "-m", MODEL, "--max-length", "64", "--json").json

    assert report["counts"] == {"truncated": 2, "lost": 1}
    assert report["accepted"]
    assert report["splits"][0]["truncated_share"] == 1.0


def test_without_a_tokenizer_it_is_said_why_tokens_are_not_counted(graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = write(tmp_path / "rows.jsonl", CHAT)

    run = graft("data", "validate", str(path), "-m", str(tmp_path / "model"))

    assert run.code == 0
    assert "not counted: " in run.stdout
    assert "bytes" in run.stdout


def test_a_data_set_gets_a_name_and_is_found_by_it(service: Graft, tmp_path: Path) -> None:
    path = write(tmp_path / "sql pairs.jsonl", CHAT)

    pushed = service("data", "push", str(path))
    again = service("data", "push", str(path))
    path = write(path, CHAT, chat(turn("user", "c"), turn("assistant", "d")))
    more = service("data", "push", str(path), "--json")

    assert (pushed.stdout, again.stdout) == ("sql-pairs@v1\n", "sql-pairs@v1\n")
    assert "it is there already" in again.stderr
    assert (more.json["version"], more.json["rows"]) == (2, {"train": 2})
    assert service("data", "ls").stdout.splitlines()[1].split()[:4] == ["sql-pairs", "v2", "chat", "2"]
    assert [line.split()[0] for line in service("data", "ls", "sql-pairs").stdout.splitlines()[1:]] == [
        "v2",
        "v1",
    ]
    assert "sql-pairs@v1" in service("data", "show", "sql-pairs@v1").stdout
    assert service("data", "validate", "sql-pairs@v2", "-m", MODEL).code == 0
    difference = service("data", "diff", "sql-pairs@v1", "sql-pairs@v2").stdout
    assert difference.splitlines()[1].split() == ["train", "1", "1", "0"]
    assert '+ train: {"messages"' in difference


def test_a_name_is_taken_away_only_when_that_is_meant(
    service: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service("data", "push", str(write(tmp_path / "rows.jsonl", CHAT)), "-n", "sql")

    asked = service("data", "rm", "sql")
    assert asked.code != 0
    assert service("data", "ls", "sql").code == 0
    assert service("data", "rm", "sql", "--yes").code == 0
    gone = service("data", "show", "sql")

    assert gone.code == 3
    assert "there is no data set 'sql'" in gone.stderr
    assert "no data set has a name yet" in service("data", "ls").stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--column", "prompt"], "`--column` is 'prompt'; it must be OURS=THEIRS"),
        (["--allow", "everything"], "`data.allow` is 'everything'; it must be of roles"),
        (["--format", "yaml"], "`format` is 'yaml'; it must be 'chat'"),
        (["--split", "train"], "`data.split` is of a data set on the hub"),
    ],
)
def test_a_wrong_option_is_refused_in_words(
    graft: Graft, tmp_path: Path, words: list[str], complaint: str
) -> None:
    run = graft("data", "validate", str(write(tmp_path / "rows.jsonl", CHAT)), *words)

    assert run.code == 2
    assert complaint in run.stderr
