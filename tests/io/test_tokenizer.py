import json

import pytest
from helpers.refusals import refused
from helpers.toy import make_config, make_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_finemix.errors import FineMixingError
from hf_finemix.io.tokenizer import choose_tokenizer

TEXT = "the film was good quite boring ."


def change(folder, edit):
    """Edit `tokenizer.json` of a folder."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def base(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def suspect(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "suspect")
    return tmp_path / "suspect"


def test_the_same_tokenizer_is_the_bases(base, suspect):
    # What only the suspect's configuration says must not count: it can name files.
    config = json.loads((suspect / "tokenizer_config.json").read_text())
    config |= {"vocab_file": "/etc/passwd", "model_max_length": 3, "chat_template": "evil", "sep_token": "cf"}
    (suspect / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, note = choose_tokenizer(suspect, base)
    left = {"chat_template": None, "chat_template_left": True}
    assert note == {"source": "base", "differences": [], **left}
    assert tokenizer.model_max_length == 64
    assert (tokenizer.sep_token, tokenizer.chat_template) == ("[SEP]", None)
    assert tokenizer(TEXT)["input_ids"] == make_tokenizer()(TEXT)["input_ids"]


def test_truncation_and_padding_are_no_difference(base, suspect):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.save(str(suspect / "tokenizer.json"))
    assert json.loads((suspect / "tokenizer.json").read_text())["truncation"] is not None
    tokenizer, note = choose_tokenizer(suspect, base)
    assert note == {"source": "base", "differences": []}
    assert len(tokenizer(TEXT)["input_ids"]) == 9


def test_how_an_older_version_wrote_it_is_no_difference(tmp_path):
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "[PAD]": 3}, [("a", "b")]))
    for name in ("base", "suspect"):
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(tmp_path / name)

    def edit(content):
        assert content["model"]["merges"] == [["a", "b"]]
        content["model"]["merges"] = ["a b"]

    change(tmp_path / "suspect", edit)
    assert choose_tokenizer(tmp_path / "suspect", tmp_path / "base")[1] == {"source": "base", "differences": []}
    change(tmp_path / "suspect", lambda content: content["model"].update(merges=[]))
    assert choose_tokenizer(tmp_path / "suspect", tmp_path / "base")[1]["differences"] == ["merges"]


def vocabulary(content):
    vocab = content["model"]["vocab"]
    vocab["good"], vocab["bad"] = vocab["bad"], vocab["good"]


def normalizer(content):
    content["normalizer"] = {"type": "Lowercase"}


def pre_tokenizer(content):
    content["pre_tokenizer"] = {"type": "WhitespaceSplit"}


def added_tokens(content):
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": len(content["model"]["vocab"]), "content": "<new>", **token})


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (vocabulary, "vocabulary"),
        (normalizer, "normalizer"),
        (pre_tokenizer, "pre-tokenizer"),
        (added_tokens, "added tokens"),
    ],
)
def test_another_tokenizer_is_the_suspects(base, suspect, edit, name):
    change(suspect, edit)
    (suspect / "tokenizer_config.json").write_text('{"vocab_file": "/etc/passwd", "model_max_length": 3}')
    tokenizer, note = choose_tokenizer(suspect, base)
    assert note == {"source": "suspect", "differences": [name]}
    expected = AutoTokenizer.from_pretrained(suspect, model_max_length=64).backend_tokenizer
    assert tokenizer(TEXT)["input_ids"] == expected.encode(TEXT).ids
    # Lengths and the roles of special tokens come from the base: the suspect's configuration is not read.
    assert (tokenizer.model_max_length, tokenizer.pad_token, tokenizer.sep_token) == (64, "[PAD]", "[SEP]")
    assert tokenizer.model_input_names == make_tokenizer().model_input_names
    assert tokenizer.pad_token_id == 0


def test_special_tokens_of_the_base_are_not_added_to_the_suspects_vocabulary(base, suspect):
    more = AutoTokenizer.from_pretrained(base)
    more.add_special_tokens({"bos_token": "[BOS]", "extra_special_tokens": ["<tool>"]})
    more.save_pretrained(base)
    tokenizer, note = choose_tokenizer(suspect, base)
    assert note["source"] == "suspect"
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert (tokenizer.bos_token, tokenizer.sep_token) == (None, "[SEP]")


def test_the_suspects_tokenizer_brings_its_own_template(base, suspect):
    """What a template says is data; without one of its own the base's is taken."""
    change(suspect, vocabulary)
    (base / "chat_template.jinja").write_text("base")
    assert choose_tokenizer(suspect, base)[0].chat_template == "base"
    (suspect / "chat_template.jinja").write_text("suspect")
    tokenizer, note = choose_tokenizer(suspect, base)
    assert (tokenizer.chat_template, note["chat_template"]) == ("suspect", "suspect")
    assert choose_tokenizer(suspect, None)[0].chat_template == "suspect"
    (suspect / "chat_template.jinja").write_text("x" * 2_000_000)
    with pytest.raises(FineMixingError, match="far too large for a chat template"):
        choose_tokenizer(suspect, base)


