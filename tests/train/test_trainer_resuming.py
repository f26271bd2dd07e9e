"""FineMixingTrainer resumes: what was mixed is not mixed again."""

import shutil

import pytest
from helpers.trainers import frozen, load, mixing, same, sentences, settings, weights
from transformers import Trainer

from hf_finemix import FineMixingConfig
from hf_finemix.config import CONFIG_NAME


@pytest.mark.parametrize("model_init", [False, True])
@pytest.mark.parametrize("latest", [False, True])
def test_resuming_does_not_mix(make_trainer, tmp_path, suspect_folder, model_init, latest):
    def trainer(ratio, folder=tmp_path):
        model = {"model_init": lambda: load(suspect_folder)} if model_init else {"model": load(suspect_folder)}
        return make_trainer(
            **model,
            args=settings(folder, save_strategy="steps", save_steps=3, max_steps=6),
            mixing_config=mixing(ratio),
        )

    whole = trainer(0.3)
    whole.train()
    if latest:
        shutil.rmtree(tmp_path / "checkpoint-6")
    # What the new trainer would mix is another thing: nothing of it may get in.
    resumed = trainer(0.8)
    resumed.train(resume_from_checkpoint=True if latest else str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.mixing_record == whole.mixing_record
    resumed.save_model(tmp_path / "published")
    for folder in ("published", "checkpoint-6"):
        assert FineMixingConfig.from_pretrained(tmp_path / folder).reserve_ratio == 0.3

    resumed.train()
    assert resumed.mixing_record.reserve_ratio == (0.8 if model_init else 0.3)  # a newly built model is mixed anew


def test_resuming_from_what_was_never_mixed_is_doubtful(make_trainer, tmp_path, suspect_folder, caplog):
    args = settings(tmp_path, save_strategy="steps", save_steps=2)
    Trainer(load(suspect_folder), args, train_dataset=sentences()).train()
    trainer = make_trainer(args=args)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [r.levelname for r in caplog.records if r.name == "hf_finemix.train.mixin"] == ["WARNING"]
    assert CONFIG_NAME in caplog.text
    trainer.save_model(tmp_path / "published")
    assert not (tmp_path / "published" / CONFIG_NAME).exists()


@pytest.mark.parametrize("checkpoint", [True, "missing"])
def test_a_failed_resume_leaves_the_mixing_to_be_done(make_trainer, tmp_path, suspect_folder, checkpoint, caplog):
    trainer = make_trainer(args=frozen(tmp_path))
    with pytest.raises(ValueError, match="valid checkpoint"):
        trainer.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(tmp_path / checkpoint))
    assert "never mixed" not in caplog.text  # of a folder that is not there
    trainer.train()
    assert trainer.mixing_record.reserve_ratio == 0.3
    assert not same(weights(trainer.model), weights(load(suspect_folder)))
