"""The files of a report: complete, or the old ones."""

import pytest
from sample_records import BARE, FULL, epochs

from qdeploy.errors import QdeployError
from qdeploy.record import Record
from qdeploy.report.write import write_pages, write_training_page


def test_the_three_files_are_written_and_nothing_else(tmp_path):
    page = write_pages(FULL, tmp_path)
    assert page == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
    }
    assert Record.from_json((tmp_path / "report.json").read_text("utf-8")) == FULL
    assert FULL.name in page.read_text("utf-8")


def test_a_second_report_takes_the_place_of_the_first(tmp_path):
    write_pages(FULL, tmp_path)
    write_pages(BARE, tmp_path)
    assert Record.from_json((tmp_path / "report.json").read_text("utf-8")) == BARE


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "training.html"
    path.write_text("old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(QdeployError, match=r"cannot write .*training\.html: No space left"):
        write_training_page(epochs(1), path, "lenet5", 3, going=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QdeployError, match=r"cannot write .*absent.*report\.json"):
        write_pages(FULL, tmp_path / "absent")
