"""Work runs beside its reader, reports, and ends when it should."""

import threading
import time

import pytest

from diffusers_mardini.app.jobs import Ended, Job, Jobs, Turns, reports_of


def test_reports_come_in_order_and_the_result_last():
    def work(report):
        for i in range(3):
            report(i)
            time.sleep(0.02)
        return "done"

    assert list(reports_of(work, Job(10))) == [("report", 0), ("report", 1), ("report", 2), ("result", "done")]


def test_a_slow_reader_gets_the_newest_report_only():
    first_read, reported = threading.Event(), threading.Event()

    def work(report):
        report("first")
        first_read.wait()
        for i in range(50):
            report(i)
        reported.set()
        time.sleep(0.2)

    reports = reports_of(work, Job(10))
    assert next(reports) == ("report", "first")
    first_read.set()
    reported.wait()
    assert next(reports) == ("report", 49)


def test_errors_of_the_work_reach_the_reader():
    def work(report):
        raise ValueError("no frames")

    with pytest.raises(ValueError, match="no frames"):
        list(reports_of(work, Job(10)))


def test_work_ends_when_the_reader_goes_away():
    job, ended = Job(10), threading.Event()

    def work(report):
        try:
            while True:
                job.check()
                report(0)
                time.sleep(0.005)
        finally:
            ended.set()

    reports = reports_of(work, job)
    next(reports)
    reports.close()
    assert ended.wait(2)


def test_a_job_ends_when_its_time_is_up():
    job = Job(0)
    time.sleep(0.002)
    with pytest.raises(Ended, match="Stopped after 0 seconds"):
        job.check()


def test_a_new_job_of_a_session_ends_the_one_before_and_no_other():
    jobs = Jobs(10)
    first, other = jobs.begin("me"), jobs.begin("you")
    second = jobs.begin("me")
    with pytest.raises(Ended, match="Cancelled"):
        first.check()
    second.check()
    jobs.cancel("me")
    jobs.cancel("nobody")
    with pytest.raises(Ended):
        second.check()
    other.check()


def test_turns_come_in_order_and_who_left_does_not_count():
    turns, (first, second, third) = Turns(2), (Job(10) for _ in range(3))
    with turns.place(first), turns.place(second), turns.place(third):
        assert [turns.ahead(job, timeout=0) for job in (first, second, third)] == [0, 1, 2]
        with pytest.raises(Ended, match="2 others are waiting already"), turns.place(Job(10)):
            pass
        second.cancel()
        assert turns.ahead(third, timeout=0) == 1
        with pytest.raises(Ended, match="Cancelled"):
            turns.ahead(second, timeout=0)
    with turns.place(third):
        assert turns.ahead(third, timeout=0) == 0


def test_cancelled_work_holds_its_turn_until_it_has_ended():
    turns, first, second, ending = Turns(2), Job(10), Job(10), threading.Event()

    def work(report):
        report(0)
        ending.wait(5)

    with turns.place(first), turns.place(second):
        assert turns.ahead(first, timeout=0) == 0
        reports = reports_of(work, first)
        next(reports)
        first.cancel()  # it ends at its next check, and takes memory until then
        assert turns.ahead(second, timeout=0) == 1
        ending.set()
        assert next(reports) == ("result", None)  # whether anybody asks for it or not
        assert turns.ahead(second, timeout=1) == 0


def test_the_time_of_a_job_counts_from_its_turn():
    turns, before, job = Turns(1), Job(10), Job(0.2)
    with turns.place(before), turns.place(job):
        time.sleep(0.3)  # longer in line than the job may take
        assert turns.ahead(job, timeout=0) == 1
        before.cancel()
        assert turns.ahead(job, timeout=0) == 0
        time.sleep(0.1)
        job.check()
        time.sleep(0.15)
        with pytest.raises(Ended, match="Stopped after 0.2 seconds"):
            job.check()
