from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.tokenizers import byte_tokenizer, story

from ropewalk.data.text import encode
from ropewalk.errors import ArgumentError
from ropewalk.tasks.insertion import check_hiding, checked_depths, depth_values, hide, place_in, start_tokens

WINDOW = encode(byte_tokenizer(), story(120))


class TestDepths:
    def test_a_number_means_uniform_ones(self):
        assert depth_values(checked_depths(3)) == (0.0, 0.5, 1.0)
        assert depth_values(1) == (0.5,)
        assert depth_values(checked_depths([0, 0.25])) == (0.0, 0.25)

    @pytest.mark.parametrize("depths", [0, -1, True, [], "01", [0.5, 0.5], [1, 0], [2], [float("nan")], [None], 0.5])
    def test_others_are_refused(self, depths):
        with pytest.raises(ArgumentError) as error:
            checked_depths(depths)
        assert error.value.argument == "depths"


@pytest.mark.parametrize(
    ("fields", "argument"),
    [((0, "noisy", 1), "length"), ((1, "loud", 1), "setting"), ((1, "noisy", 0), "noise_tokens")],
)
def test_bad_values_are_named(fields, argument):
    with pytest.raises(ArgumentError) as error:
        check_hiding(*fields)
    assert error.value.argument == argument


class TestPlaces:
    @settings(max_examples=60, deadline=None)
    @given(size=st.integers(1, len(WINDOW)), depths=st.lists(st.floats(0, 1), min_size=2, max_size=2))
    def test_a_greater_depth_never_has_a_smaller_place(self, size, depths):
        low, high = (place_in(byte_tokenizer(), WINDOW[:size], depth) for depth in sorted(depths))
        assert 0 <= low <= high <= size

    def test_sentences_end_there(self):
        for depth in (0.2, 0.5, 0.8):
            before = byte_tokenizer().decode(WINDOW[: place_in(byte_tokenizer(), WINDOW, depth)])
            assert before.endswith(".")

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), noise=st.integers(0, 3), size=st.integers(0, 30))
    def test_what_is_hidden_is_where_the_spans_say_and_nothing_is_lost(self, data, noise, size):
        places = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
        hidden = [[100 + i] * data.draw(st.integers(1, 4)) for i in range(len(places))]
        window = list(range(size))
        found, spans = hide([-1, -2], window, places, hidden, [-9] * noise)
        assert len(found) == 2 + size + sum(map(len, hidden)) + noise * len(places)
        for (start, end), piece, place in zip(spans, hidden, places, strict=True):
            assert found[start:end] == piece
            assert found[end : end + noise] == [-9] * noise
            assert [i for i in found[:start] if 0 <= i < 100] == window[:place]
        assert [i for i in found if 0 <= i < 100] == window


def test_start_tokens_only_in_the_noisy_setting():
    tokenizer = byte_tokenizer()
    assert start_tokens(tokenizer, "original", 3) == []
    assert start_tokens(tokenizer, "noisy", 3) == [tokenizer.bos_token_id] * 3
