import pytest

from cpmbee_job.eval.beam import BeamSearch, Candidate

END = 9


def test_a_single_beam_follows_its_best_words():
    search = BeamSearch(num_beams=1, num_answers=1, max_words=5, end=END)
    assert search.advance([Candidate(-0.1, 0, 4), Candidate(-3.0, 0, 5)]) == [0]
    assert search.beams[0].word == 4
    assert search.advance([Candidate(-0.2, 0, 5), Candidate(-2.0, 0, END)]) == [0]
    assert search.advance([Candidate(-0.3, 0, END), Candidate(-9.0, 0, 4)]) == [0]
    assert search.advance([Candidate(-9.5, 0, 4), Candidate(-9.6, 0, 5)]) is None
    assert search.best() == [[4, 5]]


def test_scores_are_means_over_words():
    search = BeamSearch(num_beams=2, num_answers=1, max_words=5, end=END)
    search.advance([Candidate(-1.0, 0, END), Candidate(-1.1, 0, 4), Candidate(-1.2, 0, 5), Candidate(-8.0, 0, 6)])
    search.advance([Candidate(-1.5, 0, END), Candidate(-2.0, 0, 6), Candidate(-2.1, 1, 6), Candidate(-8.0, 0, 7)])
    assert search.best() == [[4]]


def test_new_beams_have_their_parents():
    search = BeamSearch(num_beams=2, num_answers=1, max_words=5, end=END)
    search.advance([Candidate(-1.0, 0, 4), Candidate(-1.1, 0, 5), Candidate(-5.0, 0, 6), Candidate(-6.0, 0, 7)])
    best = [Candidate(-1.2, 1, 6), Candidate(-1.3, 1, 7), Candidate(-2.0, 0, 4), Candidate(-3.0, 0, 5)]
    assert search.advance(best) == [1, 1]
    assert [beam.words for beam in search.beams] == [((5, 0), (6, 0)), ((5, 0), (7, 0))]
    assert [beam.position for beam in search.beams] == [2, 2]


def test_the_end_of_an_answer_starts_the_next():
    search = BeamSearch(num_beams=1, num_answers=2, max_words=9, end=END)
    search.advance([Candidate(-0.1, 0, 4), Candidate(-1.0, 0, 5)])
    search.advance([Candidate(-0.2, 0, END), Candidate(-1.0, 0, 5)])
    assert (search.beams[0].answer, search.beams[0].word, search.beams[0].position) == (1, None, 0)
    search.advance([Candidate(-0.3, 0, END), Candidate(-1.0, 0, 5)])
    assert search.best() == [[4], []]


def test_answers_that_were_not_reached_are_none():
    search = BeamSearch(num_beams=1, num_answers=3, max_words=1, end=END)
    assert search.advance([Candidate(-0.1, 0, END), Candidate(-1.0, 0, 5)]) == [0]
    assert search.advance([Candidate(-0.2, 0, 5), Candidate(-1.0, 0, 6)]) is None
    assert search.best() == [[], [5], None]


def test_a_search_at_the_maximum_length_returns_its_best():
    search = BeamSearch(num_beams=1, num_answers=1, max_words=2, end=END)
    for word in (1, 2):
        assert search.advance([Candidate(-0.1 * word, 0, word), Candidate(-5.0, 0, 8)]) == [0]
    assert search.advance([Candidate(-0.3, 0, 3), Candidate(-5.0, 0, 8)]) is None
    assert search.best() == [[1, 2, 3]]


def test_only_the_first_beam_proposes_in_the_first_step():
    search = BeamSearch(num_beams=3, num_answers=1, max_words=2, end=END)
    assert [beam.score for beam in search.beams] == [0.0, pytest.approx(-1e9), pytest.approx(-1e9)]
