"""What a user sees while a network trains."""

import re

from bdbnet.training.progress import TrainingProgress
from bdbnet.training.runs import train


def test_the_bar_shows_epoch_loss_parts_rate_speed_and_time_left(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainingProgress, "live", True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(TrainingProgress.__init__, "__defaults__", (0.0,))  # every step is drawn
    train(tiny_config("callbacks.progress=true"), tmp_path)
    drawn = capsys.readouterr().err
    assert "embedding the test set" in drawn
    bars = [bar for bar in re.split(r"[\r\n]", drawn) if bar.startswith("epoch 2/2") and "images/s" in bar]
    assert bars
    for part in ("triplet_global", "softmax_global", "triplet_dropping", "softmax_dropping", "lr 1.0e-04"):
        assert part in bars[-1]
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", bars[-1])  # elapsed < left


def test_without_a_terminal_each_epoch_is_a_line(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainingProgress, "live", False)
    train(tiny_config("callbacks.progress=true"), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all("triplet_global" in line and "lr " in line and "left " in line for line in lines)
    assert "Rank-1" in lines[-1]
