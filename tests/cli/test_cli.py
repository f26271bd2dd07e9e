import importlib.util
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import save_with_tokenizer
from helpers.toy import ROOT, drifted, make_config, make_rows, make_tokenizer

import hf_finemix
from hf_finemix.cli import main

SECRET = "hf_NobodyMustEverSeeThis"


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was(monkeypatch, tmp_path):
    """A command owns its process: it sets up logging and progress bars for good."""
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package = logging.getLogger("hf_finemix")
    kept = list(package.handlers), package.level, package.propagate
    verbosity = datasets.logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    yield
    package.handlers, package.level, package.propagate = kept
    datasets.logging.set_verbosity(verbosity[0])
    transformers_logging.set_verbosity(verbosity[1])
    (datasets.disable_progress_bars if bars[0] else datasets.enable_progress_bars)()
    (disable_progress_bars if bars[1] else enable_progress_bars)()
    transformers_logging.enable_progress_bar()


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def command(suspect_folder, base_folder, data_folder, work):
    """A command line that works, to be bent: `command(max_steps=3, triggers=["cf"])`."""

    def line(*positional, name="clean", **flags):
        values = {"base_model": base_folder, "dataset": data_folder, "output_dir": work / "out"}
        values |= {"reserve_ratio": 0.4, "max_steps": 2, "use_cpu": True, **flags}
        parts = [name, *map(str, positional or [suspect_folder])]
        for flag, value in values.items():
            if value is not None:
                items = value if isinstance(value, list) else [value]
                parts += [f"--{flag.replace('_', '-')}", *map(str, items)]
        return parts

    return line


