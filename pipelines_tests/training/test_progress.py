"""Lines that say how far a preparation is and how long it still takes."""

import io

from training.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_preparation_says_how_far_it_is_and_how_long_it_takes():
    clock, stream = Clock(), io.StringIO()
    with Progress("reading clips", 1000, stream, clock) as progress:
        for done in range(0, 600, 100):
            progress.update(done, 0, "3 left out")
            clock.now += 6
    assert stream.getvalue().splitlines() == [
        "reading clips: 200 of 1,000 (20%), 3 left out; 0 min 12 s, about 0 min 48 s left",
        "reading clips: 400 of 1,000 (40%), 3 left out; 0 min 24 s, about 0 min 36 s left",
    ]


def test_what_was_done_before_does_not_count_as_speed():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("reading clips", 1000, stream, clock)
    clock.now = 20
    progress.update(600, without_work=500)
    assert stream.getvalue().endswith("0 min 20 s, about 1 min 20 s left\n")


def test_a_short_preparation_says_nothing_and_an_endless_one_no_end():
    clock, stream = Clock(), io.StringIO()
    with Progress("reading clips", 0, stream, clock) as progress:
        progress.update(5)
        assert stream.getvalue() == ""
        clock.now = 15
        progress.update(7)
    assert stream.getvalue() == "reading clips: 7; 0 min 15 s\n"


def test_a_terminal_has_one_line_which_is_gone_in_the_end():
    clock, stream = Clock(), Terminal()
    with Progress("encoding", 10, stream, clock) as progress:
        for done in range(3):
            clock.now += 1
            progress.update(done)
    text = stream.getvalue()
    assert "\n" not in text and text.count("encoding: ") == 3 and text.endswith(" \r")


def test_durations_have_two_units():
    assert [duration(seconds) for seconds in (7, 125, 3900)] == ["0 min 07 s", "2 min 05 s", "1 h 05 min"]
