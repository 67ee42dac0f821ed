"""A gallery between processes: a reader beside a writer that is killed, and two writers."""

import os
from itertools import cycle
from pathlib import Path

import pytest

from bdbnet.gallery.live import writing

pytestmark = pytest.mark.end_to_end

ROBUSTNESS = Path(__file__).resolve().parents[2] / "experiments" / "robustness"


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROBUSTNESS))
    import kill_adding

    return kill_adding.Gallery(tmp_path / "gallery")


def test_a_reader_sees_whole_states_of_a_writer_that_is_killed_and_the_next_one_goes_on(gallery):
    with writing(gallery.folder):
        second = gallery.start()
        second.join()
        assert second.exitcode == os.EX_TEMPFAIL  # what LockedError ended
    assert gallery.announced() == 0
    moments = cycle([0.0, 0.013, 0.04])
    for _ in range(5):
        before = gallery.number
        assert "opened" in gallery.kill(lambda: next(moments))
        assert gallery.number > before
