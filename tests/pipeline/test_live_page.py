"""training.html while a run goes on, and after it."""

import re
import sys
from pathlib import Path

import pytest
from command_line import RECIPE, fails, succeeds

from qdeploy.pipeline import live_page as module
from qdeploy.pipeline.live_page import live_page
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "report"))
from parsed_page import Page

RELOAD = "location.reload()"
HEADER = "epoch,train_loss,test_top1\n"


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def recipe():
    return Recipe.load(RECIPE, ["train.epochs=3"])


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set by hand."""
    seconds = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


def shown(run):
    """The page's words, and whether it reloads."""
    html = run.curves.read_text()
    return " ".join(Page(html).text), RELOAD in html


def test_the_page_follows_metrics_csv(run, recipe, clock):
    with live_page(run, recipe) as rewrite:
        rewrite()
        words, reloads = shown(run)
        assert "Training: 0 of 3 epochs" in words
        assert reloads
        for epoch in (1, 2):
            run.metrics.write_text(
                HEADER + "".join(f"{e},0.5,0.{e}5\n" for e in range(1, epoch + 1))
            )
            clock[0] += 10
            rewrite()
            words, reloads = shown(run)
            assert f"Training: {epoch} of 3 epochs" in words
            assert f"Test top-1 {epoch}5.00 %" in words
            assert reloads


def test_epochs_in_quick_succession_share_a_writing(run, recipe, clock):
    with live_page(run, recipe) as rewrite:
        rewrite()
        run.metrics.write_text(HEADER + "1,0.5,0.15\n")
        clock[0] += 0.2
        rewrite()
        assert "0 of 3" in shown(run)[0]
        clock[0] += 2
        rewrite()
        assert "1 of 3" in shown(run)[0]


def test_at_the_end_it_is_complete_and_reloads_no_more(run, recipe, clock):
    with live_page(run, recipe):
        run.metrics.write_text(HEADER + "1,0.5,0.1\n2,0.5,0.2\n3,0.5,0.3\n")
    words, reloads = shown(run)
    assert "Finished: 3 of 3 epochs" in words
    assert not reloads


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_breaks_off_says_so(run, recipe, error):
    run.metrics.write_text(HEADER + "1,0.5,0.1\n")
    with pytest.raises(error), live_page(run, recipe):
        raise error
    words, reloads = shown(run)
    assert "Stopped after 1 of 3 epochs" in words
    assert not reloads


def test_training_rewrites_it_after_every_epoch(tmp_path, monkeypatch):
    """The pages of a real run, taken as they are written."""
    pages = []
    write = module.write_training_page

    def keep(rows, path, *arguments):
        write(rows, path, *arguments)
        pages.append((path, Page(path.read_text())))

    monkeypatch.setattr(module, "write_training_page", keep)
    monkeypatch.setattr(module, "AT_MOST_EVERY", 0)
    quick = ("--epochs", "2", "--set", "train.float_epochs=1", "--set", "data.batch_size=400")
    succeeds("train", RECIPE, *quick, "-o", tmp_path / "run")
    assert [path.parent.name for path, _ in pages] == ["float"] * 3 + ["run"] * 4
    states = [re.search(r"\w+: \d of \d epochs", " ".join(page.text))[0] for _, page in pages]
    assert states[3:] == [
        "Training: 0 of 2 epochs", "Training: 1 of 2 epochs", "Training: 2 of 2 epochs",
        "Finished: 2 of 2 epochs",
    ]  # fmt: skip
    assert [len(page.charts()) for _, page in pages[3:]] == [0, 3, 3, 3]


def test_a_run_that_diverges_leaves_a_page_that_says_so(tmp_path):
    quick = ("--epochs", "2", "--set", "train.float_epochs=0", "--set", "data.batch_size=400")
    fails("train", RECIPE, *quick, "--set", "train.lr=1e30", "-o", tmp_path / "run")
    words, reloads = shown(RunFolder(tmp_path / "run"))
    assert "Stopped after 0 of 2 epochs" in words
    assert not reloads
