"""One run of an ablation: examples and their order, training of a decoder, and scores."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from comparison import SCORES
from decoders import VARIANTS, Start
from tasks import TASKS
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training.arguments import TrainingArguments, has_fast_bf16
from modeling_xlm_swcm.training.examples import Pair, encode_pairs, truncate
from modeling_xlm_swcm.training.metrics import GenerationMetrics
from modeling_xlm_swcm.training.rows import BadRows
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


# batches among which examples are sorted by length
SORTED_TOGETHER = 20
# options of all runs and of pretraining
SCHEDULE = dict(lr_scheduler_type="linear", warmup_steps=0.1, max_grad_norm=1.0, save_strategy="no", report_to="none")


def encode_short_pairs(
    pairs: list[Pair], tokenizer: XLMSWCMTokenizer, limit: int, truncate_sources: bool
) -> tuple[list[dict], int]:
    """Return examples of the pairs of at most `limit` tokens, and the number of characters of their targets."""
    examples, characters = [], 0
    source_limit = sys.maxsize if truncate_sources else limit
    for pair in pairs:
        # Encoding one pair at a time shows which pairs are short enough.
        for example in encode_pairs([pair], tokenizer, source_limit, limit, BadRows(skip=True)):
            examples.append(example | {"input_ids": truncate(example["input_ids"], limit)})
            characters += len(pair.target)
    return examples, characters


def encode_test(pairs: list[Pair], tokenizer: XLMSWCMTokenizer, limit: int) -> list[dict]:
    """Return an example for each pair, of any length. Only the tag of the labels matters."""
    examples = list(encode_pairs(pairs, tokenizer, sys.maxsize, sys.maxsize, BadRows()))
    for example in examples:
        example["input_ids"], example["labels"] = truncate(example["input_ids"], limit), example["labels"][:limit]
    return examples


def order_examples(examples: list[dict], steps: int, batch_size: int, seed: int) -> list[dict]:
    """Return the examples of all steps in their order, in batches of similar length, the same for every decoder."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // len(examples))
    sampled = np.concatenate([rng.permutation(len(examples)) for _ in range(epochs)])[: steps * batch_size]
    batches = []
    for start in range(0, len(sampled), SORTED_TOGETHER * batch_size):
        rows = sampled[start : start + SORTED_TOGETHER * batch_size].tolist()
        rows.sort(key=lambda row: len(examples[row]["input_ids"]) + len(examples[row]["labels"]))
        together = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        rng.shuffle(together)
        batches += together
    return [examples[row] for batch in batches for row in batch]


class AblationTrainer(XLMSWCMTrainer):
    """A trainer that evaluates the loss per character of the references, without the language tags."""

    characters: int

    @torch.no_grad()
    def evaluate(self, *args, **kwargs):
        start, nats = time.perf_counter(), 0.0
        self.model.eval()
        for batch in map(self._prepare_inputs, self.get_eval_dataloader()):
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])
            batch["labels"][:, 0] = -100
            with self.compute_loss_context_manager():
                nats += self.compute_loss(self.model, batch).item() * (batch["labels"] != -100).sum().item()
        metrics = {"eval_loss": nats / self.characters, "eval_seconds": time.perf_counter() - start}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Freeze(TrainerCallback):
    """Freeze the second group of parameters up to a step. AdamW still updates its moments."""

    def __init__(self, until: float):
        self.until = until

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        if state.global_step < self.until:
            optimizer.param_groups[1]["lr"] = 0.0


