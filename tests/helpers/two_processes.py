"""Run by torchrun in test_processes.py: trains tiny models; each process writes what it has in the end as JSON."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    TrainingArguments,
)

from helpers.toy import make_rows, make_tokenizer
from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.mix.in_memory import mix_model
from hf_finemix.train.processes import from_main, leave_group, whole_model


def encoded(count, seed):
    rows = Dataset.from_dict(make_rows(count, seed))
    return rows.map(lambda batch: make_tokenizer()(batch["sentence"]), batched=True).rename_column("label", "labels")


def digest(parameters):
    return hashlib.sha256(b"".join(p.detach().float().numpy().tobytes() for p in parameters)).hexdigest()


class Watched(FineMixingTrainer):
    """Notes what is mixed, and where."""

    digests: list
    failing_rank = None

    def mix_weights(self, model, config):
        if self.failing_rank == self.args.process_index:
            raise FineMixingError("this process has no luck.")
        record = super().mix_weights(model, config)
        self.digests.append(digest(model.parameters()))
        return record


def trained(base, suspect, out, **config):
    args = TrainingArguments(
        out, max_steps=4, per_device_train_batch_size=8, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(suspect, dtype=torch.float32)
    trainer = Watched(
        model,
        args,
        train_dataset=encoded(64, 0),
        eval_dataset=encoded(60, 1),
        processing_class=make_tokenizer(),
        base_model=base,
        mixing_config=FineMixingConfig(num_purified_tokens=3, **config),
    )
    trainer.digests = []
    return trainer


def sharded(base, suspect):
    """Mixed before and after FSDP 2 has sharded it; and where the other process has no weights yet."""
    plain, shards = (
        AutoModelForSequenceClassification.from_pretrained(suspect, dtype=torch.float32) for _ in range(2)
    )
    config = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    state = PartialState()
    with whole_model(plain) as whole:
        from_main(lambda: mix_model(whole, Checkpoint(base), config))
    mesh = init_device_mesh("cpu", (state.num_processes,))
    for module in (*shards.bert.encoder.layer, shards):
        fully_shard(module, mesh=mesh)
    ids = torch.arange(5, 25).view(2, 10)
    shards(ids)  # as after an evaluation
    with whole_model(shards) as whole:
        record = from_main(lambda: mix_model(whole, Checkpoint(base), config))
    full = [parameter.full_tensor() for parameter in shards.parameters()]
    empty = AutoModelForSequenceClassification.from_pretrained(suspect, dtype=torch.float32)
    empty = empty if state.is_main_process else empty.to("meta")
    with whole_model(empty) as whole:
        from_main(lambda: mix_model(whole, Checkpoint(base), config))
    return {
        "before": digest(plain.parameters()),
        "after": digest(full),
        "empty": digest(empty.parameters()) if state.is_main_process else None,
        "same_answers": torch.allclose(shards(ids).logits, plain(ids).logits),
        "record": len(record.tensors),
    }


def tied(folder):
    """A language model whose head is its embedding, in shards and whole."""
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    models = []
    for seed in (0, 0):
        torch.manual_seed(seed)
        models.append(GPT2LMHeadModel(GPT2Config(**sizes)).eval())
    plain, shards = models
    state = PartialState()
    base = f"{folder}/tied_base"
    if state.is_main_process:
        moved = GPT2Model(GPT2Config(**sizes))
        moved.load_state_dict({k: v + 0.01 * torch.randn_like(v) for k, v in plain.transformer.state_dict().items()})
        moved.save_pretrained(base)
    state.wait_for_everyone()
    fully_shard(shards, mesh=init_device_mesh("cpu", (state.num_processes,)))
    config, records = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False), []
    for model in (plain, shards):
        with whole_model(model) as whole:
            records.append(from_main(lambda whole=whole: mix_model(whole, Checkpoint(base), config).tensors))
    ids = torch.arange(5, 25).view(2, 10)
    return records[0] == records[1] and torch.allclose(plain(ids).logits, shards(ids).logits)


def main(base, suspect, out):
    results = {}
    for name, config in {
        "random": {"reserve_ratio": 0.5},
        "fisher": {"reserve_ratio": 0.5, "strategy": "fisher"},
        "auto": {"reserve_ratio": "auto", "candidate_ratios": [0.2, 0.8]},
    }.items():
        trainer = trained(base, suspect, out, **config)
        trainer.evaluate()  # after which accelerate would leave the model unwrapped
        trainer.train()
        accuracy = (
            trainer.predict(trainer.eval_dataset).predictions.argmax(-1) == trainer.eval_dataset["labels"]
        ).mean()
        results[name] = {
            "mixed": trainer.digests,
            "trained": digest(trainer.model.parameters()),
            "record": len(trainer.mixing_record.tensors),
            "trials": trainer.ratio_search and trainer.ratio_search.trials,
            "accuracy": float(accuracy),
        }
    if trainer.args.world_size > 1:
        results["sharded"] = sharded(base, suspect) | {"tied": tied(out)}
    trainer = trained(base, suspect, out, reserve_ratio=0.5)
    trainer.failing_rank = 0
    try:
        trainer.train()
    except FineMixingError as error:
        results["error"] = str(error)
    results |= {"rank": trainer.args.process_index, "world": trainer.args.world_size}
    (Path(out) / f"rank{results['rank']}.json").write_text(json.dumps(results))
    PartialState().wait_for_everyone()  # one that leaves while another still talks to it can be ended by that
    leave_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
