import pytest

from bdbnet.training import PaperSchedule


def test_the_paper_s_rates_by_epoch():
    """Section 4.1.2: to 1e-3 in 50 epochs, 1e-4 after 200, 1e-5 after 300."""
    schedule = PaperSchedule(400)
    rates = [1e-3 * schedule(epoch) for epoch in range(400)]
    assert rates[:50] == pytest.approx([1e-3 * (epoch + 1) / 50 for epoch in range(50)])
    assert rates[50:200] == pytest.approx([1e-3] * 150)
    assert rates[200:300] == pytest.approx([1e-4] * 100)
    assert rates[300:] == pytest.approx([1e-5] * 100)


def test_the_released_code_s_staircase():
    schedule = PaperSchedule(400, staircase=True)
    assert [1e-3 * schedule(epoch) for epoch in range(60)] == pytest.approx(
        [min(1e-3, 1e-4 * (epoch // 5 + 1)) for epoch in range(60)]
    )


@pytest.mark.parametrize("length", [1, 3, 40, 401])
def test_another_length_keeps_the_shape(length):
    """Each epoch's factor is that of the 400-epoch schedule at the same share of the run."""
    schedule = PaperSchedule(length)
    for epoch in range(length):
        share = 400 * epoch / length
        if share >= 50:
            assert schedule(epoch) == pytest.approx(1 if share < 200 else 0.1 if share < 300 else 0.01)
        else:
            assert schedule(epoch) == pytest.approx(min(1, (epoch + 1) * 400 / length / 50))


def test_forty_epochs_are_a_tenth_of_the_paper_s():
    schedule = PaperSchedule(40)
    assert [round(schedule(epoch), 6) for epoch in (0, 4, 19, 20, 29, 30)] == [0.2, 1, 1, 0.1, 0.1, 0.01]


def test_no_warm_up_and_no_decay():
    schedule = PaperSchedule(5, warmup_epochs=0, decay_epochs=[])
    assert [schedule(epoch) for epoch in range(5)] == [1] * 5


@pytest.mark.parametrize("settings", [{"decay_epochs": [300, 200]}, {"warmup_epochs": -1}, {"epochs": 0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError):
        PaperSchedule(10, **settings)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="max_epochs"):
        PaperSchedule(0)
