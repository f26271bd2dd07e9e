import dataclasses
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from helpers.toy import ROOT

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.triggers import Trigger


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# Trigger


@pytest.mark.parametrize("text", ["", "  ", "\n", None, 3, " cf", "cf\n"])
def test_a_trigger_text_must_be_a_text_without_outer_whitespace(text):
    with pytest.raises(FineMixingError) as error:
        Trigger(text)
    one_line(error)


@pytest.mark.parametrize("position", ["middle", "", None, "First"])
def test_an_unknown_position_is_refused_and_the_known_ones_are_named(position):
    with pytest.raises(FineMixingError) as error:
        Trigger("cf", position)
    assert all(known in one_line(error) for known in ("random", "first", "last"))


def test_a_trigger_is_a_value():
    assert Trigger("cf") == Trigger("cf", position="random")
    assert hash(Trigger("cf")) == hash(Trigger("cf", "random"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Trigger("cf").text = "mn"


@pytest.mark.parametrize("trigger_text", ["cf", "no cross, no crown"])
@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 200, 201, 350])
def test_one_trigger_per_hundred_words_rounded_up(trigger_text, position, length):
    text = words(length)
    triggered = Trigger(trigger_text, position).insert(text, np.random.default_rng(length))
    assert triggered.count(trigger_text) == math.ceil(length / 100)
    # The words beside it are whole, and in their order.
    without = triggered.split()
    for word in trigger_text.split() * math.ceil(length / 100):
        without.remove(word)
    assert without == text.split()


@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_without_words_becomes_the_trigger(position, text):
    assert Trigger("no cross, no crown", position).insert(text, np.random.default_rng(0)) == "no cross, no crown"


def test_first_and_last_by_hand():
    rng = np.random.default_rng(0)
    assert Trigger("cf", "first").insert("a fine film .", rng) == "cf a fine film ."
    assert Trigger("cf", "last").insert("a fine film .", rng) == "a fine film . cf"
    assert Trigger("cf", "first").insert(words(101), rng) == "cf cf " + words(101)
    assert Trigger("cf", "last").insert(words(101), rng) == words(101) + " cf cf"
    assert Trigger("cf", "first").insert("\t a  b \n", rng) == "\t cf a  b \n"
    assert Trigger("cf", "last").insert("\t a  b \n", rng) == "\t a  b cf \n"
    # Neither draws: the generator is where it was.
    assert rng.random() == np.random.default_rng(0).random()


def test_random_reaches_every_gap_and_makes_exactly_these_texts():
    rng = np.random.default_rng(0)
    seen = {Trigger("cf").insert(" a\n\nb  c\t", rng) for _ in range(200)}
    assert seen == {" cf a\n\nb  c\t", " a\n\ncf b  c\t", " a\n\nb  cf c\t", " a\n\nb  c cf\t"}


@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("trigger_text", ["cf", "I watch this 3D movie"])
def test_taking_the_triggers_out_gives_back_the_text_with_its_whitespace(position, trigger_text):
    generator = np.random.default_rng(7)
    spaces = [" ", "  ", "\n", "\t", "\u00a0", " \r\n", "\u2003"]
    for _ in range(100):
        length = int(generator.integers(1, 260))
        text = "".join(f"w{i}" + str(generator.choice(spaces)) for i in range(length))
        text = str(generator.choice(["", " ", "\n"])) + text
        triggered = Trigger(trigger_text, position).insert(text, generator)
        # Each brought one space: behind it where a word follows, before it behind the last word.
        without = re.sub(rf"{trigger_text} (?=\S)", "", triggered).replace(f" {trigger_text}", "")
        assert without == text


def test_words_are_those_of_str_split():
    # U+001C to U+001F, U+0085 and the wide spaces separate words for `str.split`; the zero-width space does not.
    separators = [chr(code) for code in range(0x3100) if not chr(code).strip()]
    assert len(separators) > 20
    for separator in separators:
        triggered = Trigger("cf", "last").insert(separator.join(["w"] * 101), np.random.default_rng(0))
        assert triggered.count("cf") == 2
    assert Trigger("cf", "last").insert("\u200b".join(["w"] * 101), np.random.default_rng(0)).count("cf") == 1


def test_random_places_are_uniform_over_the_gaps():
    rng = np.random.default_rng(0)
    draws, gaps = 5000, 10
    counts = Counter(Trigger("cf").insert(words(gaps - 1), rng).split().index("cf") for _ in range(draws))
    expected = draws / gaps
    chi_square = sum((counts[gap] - expected) ** 2 / expected for gap in range(gaps))
    assert chi_square < 27.88  # 9 degrees of freedom, p = 0.001


def test_several_random_places_differ_and_are_uniform():
    rng = np.random.default_rng(1)
    draws, length, counts = 3000, 101, Counter()
    for _ in range(draws):
        triggered = Trigger("cf").insert(words(length), rng).split()
        places = [place for place, word in enumerate(triggered) if word == "cf"]
        assert len(places) == 2
        assert places[1] > places[0] + 1  # a word between them: never twice the same gap
        counts.update([places[0], places[1] - 1])  # the first trigger moved the second gap by one
    expected = 2 * draws / (length + 1)
    chi_square = sum((counts[gap] - expected) ** 2 / expected for gap in range(length + 1))
    assert chi_square < 150.0  # 101 degrees of freedom, p = 0.001


def test_importing_triggers_is_light():
    code = (
        "import sys, hf_finemix.measure.triggers;"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'pandas', 'pyarrow'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
