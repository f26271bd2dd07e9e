"""clean(..., resume=True): killed at any step and started again, it ends with the weights of an uninterrupted run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.lora import make_adapter
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from hf_finemix import CleaningReport, FineMixingConfig, FineMixingError, clean
from hf_finemix.cleaning.stages import make_trainer

SETTINGS = {"max_steps": 20, "use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


class KillAt(TrainerCallback):
    """Stops everything at a step of a training."""

    def __init__(self, training, step):
        self.training, self.step, self.begun = training, step, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun += 1

    def on_step_end(self, args, state, control, **kwargs):
        if (self.begun, state.global_step) == (self.training, self.step):
            raise Killed


@pytest.fixture
def run(suspect_folder, base_folder, data_folder, tmp_path, monkeypatch):
    """Clean into a folder; with `kill`, up to a step of a training."""

    def run(out, kill=None, ratio=0.5, resume=True, dropout=True, adapter=None, **changes):
        trainings = []

        def made(*arguments):
            trainer = make_trainer(*arguments)
            if dropout:  # so that the state of the random numbers matters
                for module in trainer.model.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.1
            if kill:
                trainer.add_callback(KillAt(*kill))
            mix = trainer.mix_weights
            monkeypatch.setattr(trainer, "mix_weights", lambda *a: trainings.append(a[1].reserve_ratio) or mix(*a))
            return trainer

        monkeypatch.setattr("hf_finemix.cleaning.clean.make_trainer", made)
        mode = {"adapter_mode": "adapter"} if adapter else {"num_purified_tokens": 3}
        config = FineMixingConfig(reserve_ratio=ratio, candidate_ratios=[0.2, 0.5, 0.8], **mode)
        settings = {"learning_rate": 1e-3, **SETTINGS, **changes}
        try:
            clean(
                adapter or suspect_folder,
                base_model=base_folder,
                dataset=str(data_folder),
                triggers=["cf"],
                target_label="1",
                output_dir=tmp_path / out,
                mixing_config=config,
                training_args=TrainingArguments(str(tmp_path / out), **settings),
                resume=resume,
            )
        except Killed:
            return trainings
        finally:
            monkeypatch.setattr("hf_finemix.cleaning.clean.make_trainer", make_trainer)
        return trainings

    return run


@pytest.mark.parametrize(("ratio", "kill"), [(0.5, (1, 13)), ("auto", (2, 7))])
def test_an_adapter_that_stays_one_goes_on(ratio, kill, run, base_folder, tokenizer, tmp_path):
    make_adapter(tmp_path / "adapter", base_folder, tokenizer, labels=["negative", "positive"])
    given = {"adapter": tmp_path / "adapter", "ratio": ratio}
    run("killed", kill=kill, **given)
    assert (tmp_path / "killed.partial").is_dir()
    run("killed", **given)
    run("whole", **given)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def same(tmp_path, first, second):
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in (first, second))
    reports = [CleaningReport.load(tmp_path / name) for name in (first, second)]
    assert reports[0].mixing["tensors"] == reports[1].mixing["tensors"]
    assert reports[0].after == reports[1].after
    assert reports[0].ratio_search == reports[1].ratio_search
    assert sorted(os.listdir(tmp_path / first)) == sorted(os.listdir(tmp_path / second))
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_training_goes_on(run, tmp_path):
    run("whole", resume=False)
    run("killed", kill=(1, 13))
    assert (tmp_path / "killed.partial" / "checkpoints" / "checkpoint-12").is_dir()
    # A checkpoint that was being written when it was killed is passed by.
    (tmp_path / "killed.partial" / "checkpoints" / "checkpoint-12" / "trainer_state.json").write_text("{")
    run("killed", kill=(1, 15))  # and killed again
    run("killed")
    assert same(tmp_path, "whole", "killed")
    assert not (tmp_path / "killed.partial").exists()


def test_without_a_checkpoint_it_starts_over(run, tmp_path):
    run("whole", resume=False)
    run("killed", kill=(1, 1))
    run("killed")
    assert same(tmp_path, "whole", "killed")


def test_a_killed_search_goes_on_with_what_it_knows(run, tmp_path):
    assert len(run("whole", ratio="auto", resume=False)) == 2
    run("killed", kill=(2, 7), ratio="auto")  # in the second trial
    assert (tmp_path / "killed.partial" / "trials.json").is_file()
    again = run("killed", kill=(2, 11), ratio="auto")  # in the last training, with the ρ that was chosen
    assert len(again) == 2
    assert len(run("killed", ratio="auto")) == 1
    assert same(tmp_path, "whole", "killed")


def test_another_run_is_not_gone_on_with(run, tmp_path):
    run("killed", kill=(1, 13))
    with pytest.raises(FineMixingError, match=r"had learning_rate = 0\.001, and now it is 0\.002: give the same"):
        run("killed", learning_rate=2e-3)
    with pytest.raises(FineMixingError, match=r"had reserve_ratio = 0\.5, and now it is 0\.6"):
        run("killed", ratio=0.6)
    assert (tmp_path / "killed.partial").is_dir(), "what was done must not be lost by a wrong flag"
    run("killed", resume=False)  # which begins anew
    assert not (tmp_path / "killed.partial").exists()


def test_the_command_line_is_interrupted_and_goes_on(suspect_folder, base_folder, data_folder, tmp_path):
    command = [sys.executable, "-m", "hf_finemix", "clean", str(suspect_folder), "--base-model", str(base_folder)]
    command += ["--dataset", str(data_folder), "--reserve-ratio", "0.5", "--use-cpu", "--resume", "--save-steps", "5"]
    command += ["--save-strategy", "steps", "--max-steps", "100000", "--output-dir", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out.partial/checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.endswith("hf-finemix: interrupted; the same command goes on from out.partial.\n")
    assert (tmp_path / "out.partial" / "checkpoints").is_dir()
