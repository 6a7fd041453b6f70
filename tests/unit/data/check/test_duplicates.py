from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.check.duplicates import MOST_NAMED, Duplicates, Fingerprint, Fingerprints, Search, look
from cpmbee_job.data.encode.examples import Example


def example(question: str, answer: str) -> Example:
    return {"q": question, "<ans>": answer}


def known(examples: Sequence[Example]) -> Fingerprints:
    fingerprints = Fingerprints()
    for one in examples:
        fingerprints.add(Fingerprint.of(one))
    fingerprints.close()
    return fingerprints


class Reading:
    """Examples with their places, and how many were read."""

    def __init__(self, name: str, examples: Sequence[Example]) -> None:
        self.examples, self.name, self.count = examples, name, 0

    def __iter__(self) -> Iterator[tuple[str, Example]]:
        for number, one in enumerate(self.examples, start=1):
            self.count += 1
            yield f"{self.name}:{number}", one


def within(*examples: Example) -> Duplicates:
    search = Search.within(known(examples))
    look(Reading("file", examples), begin=[search], end=[search])
    return search.named()


def leakage(train: Sequence[Example], evaluation: Sequence[Example]) -> Duplicates:
    search = Search.leakage(known(train), known(evaluation))
    look(Reading("eval", evaluation), begin=[search], end=[])
    look(Reading("train", train), begin=[], end=[search])
    return search.named()


def test_an_example_that_stands_three_times_is_repeated_twice() -> None:
    found = within(example("a", "1"), example("b", "1"), example("a", "1"), example("a", "1"))
    assert (found.repeated, found.contradicting) == (2, 0)
    assert found.repeated_at == (("file:1", "file:3"),)


def test_one_question_with_two_answers() -> None:
    found = within(example("b", "1"), example("a", "1"), example("b", "2"), example("b", "1"))
    assert (found.repeated, found.contradicting) == (1, 1)
    assert found.repeated_at == (("file:1", "file:4"),)
    assert found.contradicting_at == (("file:1", "file:3"),)


def test_the_order_of_keys_makes_no_other_example() -> None:
    assert within({"a": "1", "b": "2", "<ans>": "x"}, {"<ans>": "x", "b": "2", "a": "1"}).repeated == 1


def test_keys_and_texts_are_not_confused() -> None:
    assert within({"a": "b", "<ans>": ""}, {"a": {"b": ""}, "<ans>": ""}, {"a": "", "<ans>": "b"}).any is False


def test_without_a_question_none_is_asked_twice() -> None:
    assert within({"<ans>": "a"}, {"<ans>": "b"}, {"<ans>": "b"}) == Duplicates(
        repeated=1, contradicting=0, repeated_at=(("file:2", "file:3"),)
    )


def test_evaluation_examples_that_training_has() -> None:
    train = [example("a", "1"), example("b", "1"), example("b", "2")]
    found = leakage(train, [example("c", "1"), example("b", "2"), example("a", "2"), example("b", "3")])
    assert found == Duplicates(
        repeated=1,
        contradicting=2,
        repeated_at=(("eval:2", "train:3"),),
        contradicting_at=(("eval:3", "train:1"), ("eval:4", "train:2")),
    )


@settings(deadline=None)
@given(*2 * [st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12")), max_size=12)])
def test_counts_and_places_are_those_of_a_plain_comparison(
    train: list[tuple[str, str]], evaluation: list[tuple[str, str]]
) -> None:
    answers = defaultdict(set)
    for question, answer in train:
        answers[question].add(answer)
    found = within(*(example(*one) for one in train))
    assert found.repeated == len(train) - len(set(train))
    assert found.contradicting == sum(len(different) - 1 for different in answers.values())
    assert len(found.repeated_at) == min(MOST_NAMED, sum(count > 1 for count in Counter(train).values()))
    assert len(found.contradicting_at) == sum(len(different) > 1 for different in answers.values())

    leaked = leakage([example(*one) for one in train], [example(*one) for one in evaluation])
    assert leaked.repeated == sum(one in train for one in evaluation)
    assert leaked.contradicting == sum(one not in train and one[0] in answers for one in evaluation)
    for one, other in leaked.repeated_at:
        assert evaluation[int(one[5:]) - 1] == train[int(other[6:]) - 1]
    for one, other in leaked.contradicting_at:
        (question, answer), (its_question, its_answer) = evaluation[int(one[5:]) - 1], train[int(other[6:]) - 1]
        assert question == its_question
        assert answer != its_answer


def test_nothing_is_read_again_where_there_is_nothing_to_find() -> None:
    reading = Reading("file", [example("a", "1"), example("b", "1")])
    search = Search.within(known(reading.examples))
    look(reading, begin=[search], end=[search])
    assert reading.count == 0


def test_reading_ends_with_the_last_pair_that_is_named() -> None:
    reading = Reading("file", [*2 * [example("a", "1")], *(example(str(number), "1") for number in range(100))])
    search = Search.within(known(reading.examples))
    look(reading, begin=[search], end=[search])
    assert reading.count == 2


def test_an_example_takes_16_bytes() -> None:
    fingerprints = known([example(str(number), "1") for number in range(100)])
    assert memoryview(fingerprints.questions).nbytes + memoryview(fingerprints.wholes).nbytes == 1600
