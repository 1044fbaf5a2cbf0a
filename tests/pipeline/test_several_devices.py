"""train --devices 2: the command starts the processes, and one of them speaks and writes."""

from command_line import RECIPE, checkpoint, metrics, train_in_two_processes


def test_two_processes_train_one_run(tmp_path):
    run = tmp_path / "run"
    settings = ["train.float_epochs=0", "data.batch_size=200"]
    chosen = [part for setting in settings for part in ("--set", setting)]
    ended = train_in_two_processes(RECIPE, "--epochs", "1", *chosen, "-o", run)
    assert ended.stdout.count("epoch   1") == ended.stdout.count(f"trained: {run}") == 1
    assert ended.stderr == ""
    assert len(metrics(run)) == len(checkpoint(run / "last.pt")["history"]) == 1