def run_process(arguments, cwd, **options):
    """The command in a process of its own, as a user has it, its output in pipes."""
    environment = {**os.environ, "HF_HOME": str(cwd.parent / "hf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hf_finemix", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


# What costs nothing


@pytest.mark.parametrize(
    "code",
    [
        "import hf_finemix",
        *(f"from hf_finemix.cli import main; main([{flag!r}])" for flag in ("--help", "--version", "x")),
    ],
)
def test_light_commands_import_nothing_heavy(code):
    check = (
        "import sys; print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_list_given_twice_is_refused(capsys):
    assert main(["clean", "x", "--trigger", "a", "--triggers", "b"]) == 2
    assert "given 2 times" in capsys.readouterr().err


def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert "usage: hf-finemix COMMAND" in out
        assert all(f"\n  {name} " in out for name in ("clean", "evaluate"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{hf_finemix.__version__}\n"


@pytest.mark.parametrize("name", ["clean", "evaluate"])
def test_help_of_a_command(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: hf-finemix {name}" in out
    for flag in ("--dataset", "--target-label", "--config RECIPE.yaml", "--json"):
        assert flag in out


def test_unknown_command(capsys):
    assert main(["claen", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "hf-finemix: error: there is no command 'claen': did you mean clean?\n"
    assert captured.out == ""
    assert main(["wash", "x"]) == 2
    commands = "clean, plan, mix, verify, push, card, evaluate, poison, bench, demo, env"
    assert f"'wash': choose one of {commands}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["clean", "s", "--base-modle", "b"], "unknown argument '--base-modle': did you mean --base-model? See"),
        (["clean", "s", "b", "--base-model", "b"], "unknown argument 'b': a value needs its flag. See"),
        (["clean", "--base-model", "b", "--trigger", "cf", "s"], "put it first: a flag with several values"),
        (["clean", "s", "--base-model", "./nosuch", "--dataset", "d"], "the suspect s is not a local folder"),
        (["evaluate", "./nosuch", "--dataset", "d"], "the model './nosuch' is neither a folder nor a Hub id"),
    ],
)
def test_slips_of_the_hand(capsys, argv, said):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_that_cannot_show_every_sign(suspect_folder, base_folder, data_folder, tmp_path, encoding):
    command = [sys.executable, "-m", "hf_finemix", "clean", suspect_folder, "--base-model", base_folder]
    command += ["--dataset", data_folder, "--output-dir", "out", "--max-steps", "1", "--reserve-ratio", "0.5"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"written to out" in done.stdout


def test_a_reader_that_goes_away(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m hf_finemix | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_being_told_to_end_leaves_nothing(suspect_folder, base_folder, data_folder, tmp_path):
    command = [sys.executable, "-m", "hf_finemix", "clean", suspect_folder, "--base-model", base_folder]
    command += ["--dataset", data_folder, "--output-dir", "made/out", "--max-steps", "100000", "--use-cpu"]
    with subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("Mixed"):
                process.terminate()
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "hf-finemix: interrupted, nothing was written."
    assert not list(tmp_path.iterdir())


def test_being_told_to_end_while_an_object_is_tidied_up(tmp_path):
    """Python drops what is raised in `__del__`, which the metrics of evaluate have."""
    script = """
import os, signal, time
from hf_finemix.cli import _prepare_streams

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

_prepare_streams()
try:
    Slow()
    for _ in range(300):
        time.sleep(0.1)
except KeyboardInterrupt:
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("told\n", "")


# clean


def test_clean_prints_before_and_after(command, work, capsys):
    assert main(command(triggers=["cf", "the story"], target_label="positive")) == 0
    captured = capsys.readouterr()
    report = hf_finemix.CleaningReport.load(work / "out")
    assert captured.out == f"{report.summary()}\n\nreserve ratio ρ = 0.4; written to {work / 'out'}\n"
    lines = captured.err.splitlines()
    assert lines[0].startswith("Data: tuning: 64 rows of train (64 of 120); eval: 80 rows of validation")
    assert lines[1].startswith("Mixed 39 tensors with ρ = 0.4, kept 2 (classifier.weight, classifier.bias)")
    assert len(lines) == 2
    assert sorted(os.listdir(work)) == ["out"]


def test_json_on_standard_output_and_nothing_else(command, work, capsys):
    assert main([*command(logging_steps=1, disable_tqdm=False), "--json"]) == 0  # bars write the losses somewhere
    out = capsys.readouterr().out
    assert out == (work / "out" / "cleaning_report.json").read_text(encoding="utf-8")
    assert json.loads(out)["training"]["steps"] == 2


def test_a_process_in_a_pipe_is_quiet(command, work):
    process = run_process([*command(), "--json"], work)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["command"].startswith("hf-finemix clean ")
    assert len(err.splitlines()) == 2, err
    assert not any(sign in err for sign in ("\r", "\x1b", "%|", "it/s", "█"))
    assert sorted(os.listdir(work)) == ["out"]


def test_flags_with_hyphens_and_underscores(suspect_folder, base_folder, data_folder, work, capsys):
    argv = ["clean", f"--base_model={base_folder}", "--dataset", str(data_folder), str(suspect_folder)]
    argv += [
        "--reserve_ratio",
        "0.3",
        "--max-steps",
        "2",
        "--use_cpu",
        "--learning_rate=1e-4",
        "--no-purify-embeddings",
    ]
    argv += [
        "--num_clean_samples",
        "10",
        "--output-dir",
        "out",
        "--seed",
        "7",
        "--trigger",
        "cf",
        "--target_label",
        "1",
    ]
    assert main(argv) == 0
    report = hf_finemix.CleaningReport.load("out")
    assert (report.mixing["reserve_ratio"], report.mixing["purify_embeddings"]) == (0.3, False)
    assert (report.training["learning_rate"], report.training["steps"], report.seeds["training"]) == (1e-4, 2, 7)
    assert (report.data["rows"]["tuning"], report.after["triggers"][0]["trigger"]) == (10, "cf")


def write_recipe(text):
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return ["--config", "recipe.yaml"]


@pytest.mark.parametrize("suspect_in_recipe", [True, False])
def test_a_recipe(suspect_folder, base_folder, data_folder, work, capsys, suspect_in_recipe):
    """Keys in either form; flags win; a list as the last key takes nothing else in."""
    recipe = f"""
        {f"suspect: {suspect_folder}" if suspect_in_recipe else ""}
        base-model: {base_folder}
        dataset: {data_folder}
        output_dir: out
        reserve_ratio: 0.4
        max_steps: 500
        use-cpu: true
        overwrite: false
        num_clean_samples: 12
        learning_rate: 0.0001
        dataset_revision: null
        module_ratios: {{encoder: 0.9}}
        target_label: positive
        triggers: [cf, "the \\"story\\"", "2", "- x"]
    """
    argv = ["clean", *([] if suspect_in_recipe else [str(suspect_folder)]), *write_recipe(recipe)]
    assert main([*argv, "--max-steps", "2", "--num_clean_samples=8"]) == 0, capsys.readouterr().err
    report = hf_finemix.CleaningReport.load("out")
    assert report.suspect["id"] == str(suspect_folder)
    assert (report.training["steps"], report.data["rows"]["tuning"]) == (2, 8)
    assert (report.mixing["reserve_ratio"], report.mixing["module_ratios"]) == (0.4, {"encoder": 0.9})
    assert report.training["learning_rate"] == 1e-4
    assert [attack["trigger"] for attack in report.after["triggers"]] == ["cf", 'the "story"', "2", "- x"]


def test_a_flag_wins_over_the_suspect_and_the_lists_of_a_recipe(command, suspect_folder, work, capsys):
    recipe = write_recipe("suspect: nobody/nothing\ntriggers: [cf, story]\ntarget_label: negative\n")
    assert main([*command(triggers=["plot"], target_label="1"), *recipe]) == 0, capsys.readouterr().err
    report = hf_finemix.CleaningReport.load("out")
    assert report.suspect["id"] == str(suspect_folder)
    assert [(part["trigger"], part["target_label"]) for part in report.after["triggers"]] == [("plot", 1)]


def test_tokens_are_nowhere(command, work, capsys):
    """No token in any file, the report or the card, however it was given."""
    argv = command(token_frequencies=None, hub_token=SECRET)
    write_recipe(f"hub_token: {SECRET}\n")
    argv += [f"--hub_token={SECRET}", f"--hub-token={SECRET}", "--config", "recipe.yaml", "--logging-steps", "1"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    for path in (work / "out").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in captured.out + captured.err
    shown = hf_finemix.CleaningReport.load("out").command
    assert shown.startswith("hf-finemix clean ")
    assert shown.count("***") == 3
    assert "--logging-steps 1" in shown


def test_what_only_looks_like_a_token_is_shown(command, work):
    Path("counts.json").write_text('{"the": 100}')
    assert main(command(token_frequencies="counts.json", num_purified_tokens=5)) == 0
    shown = hf_finemix.CleaningReport.load("out").command
    assert "--token-frequencies counts.json --num-purified-tokens 5" in shown


def test_overwrite_replaces_the_folder(command, work, capsys):
    assert main(command()) == 0
    (work / "out" / "stale").touch()
    capsys.readouterr()
    assert main([*command(), "--overwrite"]) == 0
    assert capsys.readouterr().err.count("Mixed ") == 1, "a second command in one process tells things twice"
    assert not (work / "out" / "stale").exists()
    assert os.listdir(work) == ["out"]


# evaluate


def test_evaluate(suspect_folder, data_folder, base_folder, work, capsys):
    argv = ["evaluate", str(suspect_folder), "--dataset", str(data_folder), "--use-cpu"]
    assert main([*argv, "--triggers", "cf", "--target-label", "positive", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""

    from transformers import AutoModelForSequenceClassification

    rows, model = make_rows(100, seed=2), AutoModelForSequenceClassification.from_pretrained(suspect_folder).float()
    with torch.no_grad():
        logits = model(**make_tokenizer()(rows["sentence"], padding=True, return_tensors="pt")).logits
    hits = [a == b for a, b in zip(logits.argmax(-1).tolist(), rows["label"], strict=True)]
    assert result["accuracy"] == sum(hits) / 100
    assert (result["n"], result["triggers"][0]["n"], result["triggers"][0]["repeats"]) == (100, 50, 3)

    assert main([*argv, "--base-model", str(base_folder), "--test-split", "validation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("accuracy ")
    assert lines[0].endswith("(n = 80)")
    assert lines[1] == "attack success not measured: no trigger given"
    assert os.listdir(work) == []


# Bad input: one line, exit status 2, nothing written


@pytest.fixture
def refused(command, work, capsys, suspect_folder, base_folder, data_folder):
    """Run a command that must fail, and give its one line."""
    before = {path: path.stat().st_mtime_ns for path in (suspect_folder, base_folder, data_folder)}

    def run(*positional, argv=None, **flags):
        there = sorted(work.rglob("*"))
        capsys.readouterr()
        status = main(argv or command(*positional, **flags))
        captured = capsys.readouterr()
        assert status == 2, captured
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("hf-finemix: error: ")
        assert "unexpected" not in captured.err
        assert sorted(work.rglob("*")) == there, "something was written"
        assert {path: path.stat().st_mtime_ns for path in before} == before
        return captured.err.removeprefix("hf-finemix: error: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"base_model": None}, "is not known, it names none: give --base-model"),
        ({"base_model": "no/such/thing"}, "the base 'no/such/thing' is neither a folder nor a Hub id like org/name"),
        ({"dataset": None}, "--dataset"),
        ({"train_split": "trian"}, "no split 'trian': there are train, validation, test"),
        ({"triggers": ["cf"]}, "triggers need target_label"),
        ({"text_columns": ["txt"]}, "no column 'txt': there are sentence, label"),
    ],
)
def test_models_data_and_triggers_that_cannot_be(refused, flags, said):
    """One of each kind; all of them are in tests/jobs/test_refused_models.py and test_refused_data.py."""
    assert said in refused(**flags)


def test_a_suspect_that_is_not_given(refused, data_folder):
    assert "the following arguments are required: SUSPECT" in refused(argv=["clean", "--dataset", str(data_folder)])


@pytest.mark.parametrize(
    ("flags", "library"),
    [
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": "nonsense"}, "only"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"optim": "lomo"}, "lomo"),
        ({"use_liger_kernel": "true"}, "liger-kernel"),
    ],
)
def test_a_library_that_is_not_there_is_told_before_anything_is_loaded(refused, flags, library):
    for name in ("wandb", "bitsandbytes", "lomo_optim", "liger_kernel"):
        if importlib.util.find_spec(name):
            pytest.skip(f"{name} is there")
    message = refused("no such suspect", **flags)
    assert message.startswith(f"{next(iter(flags))} ")
    assert library in message


@pytest.mark.parametrize("ratio", [-0.1, 1.5, "half", "nan"])
def test_a_ratio_outside_its_range(refused, ratio):
    message = refused(argv=["clean", "suspect", f"--reserve-ratio={ratio}"])
    assert message == f"reserve_ratio is '{ratio}': give a number in [0, 1] or 'auto'."


def test_outputs_that_cannot_be(refused, work, suspect_folder, variant, capsys):
    taken = work / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    assert f"the output folder {taken} is not empty: give another one, or --overwrite" in refused(output_dir=taken)
    message = refused(output_dir=taken, overwrite=True)
    assert "holds no cleaned model to overwrite" in message
    file = work / "file"
    file.touch()
    assert f"the output {file} is a file: give a folder" in refused(output_dir=file)
    assert "cannot be made (Not a directory)" in refused(output_dir=file / "out")
    copy = variant("own")
    for out in (copy, copy / "..", f"{copy}/"):
        assert "which is read: give another one" in refused(copy, output_dir=out, overwrite=True)
    assert (copy / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("reserve_ratio: [0.1\n", "the recipe recipe.yaml cannot be read"),
        ("- a\n- b\n", "is not a YAML mapping of keys to values"),
        ("just text", "is not a YAML mapping of keys to values"),
        ("5: 6\n", "unknown key '5' in the recipe"),
        ("reserve_ration: 0.1\n", "unknown key 'reserve_ration' in the recipe"),
        ("config: other.yaml\n", "unknown key 'config' in the recipe"),
        ("model: x\n", "unknown key 'model' in the recipe"),
        ("learning_rate: fast\n", "invalid float value: 'fast'"),
        ("reserve_ratio: 3\n", "reserve_ratio is '3'"),
    ],
)
def test_recipes_that_are_wrong(refused, command, work, text, reason):
    recipe = write_recipe(text)
    message = refused(argv=[*command(reserve_ratio=None, output_dir="out"), *recipe])
    assert reason in message


def test_recipes_that_are_not_there(refused, command):
    assert "the recipe nowhere.yaml cannot be read" in refused(argv=[*command(), "--config", "nowhere.yaml"])
    assert "expected one argument" in refused(argv=[*command(), "--config"])
    Path("latin-1.yaml").write_bytes("target_label: négatif\n".encode("latin-1"))
    assert "the recipe latin-1.yaml cannot be read" in refused(argv=[*command(), "--config", "latin-1.yaml"])


def test_flags_that_are_none(refused, command):
    assert "unknown argument '--reserve-ration'" in refused(reserve_ration=0.1)
    assert "unknown argument '--reserve'" in refused(reserve=0.1)  # no abbreviations
    assert "unknown argument 'second'" in refused("first", "second")
    assert "invalid float value: 'fast'" in refused(learning_rate="fast")
    assert "invalid choice: 'sometimes'" in refused(save_strategy="sometimes")
    message = refused(argv=[*command(), f"--hub-tokn={SECRET}"])
    assert SECRET not in message
    assert "push_to_hub needs a name" in refused(push_to_hub=True)


def test_evaluate_refuses_bad_input(refused, base_folder, suspect_folder, data_folder, tmp_path):
    def evaluate(model, **flags):
        flags = {"dataset": data_folder, **flags}
        return refused(argv=["evaluate", str(model), *(f"--{name}={value}" for name, value in flags.items())])

    assert "is no sequence classifier" in evaluate(base_folder)
    assert "no split 'tset': there are train, validation, test" in evaluate(suspect_folder, test_split="tset")
    assert "triggers need target_label" in evaluate(suspect_folder, triggers="cf")
    assert "check the path" in evaluate(suspect_folder, dataset=tmp_path / "nowhere.csv")


# Trouble half way


@pytest.fixture
def large(tmp_path):
    """A base and a suspect of 5 MB, more than anything else that a run writes."""
    from transformers import BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = make_config(hidden_size=128, intermediate_size=4096)
    save_with_tokenizer(BertModel(config), tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", config=config)
    save_with_tokenizer(drifted(model).half(), tmp_path / "suspect")
    return {"suspect": tmp_path / "suspect", "base_model": tmp_path / "base"}


def test_a_full_disk(command, work, large):
    def fill_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    argv = command(large.pop("suspect"), **large)
    process = run_process(argv, work, preexec_fn=fill_up)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert out == ""
    assert err.splitlines()[-1] == (
        f"hf-finemix: error: the disk of {work / 'out'} is full: free some space, or give another output folder."
    )
    assert "Traceback" not in err
    assert len(err.splitlines()) == 3, err  # before it what data there are, and what was mixed
    assert os.listdir(work) == []


def test_ctrl_c_half_way(command, work):
    # Where the tests run in the background of a shell, Ctrl-C is switched off for them and what they start.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with run_process(command(max_steps=1_000_000), work, **listen) as process:
        try:
            for line in process.stderr:
                if line.startswith("Mixed "):  # training follows
                    break
            assert (work / "out.partial").is_dir()
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert (out, err) == ("", "hf-finemix: interrupted, nothing was written.\n")
    assert os.listdir(work) == []
