"""A study's report: its page, its pictures and its tables, made from real studies of Optuna."""

from __future__ import annotations

import base64
import builtins
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState, create_trial

from graft_scheduler.errors import InvalidInput
from graft_scheduler.studies.canvas import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    as_png,
    as_svg,
    drawing,
    log_ticks,
    ticks_of_choices,
)
from graft_scheduler.studies.importance import Importance, importances
from graft_scheduler.studies.outcomes import Outcome, Setting, StudyResults, shorten
from graft_scheduler.studies.report import make_report, write_report
from graft_scheduler.studies.report_page import duration
from graft_scheduler.studies.report_tables import as_csv, as_json
from graft_scheduler.studies.results import read_results
from graft_scheduler.studies.trial_pictures import draw_curves, draw_history

pytest.importorskip("matplotlib")
optuna.logging.set_verbosity(optuna.logging.WARNING)

GIB = 1 << 30
PAIR = ["self_attn.q_proj", "self_attn.v_proj"]
SPACE: dict[str, BaseDistribution] = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "adapter.rank": IntDistribution(4, 64),
    "adapter.targets": CategoricalDistribution([json.dumps(None), json.dumps(PAIR)]),
}
TABLES = ["trials.csv", "trials.json"]
OF_SETTINGS = ["importance.png", "parallel.png", "slices.png"]


def settings(number: int) -> dict[str, Any]:
    """Of the trial with this number; the rate spreads evenly over its range."""
    return {
        "optimizer.learning_rate": 1e-5 * 100 ** (number * 0.618 % 1),
        "adapter.rank": 4 + number * 7 % 61,
        "adapter.targets": SPACE["adapter.targets"].choices[number % 2],  # type: ignore[attr-defined]
    }


def loss(params: dict[str, Any]) -> float:
    return 1.0 + float((math.log10(params["optimizer.learning_rate"]) + 4) ** 2)


def add(study: Study, value: float | None = None, **what: Any) -> None:
    """One more trial, completed with the loss of its settings unless told otherwise."""
    params = settings(len(study.get_trials(deepcopy=False)))
    if value is None and what.get("state") is None:
        value = loss(params)
    study.add_trial(create_trial(value=value, **{"params": params, "distributions": SPACE, **what}))


def without_settings(*values: float, name: str = "plain") -> Study:
    study = optuna.create_study(study_name=name)
    for value in values:
        study.add_trial(create_trial(value=value))
    return study


def one_objective(completed: int = 14, name: str = "sql") -> Study:
    study = optuna.create_study(study_name=name)
    for number in range(completed):
        curve = {step: loss(settings(number)) + 1 / step for step in (1, 2, 4, 8)}
        add(study, intermediate_values=curve, user_attrs={"job": f"job-{number}", "seconds": 60.0})
    return study


def with_every_outcome() -> Study:
    """Fourteen completed trials, then a pruned, a failed, an infeasible and a running one."""
    study = one_objective()
    why = {"why": "worse than the median", "host": "mini-2", "peak_memory_bytes": 3 * GIB}
    add(study, state=TrialState.PRUNED, intermediate_values={1: 4.0, 2: 3.5}, user_attrs=why)
    add(study, state=TrialState.FAIL, user_attrs={"why": "the loss is not a number", "duplicate_of": 3})
    add(study, value=0.25, constraints={"peak_memory_bytes": 5.0})
    study.ask(SPACE)
    return study


def several_objectives(count: int) -> Study:
    """The first and the last trial are the ends of a front; of the others each is dominated or infeasible."""
    study = optuna.create_study(study_name="front", directions=["minimize"] * count)
    for number in range(14):
        values = [1.0 + number, 20.0 * GIB - number * GIB, 30.0][:count]
        if 0 < number < 13:
            values = [value + 13 * (GIB if place == 1 else 1) for place, value in enumerate(values)]
        constraints = {"seconds": 1.0 if number == 5 else 0.0}
        study.add_trial(
            create_trial(values=values, params=settings(number), distributions=SPACE, constraints=constraints)
        )
    return study


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and texts by element."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.source = page.decode()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open, data))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def facts(self) -> dict[str, str]:
        return dict(zip(self.of("dt"), self.of("dd"), strict=True))


