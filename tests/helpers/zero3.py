"""Run by torchrun in test_processes.py: a model that DeepSpeed has cut into shards is mixed, on the CPU."""

import sys

import deepspeed
import torch
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification
from transformers.integrations import HfDeepSpeedConfig

from helpers.two_processes import digest
from hf_finemix import FineMixingConfig
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.mix.in_memory import mix_model
from hf_finemix.train.processes import from_main, whole_model


def main(base, suspect):
    state = PartialState(cpu=True)
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
    config = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    plain = AutoModelForSequenceClassification.from_pretrained(suspect, dtype=torch.float32)
    mix_model(plain, Checkpoint(base), config)
    stage3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
    zero = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage3})  # as long as it lives
    model = AutoModelForSequenceClassification.from_pretrained(suspect, dtype=torch.float32)
    assert all(parameter.numel() == 0 for parameter in model.parameters()), zero
    with whole_model(model) as whole:
        from_main(lambda: mix_model(whole, Checkpoint(base), config))
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        same = digest(model.parameters()) == digest(plain.parameters())
    print(f"RESULT {state.process_index} {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
