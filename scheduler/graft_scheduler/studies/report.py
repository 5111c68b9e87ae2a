"""A study's results as files: one page that needs nothing else, its pictures, and its trials as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna.study import Study

from graft_scheduler.errors import InvalidInput
from graft_scheduler.studies.canvas import as_png, as_svg, drawing
from graft_scheduler.studies.pictures import draw_pictures
from graft_scheduler.studies.report_page import Section, as_html
from graft_scheduler.studies.report_tables import as_csv, as_json
from graft_scheduler.studies.results import read_results

PAGE, CSV, JSON = "report.html", "trials.csv", "trials.json"


def write_report(study: Study, destination: Path, goals: Sequence[str] = ()) -> list[Path]:
    """Write `report.html`, a PNG of each picture that applies, `trials.csv` and `trials.json`; returns them.

    `goals` names the objectives, as `StudySpec.objectives` does (`peak_memory` is bytes, `seconds` seconds);
    without it they have the study's own metric names. Each file is there whole or not at all, and none is
    if one cannot be made. `destination` is a folder, made where it is missing.

    Raises:
        InvalidInput: matplotlib is missing, or the folder cannot be written.
    """
    files = make_report(study, goals)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=destination, prefix=".report-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            for name in files:
                os.replace(Path(folder) / name, destination / name)
    except OSError as error:
        raise InvalidInput(
            f"the report's folder is {destination}, which cannot be written: {error.strerror}"
        ) from error
    return [destination / name for name in files]


def make_report(study: Study, goals: Sequence[str] = ()) -> dict[str, bytes]:
    """Names of files and what is in them, the page first.

    Raises:
        InvalidInput: matplotlib is missing.
    """
    results = read_results(study, goals)
    pictures: dict[str, bytes] = {}
    sections = []
    with drawing():
        for picture in draw_pictures(study, results):
            svg = None if picture.figure is None else as_svg(picture.figure, picture.name)
            sections.append(Section(picture.name, picture.title, picture.says, svg))
            if picture.figure is not None:
                pictures[f"{picture.name}.png"] = as_png(picture.figure)
    texts = {PAGE: as_html(results, sections), CSV: as_csv(results), JSON: as_json(results)}
    encoded = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    return {PAGE: encoded.pop(PAGE), **pictures, **encoded}
