from cpmbee_job.launch.follow.log_position import REMEMBERED, LogPosition, utc


def test_times_are_normalized_to_utc_with_nine_digits() -> None:
    assert utc("2026-01-31T20:00:00.5+08:00") == "2026-01-31T12:00:00.500000000Z"
    assert utc("2026-01-31T12:00:00Z") == "2026-01-31T12:00:00.000000000Z"
    assert utc("unable") is None


def test_duplicates_are_dropped_at_any_rate() -> None:
    position = LogPosition(None)
    texts = [(f"2026-01-31T12:00:00.{i:09}Z", f"{i}") for i in range(3 * REMEMBERED)]
    for stamp, text in texts:
        assert position.take("p", "c", stamp, text) is not None
    assert position.resume() == "2026-01-31T11:59:59Z"
    again = [position.take("p", "c", stamp, text) for stamp, text in [*texts, ("2026-01-31T12:00:01Z", "new")]]
    assert [one.text for one in again if one is not None] == ["new"]


def test_lines_before_since_are_dropped() -> None:
    position = LogPosition("2026-01-31T12:00:00.500000000Z")
    assert position.take("p", "c", "2026-01-31T12:00:00.4Z", "early") is None
    assert position.take("p", "c", "2026-01-31T12:00:00.5Z", "in time") is not None


def test_two_equal_lines_with_the_same_time_are_kept() -> None:
    position = LogPosition(None)
    same = ("2026-01-31T12:00:00Z", "same")
    assert position.take("p", "c", *same) is not None
    position.resume()
    assert [position.take("p", "c", *same) is None for _ in range(2)] == [True, False]


def test_a_line_out_of_order_is_kept() -> None:
    """The lines of stdout and stderr get their times before they are written."""
    position = LogPosition(None)
    position.take("p", "c", "2026-01-31T12:00:01.000002Z", "out")
    position.resume()
    assert position.take("p", "c", "2026-01-31T12:00:01.000001Z", "err") is not None


def test_a_message_of_the_kubelet_is_returned_once() -> None:
    position = LogPosition("2026-01-31T12:00:00.000000000Z")
    taken = [position.take("p", "c", "unable", "to retrieve container logs") for _ in range(2)]
    assert taken[0] is not None
    assert taken[0].text == "unable to retrieve container logs"
    assert taken[1] is None