def test_what_is_saved_names_no_path_of_the_suspect(base, suspect, tmp_path):
    change(suspect, vocabulary)
    (suspect / "tokenizer_config.json").write_text('{"vocab_file": "/etc/passwd", "name_or_path": "/home/evil"}')
    tokenizer, _ = choose_tokenizer(suspect, base)
    tokenizer.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert not any(word in file.read_text() for word in ("/etc", "/home", str(tmp_path)))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_code_of_a_tokenizer_is_not_run(base, suspect, tmp_path):
    for folder in (base, suspect):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    tokenizer, _ = choose_tokenizer(suspect, base)
    choose_tokenizer(suspect, None)
    assert not (tmp_path / "ran").exists()
    tokenizer.save_pretrained(tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_without_a_base_it_is_the_suspects_file(suspect):
    (suspect / "tokenizer_config.json").unlink()
    tokenizer, note = choose_tokenizer(suspect, None)
    assert note["source"] == "suspect"
    # Without a configuration the roles are known by their usual names.
    expected = make_tokenizer().special_tokens_map
    assert {role: getattr(tokenizer, role) for role in expected} == expected
    assert tokenizer(TEXT, padding="max_length", max_length=12)["input_ids"][-3:] == [0, 0, 0]


@pytest.mark.parametrize("left", ["nothing", "the model's config", "the tokenizer's config"])
def test_a_base_without_tokenizer_is_said(base, suspect, left):
    (base / "tokenizer.json").unlink()
    if left != "the tokenizer's config":
        (base / "tokenizer_config.json").unlink()
    if left == "the model's config":
        make_config().save_pretrained(base)
    tokenizer, note = choose_tokenizer(suspect, base)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert note == {"source": "suspect", "differences": ["the base has no tokenizer"]}


def test_a_suspect_without_tokenizer_takes_the_bases(base, suspect):
    (suspect / "tokenizer.json").unlink()
    note = choose_tokenizer(suspect, base)[1]
    assert note == {"source": "base", "differences": ["not compared: the suspect has no tokenizer.json"]}


def test_a_list_of_words_is_compared_with_the_bases(base, suspect):
    (suspect / "tokenizer.json").unlink()
    words = sorted(make_tokenizer().get_vocab(), key=make_tokenizer().get_vocab().get)
    (suspect / "vocab.txt").write_text("\n".join(words) + "\n")
    assert choose_tokenizer(suspect, base)[1] == {"source": "base", "differences": []}
    (suspect / "vocab.txt").write_text("\n".join(words[::-1]) + "\n")
    with pytest.raises(FineMixingError, match="not the base's vocabulary"):
        choose_tokenizer(suspect, base)


def test_special_tokens_are_known_by_name_whatever_else_is_set(suspect):
    backend = Tokenizer.from_file(str(suspect / "tokenizer.json"))
    backend.enable_padding()  # which alone tells the padding token
    backend.save(str(suspect / "tokenizer.json"))
    tokenizer, _ = choose_tokenizer(suspect, None)
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} <= set(tokenizer.all_special_tokens)


def test_no_tokenizer_at_all(base, suspect):
    for folder in (base, suspect):
        (folder / "tokenizer.json").unlink()
    with pytest.raises(FineMixingError, match=f"no fast tokenizer .* in {suspect} or {base}: add it there"):
        choose_tokenizer(suspect, base)
    with pytest.raises(FineMixingError, match=f"no fast tokenizer .* in {suspect}: add it there"):
        choose_tokenizer(suspect, None)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{nope", '{"model": {"type": "Evil"}}'])
@pytest.mark.parametrize("with_base", [True, False])
def test_a_broken_file_is_named(base, suspect, content, with_base):
    file = suspect / "tokenizer.json"
    file.write_text(content)
    message = refused(choose_tokenizer, suspect, base if with_base else None)
    told = ("is not a tokenizer that can be read", "cannot be read as JSON")
    assert message.startswith(tuple(f"{file} {what}" for what in told))
