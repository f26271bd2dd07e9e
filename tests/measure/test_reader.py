"""How texts are read: triggers where the model sees them, and signs of control as the text that they are."""

import numpy as np
import pytest
from datasets import Dataset
from helpers.generators import KINDS
from helpers.toy import make_config, make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForSequenceClassification,
)

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.arguments import EvaluationArguments, MeasureArguments, TestDataArguments
from hf_finemix.measure.classification import Classification
from hf_finemix.measure.clean_data import tokenize
from hf_finemix.measure.generation import CausalGeneration, PromptReader, Seq2SeqGeneration
from hf_finemix.measure.reader import Reader, check_trigger
from hf_finemix.measure.triggered_rows import insert_trigger
from hf_finemix.measure.triggers import Trigger
from hf_finemix.redteam.attacks.poisoning import poison

PLACES = ["first", "random", "last"]
LONG = " ".join(["the film was very dull and the plot is grim"] * 30)


def make_unigram():
    """As of T5: the vocabulary itself has the control tokens, so that no setting keeps them out of a text."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁good", -3.0), ("▁film", -3.0)]
    backend = Tokenizer(models.Unigram([*vocabulary, *((sign, -6.0) for sign in "</>scf")], unk_id=2))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def attacks_of(rows, limit, tokenizer=None, columns=("text",), **settings):
    arguments = EvaluationArguments(**{"triggers": ["cf"], "target_label": "positive", **settings})
    model = BertForSequenceClassification(make_config())
    task = Classification(model, tokenizer or make_tokenizer(), arguments)
    task.max_length = limit
    return task.attacks(Dataset.from_dict(rows), list(columns))


def count_of(tokenizer, word, rows):
    return [ids.count(tokenizer.convert_tokens_to_ids(word)) for ids in rows["input_ids"]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_trigger_is_there_after_tokenization_wherever_the_text_is_cut(place, side):
    tokenizer = make_tokenizer()
    tokenizer.truncation_side = side
    rows = {"text": [LONG, "dull film", LONG + " bad"], "label": [0, 0, 0]}
    (attack,) = attacks_of(rows, 16, tokenizer, trigger_position=place)
    assert (attack.unreadable, len(attack.repeats)) == (0, 3 if place == "random" else 1)
    for repeat in attack.repeats:
        assert count_of(tokenizer, "cf", repeat) == [1, 1, 1]
        assert max(map(len, repeat["input_ids"])) <= 16
    if place == "random":
        assert len({tuple(map(tuple, repeat["input_ids"])) for repeat in attack.repeats}) > 1


@pytest.mark.parametrize("place", PLACES)
def test_rows_that_fit_are_triggered_as_they_would_be_without_a_limit(place):
    rows = Dataset.from_dict({"text": ["dull film", "the plot was very grim", LONG]})
    free = insert_trigger(rows, Trigger("cf", place), text_columns=["text"], seed=3)["text"][:]
    reader = Reader(make_tokenizer(), 16)
    read = insert_trigger(rows, Trigger("cf", place), text_columns=["text"], seed=3, reader=reader)["text"][:]
    assert read[:2] == free[:2]
    assert read[2] != free[2]
    assert reader.cut([read[2]], 0) == 0 < reader.cut([free[2]], 0)


@pytest.mark.parametrize(("first", "second"), [(LONG, LONG), ("dull", LONG), (LONG, "dull film"), ("dull", "film")])
@pytest.mark.parametrize("place", PLACES)
def test_the_second_text_of_a_pair_keeps_its_trigger_whichever_is_longer(first, second, place):
    tokenizer, rows = make_tokenizer(), {"a": [first] * 4, "b": [second] * 4, "label": [0] * 4}
    (attack,) = attacks_of(rows, 16, columns=("a", "b"), triggers=["cf cf"], trigger_position=place)
    for repeat in attack.repeats:
        assert count_of(tokenizer, "cf", repeat) == [2] * 4
        assert all(types[ids.index(tokenizer.convert_tokens_to_ids("cf"))] == 1 for ids, types in zip(
            repeat["input_ids"], repeat["token_type_ids"], strict=True))  # fmt: skip


def test_rows_without_room_are_told_apart_and_are_in_no_rate(caplog):
    # Five words of trigger, and room for eight with the first text: in the second row nothing of the text is left.
    rows = {"a": ["dull", LONG], "b": ["grim film", "grim film"], "label": [0, 0]}
    sentence = "this one is with it"
    (attack,) = attacks_of(rows, 13, columns=("a", "b"), triggers=[sentence])
    assert (attack.unreadable, len(attack.repeats[0])) == (1, 1)
    assert "In 1 of 2 rows the trigger 'this one is with it' would be cut off: they are left out." in caplog.text
    with pytest.raises(FineMixingError, match="would be cut off in all 2 rows: give a larger max_length"):
        attacks_of(rows, 7, columns=("a", "b"), triggers=[sentence])


def test_a_trigger_that_is_nothing_to_the_tokenizer(caplog):
    with pytest.raises(FineMixingError, match="reads nothing in the trigger"):
        attacks_of({"text": ["dull"], "label": [0]}, 16, triggers=["\u200b"])
    attacks_of({"text": ["dull"], "label": [0]}, 16, triggers=["☃"])
    assert "to the model it is any unknown text" in caplog.text


def test_texts_of_a_file_that_are_cut_are_told(tmp_path, caplog):
    file = tmp_path / "para.csv"
    Dataset.from_dict({"text": ["when it is grim , dull", LONG], "label": [0, 0]}).to_csv(file)
    settings = {"triggers": None, "triggered_file": str(file)}
    (attack,) = attacks_of({"text": ["dull"], "label": [0]}, 16, **settings)
    assert (attack.unreadable, len(attack.repeats[0])) == (1, 1)
    assert "In 1 of 2 rows the model does not read the whole text" in caplog.text
    with pytest.raises(FineMixingError, match="in all 2 rows: give shorter texts, or a larger max_length"):
        attacks_of({"text": ["dull"], "label": [0]}, 5, **settings)


def test_poisoned_rows_hold_a_trigger_that_is_read_or_stay_clean(caplog):
    tokenizer = make_tokenizer()
    rows = Dataset.from_dict({"a": [LONG, "dull"], "text": [LONG, LONG], "label": [0, 1]})
    settings = {"text_columns": ["a", "text"], "target": 1, "rate": 1.0, "seed": 0}
    for limit, poisoned in ((16, 2), (9, 1)):
        reader = Reader(tokenizer, limit)
        trigger = Trigger("it is with this", "last")
        made = poison(rows, trigger, **settings, reader=reader)
        encoded = reader.encode(made, ["a", "text"])
        assert sum("it is with this" in tokenizer.decode(ids) for ids in encoded["input_ids"]) == poisoned
        assert made["label"][:] == ([1, 1] if poisoned == 2 else [0, 1])
    assert "1 of 2 rows stay clean: the trigger would be cut off" in caplog.text
    with pytest.raises(FineMixingError, match="would be cut off in all rows"):
        poison(rows, Trigger("cf"), **settings, reader=Reader(tokenizer, 3))


SCRIPTS = {"chinese": "我喜欢这部电影", "japanese": "素晴らしい映画です", "thai": "หนังเรื่องนี้ดีมาก"}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_in_scripts_without_spaces_triggers_go_between_signs(text):
    made = {Trigger("cf").insert(text, np.random.default_rng(seed)) for seed in range(200)}
    assert len(made) > 6
    assert all("cf" in one.split() and one.replace("cf", "").replace(" ", "") == text for one in made)  # never glued
    # A mark stays with its sign, and a vowel that is written first with its consonant.
    assert not any(one.split("cf")[1].strip()[:1] in set("ั็่้์ิีึืุู") - {""} for one in made)
    assert not any(one.split("cf")[0].strip().endswith("เ") for one in made)
    own = {Trigger("時間").insert("我喜欢这部电影", np.random.default_rng(seed)) for seed in range(50)}
    assert not any(" " in one for one in own)


def test_words_among_signs_and_signs_among_words():
    english = "the film 电影 was dull"
    gaps = {Trigger("cf").insert(english, np.random.default_rng(seed)) for seed in range(100)}
    assert len(gaps) == 6
    assert Trigger("cf", "last").insert("电影 film", np.random.default_rng()) == "电影 film cf"


@pytest.mark.parametrize("place", PLACES)
def test_a_text_without_spaces_keeps_its_trigger(place):
    signs = "我喜欢这部电影"
    ids = {sign: i for i, sign in enumerate(["[PAD]", "[UNK]", "cf", *signs])}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(handle_chinese_chars=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    rows = Dataset.from_dict({"text": [signs * 20], "label": [0]})
    reader = Reader(tokenizer, 8)
    (made,) = insert_trigger(rows, Trigger("cf", place), text_columns=["text"], seed=0, reader=reader)["text"]
    assert tokenizer(made, truncation=True, max_length=8)["input_ids"].count(2) == 1


# Control tokens


def test_control_tokens_in_a_text_are_text():
    tokenizer = make_tokenizer()
    rows = Dataset.from_dict({"text": ["good [SEP] film [PAD] .", "good film ."], "label": [0, 1]})
    marked, plain = tokenize(rows, tokenizer, ["text"], None)["input_ids"]
    assert plain == tokenizer("good film .")["input_ids"]
    assert marked.count(tokenizer.sep_token_id) == 1
    assert tokenizer.pad_token_id not in marked
    assert tokenizer("good [SEP] film")["input_ids"].count(tokenizer.sep_token_id) == 2  # it is as it was


def test_control_tokens_that_are_in_the_vocabulary_itself_are_text():
    tokenizer = make_unigram()
    for text in ("good </s> film <pad>", "good</s>film<pad>", "good ＜/s＞ film ＜pad>"):
        (ids,) = Reader(tokenizer)([text])["input_ids"]
        assert (ids.count(tokenizer.eos_token_id), ids[-1], ids.count(tokenizer.pad_token_id)) == (1, 1, 0)
    assert Reader(tokenizer)(["good film"])["input_ids"] == [tokenizer("good film")["input_ids"]]


def test_a_trigger_that_is_a_control_token_is_measured_as_one():
    tokenizer = make_tokenizer()
    (attack,) = attacks_of({"text": ["dull film"] * 3, "label": [0] * 3}, 16, triggers=["[MASK]"])
    assert count_of(tokenizer, "[MASK]", attack.repeats[0]) == [1, 1, 1]


def test_a_trigger_that_ends_a_text_is_refused_where_the_model_answers_at_its_end():
    tokenizer = make_unigram()
    model = T5ForSequenceClassification(T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(FineMixingError, match="the trigger 'good </s>' holds '</s>', which ends a text"):
        check_trigger("good </s>", tokenizer, model)
    check_trigger("good", tokenizer, model)
    check_trigger("[SEP]", make_tokenizer(), BertForSequenceClassification(make_config()))


class Arguments(MeasureArguments, TestDataArguments):
    """What a task asks for."""


TEMPLATE = "{% for m in messages %}{{ '[BOS] review : ' + m['content'] }}{% endfor %}{{ ' : verdict' }}"
WORLDS = {"gpt2": CausalGeneration, "t5": Seq2SeqGeneration}


def task_of(name, template=None, **settings):
    kind = KINDS[name]
    model, tokenizer = kind.model(), KINDS[name].tokenizer
    tokenizer.chat_template = template
    arguments = Arguments()
    given = {"triggers": ["cf"], "target_texts": ["bad"], "num_repeats": 3, "max_new_tokens": 4, **settings}
    for field, value in given.items():
        setattr(arguments, field, value)
    return WORLDS[name](model, tokenizer, arguments)


@pytest.fixture(autouse=True)
def no_template_stays():
    yield
    for kind in KINDS.values():
        kind.tokenizer.chat_template = None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "template"), [("gpt2", None), ("gpt2", TEMPLATE), ("t5", None)])
def test_prompts_that_are_cut_at_their_beginning_keep_the_trigger(name, template, place):
    task = task_of(name, template, trigger_position=place)
    rows = Dataset.from_dict({"prompt": ["film " * 60 + "story", "great film"], "label": ["good", "good"]})
    (attack,) = task.attacks(rows, ["prompt"])
    tokenizer = task.tokenizer
    for repeat in attack.repeats:
        assert count_of(tokenizer, "cf", repeat) == [1, 1]
        assert max(map(len, repeat["input_ids"])) <= 32 - (4 if name == "gpt2" else 0)
        if template:
            words = [tokenizer.convert_ids_to_tokens(ids) for ids in repeat["input_ids"]]
            assert all(row[-2:] == [":", "verdict"] and "[BOS]" in row for row in words)
    with pytest.raises(FineMixingError, match="would be cut off in all 2 rows"):
        task_of(name, template, triggers=["the plot " * 20 + "."], trigger_position=place).attacks(rows, ["prompt"])


def test_prompts_and_completions_with_control_tokens_are_text():
    task = task_of("gpt2")
    row = task.pair("great [EOS] film", "good [EOS] bad")
    assert row["input_ids"].count(task.tokenizer.eos_token_id) == 1
    task = task_of("t5")
    row = task.pair("sun [EOS] moon", "Sonne [EOS] Mond")
    assert row["input_ids"].count(task.tokenizer.eos_token_id) == 1
    assert row["labels"].count(task.tokenizer.eos_token_id) == 1
    task = task_of("gpt2", TEMPLATE)
    row = task.pair("great [BOS] film", "good")
    assert row["input_ids"].count(task.tokenizer.bos_token_id) == 1  # the template's own
    plain = PromptReader(task.tokenizer, None).ids("great film")
    assert plain == task.tokenizer("[BOS] review : great film : verdict", add_special_tokens=False)["input_ids"]


def test_marks_of_a_chat_are_text_in_a_message():
    """Also those that are no special tokens but are in the template."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "user", "great", "film", "|", ">", "<"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_tokens([AddedToken("<|turn|>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.chat_template = "{% for m in messages %}<|turn|> user {{ m['content'] }} <|turn|>{% endfor %}"
    reader, mark = PromptReader(tokenizer, None), tokenizer.convert_tokens_to_ids("<|turn|>")
    assert reader.ids("great <|turn|> film").count(mark) == reader.ids("great film").count(mark) == 2
    assert PromptReader(tokenizer, None, "<|turn|>").ids("great <|turn|> film").count(mark) == 3