def make_trainer(start: Start, settings: dict, train: list[dict], dev: list[dict], scratch: Path) -> AblationTrainer:
    """Make the trainer of a run, with the learning rates of its variant."""
    variant, rate = VARIANTS[settings["variant"]], settings["learning_rate"]
    parameters = dict(start.model.named_parameters())
    copied = [parameter for name, parameter in parameters.items() if name in start.copied]
    fresh = [parameter for name, parameter in parameters.items() if name not in start.copied]
    groups = [{"params": fresh}, {"params": copied, "lr": variant.copied_rate * rate}]
    args = TrainingArguments(
        str(scratch),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=128,
        learning_rate=rate,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=settings["eval_steps"],
        eval_on_start=True,
        logging_steps=settings["eval_steps"],
        seed=settings["seed"],
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        predict_with_generate=True,
        # The start token is not part of the labels.
        generation_max_length=settings["max_length"] + 1,
        disable_tqdm=True,
        **SCHEDULE | {"warmup_steps": settings["warmup_steps"]},
    )
    betas = (0.9, settings["adam_beta2"])
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=0.0, fused=True)
    until = variant.frozen_share * settings["steps"]
    trainer = AblationTrainer(
        start.model,
        args,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=DataCollatorForSeq2Seq(start.tokenizer),
        processing_class=start.tokenizer,
        optimizers=(optimizer, None),
        callbacks=[Freeze(until)] if until else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def learn(start: Start, settings: dict, data: Path, scratch: Path, result: dict):
    """Train and score on the test sentences. Write all findings into `result`, even if training fails."""
    task, limit = TASKS[settings["task"]], settings["max_length"]
    pairs, dev = task.read_train(data, settings["pairs"]), task.read_held_out(data, "dev", settings["dev_lines"])
    examples, _ = encode_short_pairs(pairs, start.tokenizer, limit, task.truncate_sources)
    dev_examples, characters = encode_short_pairs(dev, start.tokenizer, limit, task.truncate_sources)
    ordered = order_examples(examples, settings["steps"], settings["batch_size"], settings["seed"])
    trainer = make_trainer(start, settings, ordered, dev_examples, scratch)
    trainer.characters = characters
    result |= {
        "parameters": start.model.num_parameters(),
        "trainable_parameters": start.model.num_parameters(only_trainable=True),
        "tokens": sum(len(example["input_ids"]) + len(example["labels"]) for example in ordered),
        "left_out": {"train": len(pairs) - len(examples), "dev": len(dev) - len(dev_examples)},
        "machine": describe_machine(trainer),
    }
    times = [time.perf_counter()]
    try:
        trainer.train()
    finally:
        result["curve"] = make_curve(trainer.state.log_history)
    times.append(time.perf_counter())
    result |= score_outputs(trainer, task.read_held_out(data, "test", settings["test_lines"]), limit)
    times.append(time.perf_counter())
    evaluation = sum(entry.get("eval_seconds", 0) for entry in trainer.state.log_history)
    training, generation = times[1] - times[0] - evaluation, times[2] - times[1]
    result["seconds"] = {"training": training, "evaluation": evaluation, "generation": generation}


def score_outputs(trainer: AblationTrainer, test: list[Pair], max_length: int) -> dict:
    """Generate greedily. Return the outputs and their scores for each language and for all."""
    tokenizer = trainer.processing_class
    metrics = GenerationMetrics(tokenizer, [pair.target for pair in test], [pair.tgt_lang for pair in test])
    trainer.compute_metrics = metrics
    trainer.predict(encode_test(test, tokenizer, max_length))
    scores = {group: {name: of[name] for name in SCORES} for group, of in metrics.scores.items()}
    return {"scores": scores, "signature": metrics.scores["all"]["chrf++_signature"], "outputs": metrics.written}


def make_curve(history: list[dict]) -> list[dict]:
    """Return training loss (nats per token) and development loss (nats per character) by step."""
    points = {}
    for entry in history:
        for name, source in {"loss": "loss", "dev_loss": "eval_loss"}.items():
            if source in entry:
                points.setdefault(entry["step"], {"step": entry["step"]})[name] = entry[source]
    return list(points.values())


def describe_machine(trainer: AblationTrainer) -> dict:
    """Return device, threads, precision and versions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if trainer.args.bf16 else "float32",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
