from collections import Counter, defaultdict
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cpmbee_job.data.check import duplicates
from cpmbee_job.data.check.duplicates import MOST_NAMED, Fingerprints
from cpmbee_job.data.check.report import Duplicates
from cpmbee_job.data.encode.examples import Example
from cpmbee_job.data.read.locations import Location, Origin


def example(question: str, answer: str) -> Example:
    return {"q": question, "<ans>": answer}


def known(name: str, examples: Sequence[Example]) -> Fingerprints:
    fingerprints, origin = Fingerprints(), Origin(f"{name}:")
    for number, one in enumerate(examples, start=1):
        fingerprints.add(one, Location(origin, number))
    return fingerprints


def within(*examples: Example) -> Duplicates:
    return duplicates.within(known("file", examples))


def leakage(train: Sequence[Example], evaluation: Sequence[Example]) -> Duplicates:
    return duplicates.leakage(known("train", train), known("eval", evaluation))


def test_an_example_that_occurs_three_times_is_repeated_twice() -> None:
    found = within(example("a", "1"), example("b", "1"), example("a", "1"), example("a", "1"))
    assert (found.repeated, found.contradicting) == (2, 0)
    assert found.repeated_at == (("file:1", "file:3"),)


def test_one_question_with_two_answers() -> None:
    found = within(example("b", "1"), example("a", "1"), example("b", "2"), example("b", "1"))
    assert (found.repeated, found.contradicting) == (1, 1)
    assert found.repeated_at == (("file:1", "file:4"),)
    assert found.contradicting_at == (("file:1", "file:3"),)


def test_examples_that_differ_in_the_order_of_keys_are_equal() -> None:
    assert within({"a": "1", "b": "2", "<ans>": "x"}, {"<ans>": "x", "b": "2", "a": "1"}).repeated == 1


def test_keys_and_texts_are_not_confused() -> None:
    assert within({"a": "b", "<ans>": ""}, {"a": {"b": ""}, "<ans>": ""}, {"a": "", "<ans>": "b"}).any is False


def test_examples_without_a_question_do_not_contradict() -> None:
    assert within({"<ans>": "a"}, {"<ans>": "b"}, {"<ans>": "b"}) == Duplicates(
        repeated=1, contradicting=0, repeated_at=(("file:2", "file:3"),)
    )


def test_evaluation_examples_in_the_training_data() -> None:
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
def test_counts_and_locations_equal_those_of_a_plain_comparison(
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


def test_an_example_takes_16_bytes_for_its_hashes() -> None:
    fingerprints = known("file", [example(str(number), "1") for number in range(100)])
    assert fingerprints.questions.nbytes + fingerprints.wholes.nbytes == 1600
