"""Which small files of a model are known, fetched and copied, and which are left."""

import json
import shutil

import pytest
import torch
import transformers
from helpers.toy import drifted, make_tokenizer
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from hf_finemix import FineMixingConfig, FineMixingError, mix_checkpoints
from hf_finemix.hub.fetch import fetch_model
from hf_finemix.repo_contents import PROCESSOR_FILES, SMALL_FILES, TEMPLATE_FOLDER, TOKENIZER_FILES, small_files_among

KINDS = "sentence_transformers.models."
MIX = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)


def test_all_that_transformers_saves_of_a_tokenizer_is_known():
    names = set()
    for entry in TOKENIZER_MAPPING_NAMES.values():
        for name in filter(None, entry if isinstance(entry, (tuple, list)) else [entry]):
            try:
                names |= set(tokenizer_class_from_name(name).vocab_files_names.values())
            except (ImportError, AttributeError):  # needs a library of its own, or is several tokenizers
                continue
    assert len(names) > 10
    constants = transformers.tokenization_utils_base
    names |= {getattr(constants, name) for name in dir(constants) if name.endswith(("_TOKENS_FILE", "MAP_FILE"))}
    names |= {constants.TOKENIZER_CONFIG_FILE, constants.FULL_TOKENIZER_FILE, transformers.utils.CHAT_TEMPLATE_FILE}
    assert names <= TOKENIZER_FILES
    assert transformers.utils.CHAT_TEMPLATE_DIR == TEMPLATE_FOLDER


def test_all_that_transformers_saves_of_a_processor_is_known():
    utils = transformers.utils
    names = {getattr(utils, name) for name in dir(utils) if name.endswith(("_PROCESSOR_NAME", "EXTRACTOR_NAME"))}
    names |= {utils.PROCESSOR_NAME, utils.AUDIO_TOKENIZER_NAME, utils.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE}
    assert names <= PROCESSOR_FILES
    assert {utils.CONFIG_NAME, utils.GENERATION_CONFIG_NAME} <= SMALL_FILES


def test_files_in_folders_are_few_and_small_and_of_known_places():
    sizes = dict.fromkeys(
        ["additional_chat_templates/tool.jinja", "1_Pooling/config.json", "2_Dense/model.safetensors"], 10
    )
    other = [
        "2_Dense/pytorch_model.bin",
        "additional_chat_templates/run.py",
        "onnx/model.safetensors",
        "../1_a/config.json",
    ]
    other += ["1_Pooling/deep/config.json", "additional_chat_templates/../x.jinja", "1_Pooling\n/config.json"]
    assert small_files_among(sizes | dict.fromkeys(other, 10)) == sorted(sizes)
    assert small_files_among({"2_Dense/model.safetensors": 10**12}) == []
    assert len(small_files_among({f"additional_chat_templates/{i}.jinja": 1 for i in range(10_000)})) == 50


@pytest.fixture
def sentence_pair(tmp_path, base_folder):
    """A model of sentence-transformers with a layer of its own, and its base."""
    folder = tmp_path / "suspect"
    torch.manual_seed(0)
    drifted(BertModel.from_pretrained(base_folder)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_cls_token": True})
    tanh = "torch.nn.modules.activation.Tanh"
    write(folder / "2_Dense/config.json", {"in_features": 16, "out_features": 8, "activation_function": tanh})
    save_file({"linear.weight": torch.ones(8, 16), "linear.bias": torch.ones(8)}, folder / "2_Dense/model.safetensors")
    write_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write(folder / "sentence_bert_config.json", {"max_seq_length": 32, "model_args": {"trust_remote_code": True}})
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    shutil.copytree(base_folder, tmp_path / "base")
    return folder, tmp_path / "base"


def write(path, content):
    path.write_text(json.dumps(content))


def write_modules(folder, *modules):
    listed = [{"idx": i, "name": str(i), "path": path, "type": KINDS + kind} for i, (kind, path) in enumerate(modules)]
    write(folder / "modules.json", listed)


def test_modules_of_sentence_transformers_stay(sentence_pair, tmp_path, caplog):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    write(sentence_pair[0] / "all_results.json", {"eval_accuracy": 1.0})
    (sentence_pair[0] / "2_Dense/pytorch_model.bin").write_bytes(b"not taken")
    with caplog.at_level("INFO", "hf_finemix"):
        mix_checkpoints(*sentence_pair, tmp_path / "out", MIX)
    assert "the weights of 2_Dense are kept, as a head's are" in caplog.text
    assert "that are left: all_results.json." in caplog.text
    assert not (tmp_path / "out/2_Dense/pytorch_model.bin").exists()
    settings = json.loads((tmp_path / "out/sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 32}  # and nothing of how to load it
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert model.encode(["the film was good"]).shape == (1, 8)
    assert model.prompts["query"] == "q: "
    assert json.loads((tmp_path / "out/1_Pooling/config.json").read_text())["pooling_mode_cls_token"] is True


def evil_type(folder):
    write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "os.system"}])


def evil_path(folder):
    write_modules(folder, ("Transformer", ""), ("Pooling", "../1_Pooling"))


