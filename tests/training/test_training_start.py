"""The start of a training: options that cannot work are named before the first step."""

import copy

import pytest
import torch
from support.trainers import new_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.metrics import GenerationMetrics
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


EVALUATION = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture
def forbid_steps(monkeypatch):
    def fail(self, *args, **kwargs):
        raise AssertionError("a step was made")

    monkeypatch.setattr("transformers.Trainer.training_step", fail)


@pytest.mark.usefixtures("forbid_steps")
class TestBestMetric:
    @pytest.mark.parametrize("name", ["rouge", "eval_rouge"])
    def test_an_unknown_one_is_named_before_the_first_step(self, make_trainer, tokenizer, name):
        trainer = make_trainer(metric_for_best_model=name, predict_with_generate=True, **EVALUATION)
        trainer.compute_metrics = GenerationMetrics(tokenizer, groups=["zh-bo", "zh-kk"], names=["chrf++", "bleu"])
        with pytest.raises(TrainingError) as error:
            trainer.train()
        known = "loss, chrf++, bleu, zh-bo_chrf++, zh-kk_chrf++"
        assert str(error.value) == f"--metric_for_best_model must be one of {known} (got {name})."

    def test_without_metrics_there_is_the_loss(self, make_trainer):
        with pytest.raises(TrainingError, match=r"^--metric_for_best_model must be one of loss \(got bleu\)\.$"):
            make_trainer(metric_for_best_model="bleu", **EVALUATION).train()


@pytest.mark.parametrize("name", ["loss", "eval_loss", "chrf++", "eval_chrf++", "runtime"])
def test_a_known_metric_is_used(make_trainer, tokenizer, name):
    trainer = make_trainer(metric_for_best_model=name, predict_with_generate=True, max_steps=2, **EVALUATION)
    trainer.compute_metrics = GenerationMetrics(tokenizer)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == entry[f"eval_{name.removeprefix('eval_')}"]


def test_all_numeric_metrics_have_names(tokenizer):
    metrics = GenerationMetrics(tokenizer)
    assert {"chrf++", "bleu", "rougeL_f", "exact_match"} <= set(metrics.metric_names)
    assert not any(name.endswith("_signature") for name in metrics.metric_names)


def test_a_metric_that_only_an_evaluation_can_miss_is_one_sentence(make_trainer):
    trainer = make_trainer(metric_for_best_model="f1", max_steps=2, **EVALUATION)
    trainer.compute_metrics = lambda prediction: {"accuracy": 1.0}
    with pytest.raises(
        TrainingError, match="^The evaluation has no metric f1. Set metric_for_best_model to one of loss, "
    ):
        trainer.train()


@pytest.mark.usefixtures("forbid_steps")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_kwargs": {"a": 1}}, "unexpected keyword argument 'a'"),
        ({"optim_args": "nonsense"}, "not enough values to unpack"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "galore"),
        ({"use_liger_kernel": True}, "liger"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_library_refuses_is_one_sentence(make_trainer, options, message):
    with pytest.raises(TrainingError, match="^The training cannot start: ") as error:
        make_trainer(**options).train()
    assert message in str(error.value).lower() and "\n" not in str(error.value)


def test_float16_needs_a_gpu(make_trainer):
    with pytest.raises(TrainingError, match=r"^--fp16 needs a GPU\. Pass --bf16 instead"):
        make_trainer(fp16=True)


def test_an_error_of_a_step_keeps_its_class(make_trainer):
    trainer = make_trainer()
    trainer.data_collator = lambda rows: {"input_ids": torch.tensor([[10**6]]), "labels": torch.tensor([[5]])}
    with pytest.raises(IndexError):
        trainer.train()


@pytest.mark.parametrize("steps", [{"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 1}])
def test_data_without_a_whole_batch_is_not_trained_in_zero_steps(make_trainer, tmp_path, steps):
    make_trainer.rows = make_trainer.rows[:3]
    with pytest.raises(TrainingError, match="^The training data has fewer rows than a batch, and --data"):
        make_trainer(dataloader_drop_last=True, **steps).train()
    assert list(tmp_path.iterdir()) == []


class TestOwnLoop:
    """A trainer in the code of a user, with the arguments and collators of Transformers."""

    def make(self, make_trainer, tokenizer, collator_tokenizer=None, processing_class=None, **options):
        args = Seq2SeqTrainingArguments(str(make_trainer.folder), max_steps=2, use_cpu=True, report_to=[], **options)
        return XLMSWCMTrainer(
            new_model(tokenizer),
            args,
            data_collator=DataCollatorForSeq2Seq(collator_tokenizer or tokenizer),
            train_dataset=make_trainer.rows,
            eval_dataset=make_trainer.rows,
            processing_class=processing_class,
        )

    def test_it_trains_without_scheduled_sampling(self, make_trainer, tokenizer):
        trainer = self.make(make_trainer, tokenizer)
        assert trainer.train().global_step == 2
        assert "scheduled_sampling" not in trainer.describe()

    def test_labels_that_are_padded_on_the_left_are_refused(self, make_trainer, tokenizer):
        left = copy.deepcopy(tokenizer)
        left.padding_side = "left"
        with pytest.raises(TrainingError, match=r'pads labels on the left.* of its tokenizer to "right"'):
            self.make(make_trainer, tokenizer, left)

    def test_generation_needs_the_tokenizer(self, make_trainer, tokenizer):
        with pytest.raises(TrainingError, match=r"^predict_with_generate needs the tokenizer .* processing_class\.$"):
            self.make(make_trainer, tokenizer, predict_with_generate=True)
        trainer = self.make(
            make_trainer, tokenizer, None, tokenizer, predict_with_generate=True, generation_max_length=4
        )
        generated = trainer.predict(make_trainer.rows).predictions
        assert generated[:, 1].tolist() == [row["labels"][0] for row in make_trainer.rows]


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("decoder", [{}, {"decoder_blocks": 4 * ["prefix"]}])
def test_tied_decoders_in_several_processes_refuse_reentrant_checkpointing(
    make_trainer, tokenizer, monkeypatch, decoder
):
    tied, copied = (new_model(tokenizer, weight_sharing=sharing, **decoder) for sharing in ("tied", "init"))
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    alone = make_trainer(tied, **reentrant)
    monkeypatch.setattr(type(alone.args), "world_size", 2)
    make_trainer(tied, gradient_checkpointing=True)
    make_trainer(copied, **reentrant)
    with pytest.raises(TrainingError, match="Set use_reentrant to false"):
        make_trainer(tied, **reentrant)