def share_of(png: bytes, colour: str) -> float:
    """How much of a picture has nearly this colour."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(png))[:, :, :3]
    return float((abs(pixels - to_rgb(colour)).max(axis=2) < 0.2).mean())


def drawn(draw: Callable[[StudyResults], Any], study: Study) -> tuple[bytes, str]:
    """One picture as a PNG and as it stands in a page."""
    with drawing():
        figure = draw(read_results(study, ["validation_loss"]))
        return as_png(figure), as_svg(figure, "one")


def ink_of(png: bytes) -> float:
    """How much of a picture is not its ground."""
    return 1.0 - share_of(png, "#fefefe")


@pytest.fixture(scope="module")
def report() -> dict[str, bytes]:
    return make_report(with_every_outcome(), ["validation_loss"])


@pytest.fixture(scope="module")
def two() -> dict[str, bytes]:
    return make_report(several_objectives(2), ["validation_loss", "peak_memory"])


def test_a_report_has_a_page_and_every_picture_that_applies(
    report: dict[str, bytes], two: dict[str, bytes]
) -> None:
    assert list(report) == ["report.html", "history.png", "curves.png", *OF_SETTINGS, *TABLES]
    assert list(two) == ["report.html", "pareto.png", *OF_SETTINGS, *TABLES]

    pictures = [data for files in (report, two) for name, data in files.items() if name.endswith(".png")]
    assert all(0.01 < ink_of(data) < 0.5 for data in pictures)
    assert Page(report["report.html"]).count("svg") == 5
    assert Page(two["report.html"]).count("svg") == 4


def test_the_page_begins_with_what_matters(report: dict[str, bytes]) -> None:
    best = min(range(14), key=lambda number: loss(settings(number)))
    page = Page(report["report.html"])

    facts = page.facts()

    assert page.of("h1") == ["Study sql"]
    assert facts["objective"] == "validation loss, less is better"
    assert facts["trials"] == "18: 14 completed, 1 infeasible, 1 pruned, 1 failed, 1 running"
    assert facts["best"] == f"{loss(settings(best)):.5g}, trial {best}"
    assert facts["job of the best"] == f"job-{best}"
    assert facts["adapter.rank"] == str(settings(best)["adapter.rank"])
    assert facts["adapter.targets"] == ("self_attn.q_proj, self_attn.v_proj" if best % 2 else "null")
    assert facts["time of all trials"] == "14 min 0 s"


def test_the_page_lists_every_trial_with_why_it_ended(report: dict[str, bytes]) -> None:
    page = Page(report["report.html"])
    rows = [attributes["class"] for tag, attributes in page.elements if tag == "tr" and "class" in attributes]

    assert [str(one).split()[0] for one in rows] == [
        *["completed"] * 14,
        *["pruned", "failed", "infeasible", "running"],
    ]
    assert sum("best" in str(one) for one in rows) == 1
    assert {"worse than the median", "mini-2", "3 GB"} <= set(page.of("td"))
    assert "same as trial 3; the loss is not a number" in page.of("td")


def test_the_page_needs_nothing_from_elsewhere(report: dict[str, bytes], two: dict[str, bytes]) -> None:
    for files in (report, two):
        page = Page(files["report.html"])
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        asked = [
            str(value)
            for _, attributes in page.elements
            for key, value in attributes.items()
            if key.rpartition(":")[2] in {"href", "src", "data", "action", "srcset"}
        ]
        asked += re.findall(r"url\(([^)]*)\)", page.source)

        assert "http:" not in page.source
        assert "https:" not in page.source
        assert "@import" not in page.source
        assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object", "base"})
        assert asked
        assert all(one.startswith("#") and one[1:] in ids for one in asked)
        assert len(ids) == len(set(ids))


def test_the_browser_may_run_the_one_script_only(report: dict[str, bytes]) -> None:
    page = Page(report["report.html"])
    (script,) = page.of("script")
    (policy,) = (
        str(attributes["content"]) for tag, attributes in page.elements if "http-equiv" in attributes
    )

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_page_is_dark_where_the_reader_is(report: dict[str, bytes]) -> None:
    source = report["report.html"].decode()
    pictures = source[source.index("<svg") : source.rindex("</svg>")]

    assert "prefers-color-scheme: dark" in source
    assert "fill: var(--ink)" in pictures
    assert "stroke: var(--blue)" in pictures
    assert "#1b1f23" not in pictures


def test_names_and_settings_of_others_are_shown_and_never_run() -> None:
    evil = "</title></svg><script>alert(1)</script>"
    study = optuna.create_study(study_name=evil)
    space: dict[str, BaseDistribution] = {
        evil: CategoricalDistribution([json.dumps(evil), json.dumps("$\\frac{$")])
    }
    attributes = {"job": evil, "host": "<img src=x>", "why": evil}
    for choice in (json.dumps(evil), json.dumps("$\\frac{$")):
        study.add_trial(
            create_trial(value=1.0, params={evil: choice}, distributions=space, user_attrs=attributes)
        )

    page = Page(make_report(study, [evil])["report.html"])

    assert page.of("h1") == [f"Study {evil}"]
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert page.count("title") == 1
    assert page.count("svg") == 3
    assert {evil, "$\\frac{$", "<img src=x>"} <= set(page.of("td"))
    assert "<script>alert" not in page.source


def test_names_in_any_script_and_with_broken_letters_can_be_written(tmp_path: Path) -> None:
    study = without_settings(1.0, 2.0, name="研究\ud800\x00\n" + "x" * 300)

    files = write_report(study, tmp_path)

    assert "研究" in files[0].read_text()
    assert json.loads((tmp_path / "trials.json").read_text())["name"] == study.study_name


def test_a_history_tells_the_outcomes_apart(report: dict[str, bytes]) -> None:
    alike, _ = drawn(draw_history, one_objective())

    for colour in (ORANGE, VERMILION):
        assert share_of(report["history.png"], colour) > 1e-4
        assert share_of(alike, colour) == 0
    assert share_of(report["history.png"], BLUE) > 1e-3
    assert "no value" in Page(report["report.html"]).of("text")
    assert "failed (1)" in Page(report["report.html"]).of("text")


def test_a_pruned_curve_is_pale() -> None:
    study = optuna.create_study()
    add(study, state=TrialState.PRUNED, intermediate_values={1: 4.0, 2: 3.5})

    png, svg = drawn(draw_curves, study)

    assert share_of(png, BLUE) == 0
    assert f"stroke: {GREY}; stroke-opacity: 0.5" in svg


def test_losses_of_very_different_size_get_a_log_scale() -> None:
    study = one_objective(3)
    _, before = drawn(draw_history, study)
    add(study, value=4000.0)

    _, after = drawn(draw_history, study)

    assert "log scale" not in before
    assert "less is better, log scale" in after


def test_ranges_in_logs_and_choices_are_drawn_as_such(report: dict[str, bytes]) -> None:
    texts = Page(report["report.html"]).of("text")

    assert "optimizer.learning_rate, log scale" in texts
    assert {"1e-05", "0.0001", "0.001", "null", "q_proj, v_proj"} <= set(texts)
    assert not any("[" in text for text in texts)


def test_a_front_is_told_from_the_rest(two: dict[str, bytes]) -> None:
    page = Page(two["report.html"])

    assert json.loads(two["trials.json"])["best"] == [0, 13]
    assert page.facts()["best"] == "2 on the Pareto front"
    assert {"on the front (2)", "completed, not on it (11)", "infeasible (1)"} <= set(page.of("text"))
    assert {"peak memory (GB)", "validation loss"} <= set(page.of("text"))
    assert share_of(two["pareto.png"], ORANGE) > 1e-4


def test_three_objectives_are_drawn_in_pairs() -> None:
    study = several_objectives(3)

    files = make_report(study, ["validation_loss", "peak_memory", "seconds"])

    page = Page(files["report.html"])
    source = page.source[page.source.index('<section id="pareto">') :]
    assert len(set(re.findall(r'id="pareto-axes_\d+"', source))) == 3
    assert {"validation loss", "peak memory (GB)", "time (seconds)"} <= set(page.of("text"))
    assert list(files)[1:5] == ["pareto.png", *OF_SETTINGS]


def test_without_a_completed_trial_the_page_says_so() -> None:
    study = optuna.create_study(study_name="early")
    add(study, state=TrialState.FAIL)
    add(study, value=1.0, constraints={"seconds": 3.0})
    add(study, state=TrialState.PRUNED)

    files = make_report(study)

    page = Page(files["report.html"])
    assert page.facts()["best"] == "no trial has completed within the constraints yet"
    assert "curves.png" not in files
    assert "Not drawn: no trial has reported a value on its way." in page.of("p")
    assert any("10 trials that can be compared" in text and "there are 1" in text for text in page.of("p"))
    assert ink_of(files["history.png"]) > 0.01


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("running", [0, 1])
def test_a_study_of_which_nothing_has_ended_has_a_page_and_tables(count: int, running: int) -> None:
    study = optuna.create_study(directions=["minimize"] * count)
    for _ in range(running):
        study.ask(SPACE)

    files = make_report(study)

    assert list(files) == ["report.html", *TABLES]
    assert Page(files["report.html"]).facts()["trials"] == ("1: 1 running" if running else "none")
    assert len(json.loads(files["trials.json"])["trials"]) == running


def test_a_single_trial_is_drawn() -> None:
    files = make_report(one_objective(1))

    assert {"history.png", "curves.png", "parallel.png", "slices.png"} <= set(files)
    assert Page(files["report.html"]).facts()["best"] == f"{loss(settings(0)):.5g}, trial 0"
    assert all(ink_of(files[name]) > 0.005 for name in files if name.endswith(".png"))


def test_a_study_that_searches_nothing_has_no_pictures_of_settings() -> None:
    files = make_report(without_settings(1.0, 2.0))

    assert list(files) == ["report.html", "history.png", *TABLES]
    says = Page(files["report.html"]).of("p")
    assert says.count("Not drawn: no trial that came to a value has a searched setting.") == 2


def test_many_trials_become_an_image_inside_the_page() -> None:
    study = optuna.create_study()
    for number in range(500):
        params = settings(number)
        add(study, intermediate_values={step: loss(params) + 1 / step for step in range(1, 30)})

    page = Page(make_report(study)["report.html"])

    images = [attributes["href"] for tag, attributes in page.elements if tag == "image"]
    assert len(images) >= 3
    assert all(str(one).startswith("data:image/png;base64,") for one in images)
    assert len(page.source) < 3_000_000


def test_a_maximum_is_looked_for_where_the_study_does() -> None:
    study = optuna.create_study(direction="maximize")
    for value in (1.0, 3.0, 2.0):
        add(study, value=value)

    assert read_results(study).best == (1,)
    assert read_results(study).goals[0].better == "more is better"


def test_an_infeasible_trial_is_never_the_best() -> None:
    results = read_results(with_every_outcome())

    assert results.trials[16].outcome is Outcome.INFEASIBLE
    assert results.trials[16].values == (0.25,)
    assert results.best != (16,)


def test_the_csv_has_a_line_for_each_trial(report: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(report["trials.csv"].decode())))

    assert [int(row["number"]) for row in rows] == list(range(18))
    assert float(rows[3]["objective.validation_loss"]) == loss(settings(3))
    assert float(rows[3]["setting.optimizer.learning_rate"]) == settings(3)["optimizer.learning_rate"]
    assert rows[3]["setting.adapter.targets"] == "self_attn.q_proj, self_attn.v_proj"
    assert (rows[14]["state"], rows[14]["objective.validation_loss"]) == ("pruned", "3.5")
    assert (rows[14]["host"], rows[14]["peak_memory_bytes"]) == ("mini-2", str(3 * GIB))
    assert (rows[15]["state"], rows[15]["objective.validation_loss"]) == ("failed", "")
    assert rows[15]["duplicate_of"] == "3"


def test_the_json_has_all_that_is_known(report: dict[str, bytes]) -> None:
    document = json.loads(report["trials.json"])

    assert document["objectives"] == [{"name": "validation_loss", "direction": "minimize"}]
    third, infeasible = document["trials"][3], document["trials"][16]
    assert third["settings"] == {**settings(3), "adapter.targets": PAIR}
    assert third["reported"]["8"] == loss(settings(3)) + 1 / 8
    assert (third["job"], third["seconds"], third["host"]) == ("job-3", 60.0, None)
    assert infeasible["values"] == {"validation_loss": 0.25}
    assert infeasible["constraints"] == {"peak_memory_bytes": 5.0}
    assert infeasible["state"] == "infeasible"


def test_what_a_spreadsheet_would_compute_stays_a_text() -> None:
    study = optuna.create_study()
    add(study, value=-1.5, user_attrs={"host": "=cmd()", "why": "-5"})

    results = read_results(study)

    (row,) = csv.DictReader(io.StringIO(as_csv(results)))
    assert (row["host"], row["why"], row["objective.objective"]) == ("'=cmd()", "-5", "-1.5")
    assert json.loads(as_json(results))["trials"][0]["host"] == "=cmd()"


def test_numbers_without_end_are_kept_and_not_drawn() -> None:
    study = without_settings(1.0, 2.0)
    add(study, value=math.inf, intermediate_values={1: math.nan, 2: 1e300})

    files = make_report(study)

    last = json.loads(files["trials.json"])["trials"][2]
    assert last["values"] == {"objective": "inf"}
    assert last["reported"] == {"1": "nan", "2": 1e300}
    assert "no value" in Page(files["report.html"]).of("text")


def test_attributes_of_another_kind_than_ours_do_no_harm() -> None:
    study = optuna.create_study()
    add(study, user_attrs={"job": 7, "seconds": "long", "peak_memory_bytes": None, "duplicate_of": True})

    (trial,) = read_results(study).trials

    assert (trial.job, trial.seconds, trial.peak_memory_bytes, trial.duplicate_of) == ("7", None, None, None)


def test_a_foreign_studys_choices_and_changed_ranges_are_read() -> None:
    study = optuna.create_study()
    for high, choice in ((0.1, "relu"), (0.4, "tanh")):
        space = {"act": CategoricalDistribution(["relu", "tanh", None]), "x": FloatDistribution(0.0, high)}
        study.add_trial(create_trial(value=1.0, params={"act": choice, "x": 0.05}, distributions=space))

    act, x = read_results(study).settings

    assert act.choices == ("relu", "tanh", "null")
    assert (x.low, x.high) == (0.0, 0.4)


def test_the_decisive_setting_is_the_most_important() -> None:
    for direction, sign in ((StudyDirection.MINIMIZE, 1), (StudyDirection.MAXIMIZE, -1)):
        study = optuna.create_study(direction=direction)
        for number in range(40):
            add(study, value=sign * loss(settings(number)))

        found = importances(study)

        assert isinstance(found, Importance)
        assert next(iter(found.shares)) == "optimizer.learning_rate"
        assert sum(found.shares.values()) == pytest.approx(1.0)
        assert (found.trials, found.step) == (40, None)


def test_where_most_trials_are_pruned_they_are_compared_at_the_step_that_most_came_to() -> None:
    study = optuna.create_study()
    for number in range(40):
        lost = loss(settings(number))
        reported = {step: lost + 1 / step for step in ((1, 2) if number % 10 else (1, 2, 6, 18))}
        end = {"state": TrialState.PRUNED} if number % 10 else {"value": lost}
        add(study, intermediate_values=reported, **end)

    found = importances(study)

    assert isinstance(found, Importance)
    assert (found.trials, found.step) == (40, 2)
    assert next(iter(found.shares)) == "optimizer.learning_rate"


@pytest.mark.parametrize(
    ("count", "value", "words"),
    [(9, None, "there are 9"), (12, 1.0, "came to the same value")],
)
def test_an_importance_that_cannot_be_told_is_said(count: int, value: float | None, words: str) -> None:
    study = optuna.create_study()
    for _ in range(count):
        add(study, value=value)

    assert words in str(importances(study))


def test_a_report_is_written_over_an_older_one(tmp_path: Path) -> None:
    write_report(without_settings(1.0, name="older"), tmp_path / "deep" / "report")

    written = write_report(without_settings(1.0, 2.0, name="newer"), tmp_path / "deep" / "report")

    assert sorted(written) == sorted((tmp_path / "deep" / "report").iterdir())
    assert written[0].name == "report.html"
    assert "newer" in written[0].read_text()


def test_without_matplotlib_the_remedy_is_named_and_nothing_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)

    with pytest.raises(InvalidInput, match=r"pip install '\.\[plot\]'"):
        write_report(one_objective(1), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(InvalidInput, match=r"report's folder is .*file, which cannot be written"):
        write_report(optuna.create_study(), tmp_path / "file")


def test_the_users_own_style_of_matplotlib_is_left_alone() -> None:
    import matplotlib

    study = without_settings(1.0, 2.0)

    with matplotlib.rc_context({"font.size": 33.0, "text.usetex": True}):
        png, svg = drawn(draw_history, study)

        assert matplotlib.rcParams["font.size"] == 33.0
    assert (png, svg) == drawn(draw_history, study)


@given(st.floats(1e-12, 1e12), st.floats(1.0, 1e9))
def test_ticks_of_a_log_axis_lie_on_it(low: float, ratio: float) -> None:
    high = low * ratio

    ticks = log_ticks(low, high)

    assert ticks == sorted(ticks)
    assert all(low * 0.99 <= one <= high * 1.01 for one in ticks)
    assert len(ticks) in ({1} if low == high else range(2, 9))


@given(st.text(), st.integers(8, 60))
def test_a_shortened_text_is_one_line_that_fits(text: str, most: int) -> None:
    line = shorten(text, most)

    assert len(line) <= most
    assert line.isprintable()
    assert shorten(line, most) == line


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=40), min_size=1, max_size=40, unique=True))
def test_choices_keep_labels_that_differ(choices: list[str]) -> None:
    places, labels = ticks_of_choices(Setting("s", 0.0, 1.0, choices=tuple(choices)), 18)

    assert len(labels) == len(places) <= 8
    assert len(set(labels)) == len(labels)
    assert all(len(label) <= 18 for label in labels)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h")],
)
def test_a_duration_reads_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