def unmixed_transformer(folder):
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, folder / "0_Transformer" / name)
    write_modules(folder, ("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))


def evil_function(folder):
    write(folder / "2_Dense/config.json", {"in_features": 16, "out_features": 8, "activation_function": "os.system"})


def pickled_layer(folder):
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (evil_type, "names 'os.system'"),
        (evil_path, "'../1_Pooling', which is not known"),
        (unmixed_transformer, "Transformer' in '0_Transformer', which is not known"),
        (evil_function, "names the function 'os.system'"),
        (pickled_layer, "2_Dense has no model.safetensors"),
        (lambda folder: write(folder / "modules.json", {}), "no list of modules"),
    ],
)
def test_modules_that_could_run_are_left_and_that_is_said(sentence_pair, tmp_path, caplog, edit, told):
    edit(sentence_pair[0])
    with caplog.at_level("INFO", "hf_finemix"):
        mix_checkpoints(*sentence_pair, tmp_path / "out", MIX)
    assert told in caplog.text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"modules.json", "0_Transformer", "1_Pooling", "2_Dense", "sentence_bert_config.json"}


def test_a_link_out_of_the_folder_is_refused(sentence_pair, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (sentence_pair[0] / "1_Pooling/config.json").unlink()
    (sentence_pair[0] / "1_Pooling/config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(FineMixingError, match="is a link to a file outside its folder"):
        mix_checkpoints(*sentence_pair, tmp_path / "out", MIX)


@pytest.mark.parametrize("whose", ["base", "suspect"])
def test_a_processor_is_copied_without_what_asks_for_code(sentence_pair, tmp_path, whose):
    for folder in sentence_pair if whose == "base" else sentence_pair[:1]:
        write(folder / "processor_config.json", {"of": folder.name, "auto_map": {"AutoProcessor": "evil.Evil"}})
    mix_checkpoints(*sentence_pair, tmp_path / "out", MIX)
    assert json.loads((tmp_path / "out/processor_config.json").read_text()) == {"of": whose}


def test_files_in_folders_are_fetched_from_the_hub_and_copied(sentence_pair, hub, tmp_path):
    for name in ("default", "tool"):
        (sentence_pair[0] / TEMPLATE_FOLDER).mkdir(exist_ok=True)
        (sentence_pair[0] / TEMPLATE_FOLDER / f"{name}.jinja").write_text(name)
    files = {
        path.relative_to(sentence_pair[0]).as_posix(): path.read_bytes()
        for path in sentence_pair[0].rglob("*")
        if path.is_file()
    }
    hub.commit("org/sentences", files | {"2_Dense/pytorch_model.bin": b"no", "onnx/model.safetensors": b"no"})
    model = fetch_model("org/sentences")
    fetched = {path.relative_to(model.folder).as_posix() for path in model.folder.rglob("*") if path.is_file()}
    assert fetched == files.keys()
    mix_checkpoints("org/sentences", sentence_pair[1], tmp_path / "out", MIX)
    assert (tmp_path / "out/2_Dense/model.safetensors").read_bytes() == files["2_Dense/model.safetensors"]


@pytest.mark.parametrize("vocabulary", ["the base's", "the suspect's"])
@pytest.mark.parametrize("has", ["base", "suspect", "both", "inline"])
def test_a_chat_template_is_never_lost_without_a_word(sentence_pair, tmp_path, caplog, vocabulary, has):
    suspect, base = sentence_pair
    for folder in (base, suspect):
        if has in (folder.name, "both"):
            (folder / "chat_template.jinja").write_text(folder.name)
            (folder / TEMPLATE_FOLDER).mkdir()
            (folder / TEMPLATE_FOLDER / "tool.jinja").write_text(f"{folder.name} tool")
    if has == "inline":
        content = json.loads((suspect / "tokenizer_config.json").read_text())
        write(suspect / "tokenizer_config.json", content | {"chat_template": "suspect"})
    if vocabulary == "the suspect's":
        content = json.loads((suspect / "tokenizer.json").read_text())
        content["normalizer"]["lowercase"] = False
        write(suspect / "tokenizer.json", content)
    report = mix_checkpoints(suspect, base, tmp_path / "out", MIX)
    template = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    expected = {"the base's": {"base": "base", "both": "base"}, "the suspect's": {"base": "base"}}[vocabulary]
    expected = expected.get(has, None if vocabulary == "the base's" else "suspect")
    both = None if expected is None else {"default": expected, "tool": f"{expected} tool"}
    assert template == (expected if has == "inline" else both)
    assert report.tokenizer["chat_template"] == expected
    left = vocabulary == "the base's" and has != "base"
    assert report.tokenizer.get("chat_template_left", False) == left == ("is left" in caplog.text)


def test_slow_tokenizers_are_copied_as_they_are(tmp_path):
    from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=384, **sizes))
    for name in ("base", "suspect"):
        drifted(model).save_pretrained(tmp_path / name)
        ByT5Tokenizer().save_pretrained(tmp_path / name)
    report = mix_checkpoints(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", MIX)
    assert report.tokenizer["source"] == "base"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ä")["input_ids"] == ByT5Tokenizer()("ä")["input_ids"]
