from cpmbee_job.launch.follow.polling import GRACE, INTERVALS, GracePeriod, poll


def test_pauses_grow_up_to_the_longest_and_end_at_the_timeout() -> None:
    now = 0.0
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    times = list(poll(100, lambda: now, pause))
    assert times[0] == 0
    assert times[-1] == 100
    assert pauses[0] == INTERVALS[0]
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == INTERVALS[1]


def test_a_state_must_be_suspicious_for_the_whole_grace_period() -> None:
    grace = GracePeriod()
    assert not grace.has_passed(0, suspicious=True)
    assert not grace.has_passed(GRACE, suspicious=False)
    assert not grace.has_passed(GRACE + 1, suspicious=True)
    assert grace.has_passed(2 * GRACE + 1, suspicious=True)
