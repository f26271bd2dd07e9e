"""FineMixingTrainer saves the config of the mix beside the weights."""

import dataclasses

import pytest
from helpers.trainers import frozen, load, mixing, sentences, settings

from hf_finemix import FineMixingConfig, FineMixingTrainer
from hf_finemix.config import CONFIG_NAME


@pytest.mark.parametrize("by", ["argument", "config", "both"])
def test_where_the_base_is_said(make_trainer, tmp_path, base_folder, by):
    said = {"config": base_folder, "both": tmp_path / "nowhere", "argument": None}[by]  # paths, not only strings
    trainer = make_trainer(
        args=frozen(tmp_path),
        base_model=None if by == "config" else base_folder,
        mixing_config=mixing(0.5, base_model_name_or_path=said),
    )
    trainer.train()
    trainer.save_model()
    assert FineMixingConfig.from_pretrained(tmp_path).base_model_name_or_path == str(base_folder)


def test_saved_config(make_trainer, tmp_path, base_folder):
    args = settings(tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=2)
    config = mixing(0.35, mixing_seed=5, module_ratios={"attention": 0.9})
    trainer = make_trainer(args=args, mixing_config=config)
    trainer.save_model(tmp_path / "before")
    assert not (tmp_path / "before" / CONFIG_NAME).exists()
    trainer.train()
    trainer.save_model()
    trainer.save_model(tmp_path / "elsewhere")
    expected = dataclasses.replace(config, base_model_name_or_path=str(base_folder))
    for folder in ("out", "out/checkpoint-2", "elsewhere"):
        assert FineMixingConfig.from_pretrained(tmp_path / folder) == expected


def test_the_config_is_there_when_the_folder_is_pushed(tmp_path, base_folder, suspect_folder):
    pushed = []

    class Offline(FineMixingTrainer):
        """Does not talk to the Hub, but keeps what would go there."""

        def init_hf_repo(self, *args, **kwargs):
            self.hub_model_id = "me/cleaned"

        def push_to_hub(self, *args, **kwargs):
            pushed.append({path.name for path in tmp_path.iterdir()})

    args = frozen(tmp_path, push_to_hub=True, hub_strategy="end")
    given = {"train_dataset": sentences(), "base_model": str(base_folder), "mixing_config": mixing(0.5)}
    trainer = Offline(load(suspect_folder), args, **given)
    trainer.train()
    trainer.save_model()
    assert len(pushed) == 1
    assert {CONFIG_NAME, "model.safetensors"} <= pushed[0]
