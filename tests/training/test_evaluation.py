"""The loss of an evaluation is the mean over all labels."""

import json

import pytest
import torch
from support.encoders import make_masked_lm
from support.evaluation_process import evaluate
from support.models import logits_of
from support.processes import run_in_two_processes
from support.trainers import new_model
from transformers import Seq2SeqTrainer, TrainingArguments

from modeling_xlm_swcm.training.checkpoints import ResumableTrainer
from modeling_xlm_swcm.training.encoder import XLMRobertaForMaskedLM


def mean_over_labels(model, batch, label_smoothing=0.0) -> float:
    log_probabilities, labels = logits_of(model, **batch).log_softmax(-1), batch["labels"]
    kept = log_probabilities[labels != -100]
    targets = kept.gather(1, labels[labels != -100][:, None]).mean()
    return float(-(1 - label_smoothing) * targets - label_smoothing * kept.mean())


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_it_does_not_depend_on_the_size_of_the_batches(make_trainer, tokenizer, generates, label_smoothing):
    model = new_model(tokenizer)
    make_trainer.rows = make_trainer.rows[:13]
    options = dict(predict_with_generate=generates, generation_max_length=4, label_smoothing_factor=label_smoothing)
    losses = []
    for size in (1, 3, 8, 16):
        trainer = make_trainer(model, per_device_eval_batch_size=size, **options)
        losses += [trainer.evaluate()["eval_loss"], trainer.predict(make_trainer.rows).metrics["test_loss"]]
    batch = trainer.data_collator(make_trainer.rows)
    assert losses == pytest.approx(8 * [mean_over_labels(model, batch, label_smoothing)], rel=1e-5)
    upstream = make_trainer(model, trainer_class=Seq2SeqTrainer, per_device_eval_batch_size=3)
    assert abs(upstream.evaluate()["eval_loss"] - mean_over_labels(model, batch)) > 1e-2


def test_two_processes_compute_the_loss_of_one(make_trainer, tokenizer, tmp_path):
    run_in_two_processes(tmp_path, evaluate, tmp_path, (12, 13))
    losses = json.loads((tmp_path / "losses.json").read_text())
    # Thirteen rows need repeated rows, which count as the mean of their batch.
    for rows, loss, tolerance in zip((12, 13), losses, (1e-5, 0.02), strict=True):
        trainer = make_trainer(new_model(tokenizer), per_device_eval_batch_size=16)
        alone = trainer.evaluate(trainer.eval_dataset[:rows])["eval_loss"]
        assert loss == pytest.approx(alone, rel=tolerance)


def test_a_batch_without_a_label_does_not_count(tmp_path):
    """A short text can have no masked token."""
    model = XLMRobertaForMaskedLM(make_masked_lm().config).eval()
    rows = [
        {"input_ids": [0, 5, 6, 2], "attention_mask": [1, 1, 1, 1], "labels": labels}
        for labels in ([-100, 7, -100, -100], [-100, -100, -100, -100], [-100, 8, 9, -100])
    ]
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=1, use_cpu=True, report_to=[])
    loss = ResumableTrainer(model, args, eval_dataset=rows).evaluate()["eval_loss"]
    with torch.no_grad():
        batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        assert loss == pytest.approx(float(model(**batch).loss), rel=1e-5)
