"""What a user sees while a network trains."""

import re

import pandas as pd
import pytest

from bdbnet.training.callbacks import History
from bdbnet.training.progress import TrainingProgress
from bdbnet.training.runs import train


def rows_of(text: str) -> list[str]:
    """Header and rows of the table."""
    return [line for line in text.splitlines() if re.match(r" *(epoch|\d+/\d+)\b", line)]


def ends(line: str) -> set[int]:
    """Where the cells of a line end."""
    return {match.end() for match in re.finditer(r"\S+( \S+)*", line)}


def bars_of(text: str) -> list[str]:
    return [bar for bar in re.split(r"[\r\n]", text) if re.match(r"epoch \d/\d: ", bar) and "images/s" in bar]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns, in which every step is drawn."""

    def build(columns: int) -> None:
        monkeypatch.setattr(TrainingProgress, "live", True)
        monkeypatch.setenv("COLUMNS", str(columns + 1))  # tqdm leaves one free
        monkeypatch.setenv("LINES", "30")
        monkeypatch.setattr(TrainingProgress.__init__, "__defaults__", (0.0,))

    return build


def test_in_a_terminal_of_80_columns_rows_stand_below_their_heads_and_the_bar_fits(
    tiny_config, tmp_path, terminal, capsys
):
    terminal(80)
    train(tiny_config("callbacks.progress=true", "evaluation.before_training=true"), tmp_path)
    out, drawn = capsys.readouterr()
    head, *rows = rows_of(out)
    assert head.split() == ["epoch", "loss", "lr", "images/s", "memory", "Rank-1", "mAP"]
    assert [row.split()[0] for row in rows] == ["0/2", "1/2", "2/2"]
    assert all(ends(row) <= ends(head) for row in rows)
    assert ends(rows[-1]) == ends(head)
    assert len(rows[1].split()) == 6  # not evaluated; the memory has a unit
    history = pd.read_csv(tmp_path / "history.csv")
    loss, rate, speed = rows[-1].split()[1:4]
    assert (float(loss), float(rate)) == pytest.approx((history["loss"][1], history["learning_rate"][1]), rel=0.05)
    assert float(speed.replace(",", "")) == pytest.approx(history["images_per_second"][1], abs=0.51)
    assert rows[-1].split()[-2:] == [f"{100 * history[name][1]:.1f}" for name in ("rank1", "mAP")]
    bars = bars_of(drawn)
    assert bars[-1].startswith("epoch 2/2: 100%")
    assert max(map(len, bars)) <= 80
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, loss \d+\.\d{3}  [\d,]+ images/s$", bars[-1].rstrip())
    assert "embedding the test set" in drawn


def test_a_wider_terminal_shows_the_parts_of_the_loss(tiny_config, tmp_path, terminal, capsys):
    terminal(200)
    train(tiny_config("callbacks.progress=true", "trainer.max_epochs=1"), tmp_path)
    last = bars_of(capsys.readouterr().err)[-1]
    for part in ("triplet_global", "softmax_global", "triplet_dropping", "softmax_dropping"):
        assert part in last


def test_without_a_terminal_there_is_no_bar_and_rows_end_with_the_time_left(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainingProgress, "live", False)
    train(tiny_config("callbacks.progress=true"), tmp_path)
    out, drawn = capsys.readouterr()
    head, *rows = rows_of(out)
    assert head.split()[-1] == "left"
    assert all(ends(row) <= ends(head) for row in rows)
    assert all(re.search(r" \d\d:\d\d$", row) for row in rows)
    assert not bars_of(drawn)
    assert max(map(len, rows)) <= 80


def test_without_a_terminal_an_evaluation_says_now_and_then_how_far_it_is(tiny_config, tmp_path, monkeypatch, capsys):
    config = tiny_config("callbacks.progress=true", "trainer.max_epochs=1", "loading.test_batch_size=8")
    train(config, tmp_path / "quick")
    assert "embedding" not in capsys.readouterr().err  # it took less than the time between two lines
    monkeypatch.setattr("bdbnet.evaluation.progress.SECONDS_BETWEEN_LINES", 0.0)
    train(config, tmp_path / "slow")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("embedding the test set")]
    total = len(lines)
    assert total > 1
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"embedding the test set: batch {number} of {total}, \d\d:\d\d left", line)


def test_a_resumed_training_goes_on_with_its_table(tiny_config, tmp_path, monkeypatch, capsys):
    begin_epoch = History.on_train_epoch_start

    def stop_in_second_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    settings = ("callbacks.progress=true", "callbacks.checkpoint_every_seconds=0", "evaluation.before_training=true")
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config(*settings), tmp_path)
    assert [row.split()[0] for row in rows_of(capsys.readouterr().out)] == ["epoch", "0/2", "1/2"]
    train(tiny_config(*settings, "ckpt_path=last"), tmp_path)
    assert [row.split()[0] for row in rows_of(capsys.readouterr().out)] == ["epoch", "2/2"]
