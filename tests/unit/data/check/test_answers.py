from cpmbee_job.data.check.answers import AnswerCounter
from cpmbee_job.data.check.report import Answers, ConstantAnswer
from cpmbee_job.data.encode.examples import Example


def of(*answers: str | Example) -> Answers:
    counter = AnswerCounter()
    for answer in answers:
        counter.add(answer)
    return counter.report()


def test_an_answer_is_empty_when_all_its_texts_are() -> None:
    assert of("", "x", {"a": "", "b": {"c": ""}}, {"a": "", "b": {"c": "x"}}, {}).empty == 3


def test_an_answer_that_never_varies_is_reported() -> None:
    assert of("好", "好", "好").constant == (ConstantAnswer(place="<ans>", text="好", examples=3),)
    assert of("好", "好", "坏").constant == ()


def test_a_single_answer_can_not_vary() -> None:
    assert of("好").constant == ()


def test_a_constant_text_of_a_nested_answer_is_reported() -> None:
    answers = of(*({"who": name, "where": "北京"} for name in "abcde"))
    assert [(one.place, one.text) for one in answers.constant] == [("<ans>.where", "北京")]


def test_a_rare_key_of_answers_is_not_reported() -> None:
    answers = of(*({f"name {number}": "x"} for number in range(20)), {"rare": "x"}, {"rare": "x"})
    assert answers.constant == ()


def test_options_are_counted_the_most_frequent_first() -> None:
    assert of("<option_0>", "<option_1>", "<option_1>").classes == {"<ans>": {"<option_1>": 2, "<option_0>": 1}}


def test_repeated_labels_are_classes() -> None:
    assert of("好", "坏", "好", "坏").classes == {"<ans>": {"好": 2, "坏": 2}}
    assert of("好", "坏", "很", "好").classes == {}


def test_many_or_long_answers_are_not_classes() -> None:
    assert of(*[str(number) for number in range(51)] * 3).classes == {}
    assert of("x" * 33, "y" * 33, "x" * 33, "y" * 33).classes == {}
