"""The trainer: NaN, checkpoints, scheduled sampling, tags at generation, LoRA, frozen encoders, what it leaves."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import logits_of, tiny_model, wants_peft
from encoders import xlm_roberta_tokenizer
from huggingface_hub import ModelCard
from peft import LoraConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, TrainerCallback
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.hub import card_template as card
from modeling_xlm_swcm.training import results
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments
from modeling_xlm_swcm.training.checkpoints import UNFINISHED, TrainingError, find_checkpoint, logger
from modeling_xlm_swcm.training.denoising import DataCollatorForDenoising
from modeling_xlm_swcm.training.results import plot_history, write_results
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer, prepare_model


@pytest.fixture(scope="module")
def tokenizer() -> XLMSWCMTokenizer:
    encoder = xlm_roberta_tokenizer()
    return XLMSWCMTokenizer(
        tokenizer_object=encoder.backend_tokenizer, languages=["en", "ug"], **encoder.special_tokens_map
    )


@pytest.fixture(scope="module")
def rows(tokenizer) -> list[dict]:
    """Translation pairs of unequal length, into two languages."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(16):
        source, target = (
            torch.randint(8, 140, (length,), generator=generator).tolist() for length in (5, 2 + number % 6)
        )
        tag = tokenizer.get_lang_id(tokenizer.languages[number % 2])
        rows.append({"input_ids": [0, tag, *source, 2], "labels": [tag, *target, 2]})
    return rows


@pytest.fixture
def make_trainer(tokenizer, rows, tmp_path):
    def make(model=None, trainer_class=XLMSWCMTrainer, callbacks=None, **options) -> XLMSWCMTrainer:
        settings = dict(
            per_device_train_batch_size=4, max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
        )
        return trainer_class(
            model or new_model(tokenizer),
            TrainingArguments(str(tmp_path), **settings | {"learning_rate": 1e-3, "save_strategy": "steps"} | options),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=DataCollatorForDenoising(tokenizer),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def new_model(tokenizer, **options) -> XLMSWCMForConditionalGeneration:
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tiny_model(vocab_size=len(tokenizer), **dropout | options)


def states(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class AtStep(TrainerCallback):
    """Does something to the model at the beginning of a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)


class TestNotFinite:
    def poison(self, model):
        model.lm_head.bias.data[0] = torch.nan

    def poison_gradients(self, model):
        model.lm_head.bias.register_hook(lambda gradient: gradient * torch.inf)

    @pytest.mark.parametrize(
        ("action", "message"), [("poison", "The loss is nan"), ("poison_gradients", "The norm of the gradients is")]
    )
    @pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
    def test_it_stops_and_the_last_good_checkpoint_stays(self, make_trainer, tmp_path, action, message, max_grad_norm):
        trainer = make_trainer(
            callbacks=[AtStep(4, getattr(self, action))], max_grad_norm=max_grad_norm, max_steps=8, save_steps=2
        )
        with pytest.raises(TrainingError, match=f"{message}.* at step 4; the last good checkpoint is .*checkpoint-2"):
            trainer.train()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
        saved = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
        assert all(parameter.isfinite().all() for parameter in saved.parameters())

    def test_before_the_first_checkpoint(self, make_trainer):
        with pytest.raises(TrainingError, match="at step 1; there is no checkpoint yet"):
            make_trainer(callbacks=[AtStep(1, self.poison)]).train()


class TestCheckpoints:
    @pytest.mark.parametrize("written", ["_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"])
    def test_half_of_one_is_never_picked_up(self, make_trainer, tmp_path, monkeypatch, written):
        """Whatever file was the last to be written when the process died."""
        trainer = make_trainer(max_steps=6)
        save = getattr(XLMSWCMTrainer, written)

        def die(self, folder):
            if "checkpoint-4" in folder:
                raise KeyboardInterrupt
            save(self, folder)

        with monkeypatch.context() as patch:
            patch.setattr(XLMSWCMTrainer, written, die)
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        assert (tmp_path / UNFINISHED / "checkpoint-4" / "model.safetensors").is_file()
        trainer.args.resume_from_checkpoint = "last"
        checkpoint = find_checkpoint(trainer.args)
        assert checkpoint == str(tmp_path / "checkpoint-2")

        resumed = make_trainer(max_steps=6)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert not (tmp_path / UNFINISHED).exists()
        whole = make_trainer(max_steps=6, save_strategy="no")
        whole.train()
        assert_equal(states(resumed.model), states(whole.model))

    def test_the_best_one_is_kept_and_loaded(self, make_trainer, tmp_path):
        ruin = AtStep(3, lambda model: model.lm_head.bias.data.mul_(50))
        trainer = make_trainer(
            callbacks=[ruin], eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True,
            save_total_limit=2, max_steps=5,
        )  # fmt: skip
        trainer.train()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-5"]
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
        state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
        best = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
        assert_equal(states(trainer.model), states(best))

    def test_the_best_one_is_found_where_the_folder_has_moved(self, make_trainer, tmp_path):
        options = dict(eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True)
        ruin = [AtStep(3, lambda model: model.lm_head.bias.data.mul_(50))]
        make_trainer(callbacks=ruin, max_steps=3, save_total_limit=2, **options).train()
        state = tmp_path / "checkpoint-3" / "trainer_state.json"
        state.write_text(state.read_text().replace(str(tmp_path), "/somewhere/else"))
        trainer = make_trainer(max_steps=5, save_total_limit=2, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-5"]
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")

    def test_one_without_its_optimizer_is_refused(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=2, save_only_model=True)
        trainer.train()
        trainer.args.resume_from_checkpoint = "last"
        with pytest.raises(TrainingError, match=f"--model_name_or_path {tmp_path}/checkpoint-2"):
            find_checkpoint(trainer.args)

    def test_an_epoch_of_batches_of_like_length_goes_on_with_the_rows_that_are_left(self, make_trainer, tmp_path):
        options = dict(train_sampling_strategy="group_by_length", max_steps=8, save_steps=6)
        whole, resumed = make_trainer(**options), make_trainer(**options)
        whole.train()
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert_equal(states(resumed.model), states(whole.model))

    def test_one_of_another_model_is_refused(self, make_trainer, tokenizer, tmp_path):
        make_trainer(max_steps=2).train()
        other = make_trainer(new_model(tokenizer, normal_layer_interval=None))
        with pytest.raises(TrainingError, match=r"not of this model: model\.decoder\.layers"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        other = make_trainer(new_model(tokenizer, intermediate_size=24))
        with pytest.raises(TrainingError, match=r"checkpoint-2 does not fit this model, .*size mismatch for .*fc2"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_resumed_run_ends_with_the_same_weights(self, make_trainer, tokenizer, tmp_path, precision):
        options = dict(bf16=precision == "bfloat16", gradient_accumulation_steps=2, max_steps=4)
        whole, resumed = (make_trainer(tiny_model(vocab_size=len(tokenizer)), **options) for _ in range(2))
        whole.train()
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_equal(states(resumed.model), states(whole.model))

    def test_a_run_that_has_ended_trains_no_further(self, make_trainer, tmp_path):
        options = dict(lr_scheduler_type="constant", save_total_limit=1)
        whole = make_trainer(**options)
        whole.train()
        again = make_trainer(**options)
        assert again.train(resume_from_checkpoint=True).global_step == 4
        assert_equal(states(again.model), states(whole.model))
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
        assert "seconds" in whole.describe() and "seconds" not in again.describe()

    def test_there_must_be_one_to_go_on_from(self, make_trainer, tmp_path):
        with pytest.raises(TrainingError, match=f"{tmp_path} has no checkpoint to go on from"):
            make_trainer().train(resume_from_checkpoint=True)

    def test_a_run_says_with_what_other_settings_it_goes_on(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=2)
        trainer.settings = {"data": "first.yaml", "max_length": 8}
        trainer.train()
        for settings, said in [
            ({"data": "first.yaml", "max_length": 8}, ""),
            ({"data": "second.yaml", "max_length": 8}, "--data second.yaml; its checkpoint had first.yaml."),
        ]:
            resumed = make_trainer(max_steps=2)
            resumed.settings = settings
            with (
                CaptureLogger(logging.get_logger("transformers.trainer_utils")) as upstream,
                CaptureLogger(logger) as ours,
            ):
                resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
            assert ours.out.strip().removeprefix("The run goes on with ") == said
            assert upstream.out == ""  # of the logging steps that a short training sets itself
        again = make_trainer(max_steps=2, adam_epsilon=1e-3, train_sampling_strategy="sequential")
        again.settings = trainer.settings
        with CaptureLogger(logger) as ours:
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert "--adam_epsilon 0.001; its" in ours.out and "--train_sampling_strategy sequential; its" in ours.out

    def test_what_is_asked_of_the_optimizer_is_done_after_a_resume(self, make_trainer, tmp_path):
        options = dict(lr_scheduler_type="constant", logging_steps=1, weight_decay=0.1)
        make_trainer(max_steps=2, **options).train()
        faster = make_trainer(max_steps=4, learning_rate=1e-2, **options | {"weight_decay": 0.2})
        with CaptureLogger(logger) as ours:
            faster.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert "--learning_rate 0.01; its checkpoint had 0.001." in ours.out
        rates = [entry["learning_rate"] for entry in faster.state.log_history if "learning_rate" in entry]
        assert rates == pytest.approx([1e-3, 1e-3, 1e-2, 1e-2])
        assert [group["weight_decay"] for group in faster.optimizer.param_groups] == [0.2, 0.0]

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
    @pytest.mark.parametrize("size", [0, 100])
    def test_a_damaged_one_is_named(self, make_trainer, tmp_path, name, size):
        make_trainer(max_steps=2).train()
        path = tmp_path / "checkpoint-2" / name
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(TrainingError, match=r"checkpoint-2 does not fit .*, or is damaged: .*[^.]\. Go on"):
            make_trainer(max_steps=4).train(resume_from_checkpoint=True)

    def test_a_damaged_state_is_named(self, make_trainer, tmp_path):
        args = make_trainer(resume_from_checkpoint="last").args
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"epoch": ')
        with pytest.raises(TrainingError, match=r"trainer_state\.json is damaged: remove the checkpoint"):
            find_checkpoint(args)

    def test_checkpoints_are_not_gone_on_from_unasked(self, make_trainer, tmp_path):
        args = make_trainer().args
        assert find_checkpoint(args) is None
        args.resume_from_checkpoint = "last"
        assert find_checkpoint(args) is None
        (tmp_path / "checkpoint-7").mkdir()
        with pytest.raises(TrainingError, match="checkpoint-7 is no checkpoint"):
            find_checkpoint(args)
        for name in ("trainer_state.json", "scheduler.pt"):
            (tmp_path / "checkpoint-7" / name).write_text("{}")
        assert find_checkpoint(args) == str(tmp_path / "checkpoint-7")
        elsewhere = tmp_path / "elsewhere"
        args.resume_from_checkpoint = str(elsewhere)
        with pytest.raises(TrainingError, match="elsewhere is no checkpoint"):
            find_checkpoint(args)
        (tmp_path / "checkpoint-7").rename(elsewhere)
        assert find_checkpoint(args) == str(elsewhere)
        args.resume_from_checkpoint = None
        elsewhere.rename(tmp_path / "checkpoint-7")
        with pytest.raises(TrainingError, match="--resume_from_checkpoint last to go on from checkpoint-7"):
            find_checkpoint(args)
        (tmp_path / "file").write_text("")
        args.output_dir = str(tmp_path / "file")
        with pytest.raises(TrainingError, match="file is a file; give a folder"):
            find_checkpoint(args)
        args.output_dir = str(tmp_path / "file" / "output")
        with pytest.raises(TrainingError, match="file/output cannot be made or written to; give another"):
            find_checkpoint(args)


class TestLoss:
    def test_without_options_it_is_the_upstream_trainer(self, make_trainer):
        ours, upstream = make_trainer(), make_trainer(trainer_class=Seq2SeqTrainer)
        ours.train()
        upstream.train()
        assert_equal(states(ours.model), states(upstream.model))

    def test_accumulation_of_unequal_targets_is_one_large_batch(self, make_trainer):
        options = dict(optim="sgd", lr_scheduler_type="constant", learning_rate=0.1, max_steps=2, max_grad_norm=0.0)
        whole = make_trainer(per_device_train_batch_size=16, **options)
        parts = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=8, **options)
        before = states(whole.model)
        whole.train()
        parts.train()
        after, other = states(whole.model), states(parts.model)
        for name in after:
            torch.testing.assert_close(other[name], after[name], atol=2e-6, rtol=1e-5)
        assert max((after[name] - before[name]).abs().max() for name in after) > 1e-2

    def test_label_smoothing(self, make_trainer, tokenizer, rows):
        trainer = make_trainer(label_smoothing_factor=0.2)
        batch = trainer.data_collator(rows[:4])
        log_probabilities = new_model(tokenizer)(**batch).logits.log_softmax(-1)
        wanted = batch["labels"] != -100
        taken = log_probabilities[wanted].gather(1, batch["labels"][wanted][:, None]).mean()
        expected = -0.8 * taken - 0.2 * log_probabilities[wanted].mean()
        torch.testing.assert_close(trainer.compute_loss(trainer.model.eval(), batch), expected)
        loss, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
        torch.testing.assert_close(loss, expected)
        assert outputs.logits is None

    def test_a_training_with_smoothing_is_that_of_the_upstream_trainer(self, make_trainer, tokenizer):
        options = dict(optim="sgd", learning_rate=0.1, label_smoothing_factor=0.2, gradient_accumulation_steps=2)
        ours, upstream = make_trainer(**options), make_trainer(trainer_class=Seq2SeqTrainer, **options)
        for trainer in (ours, upstream):
            # the upstream trainer takes the decoder's inputs from the collator, where it smooths
            trainer.data_collator = DataCollatorForSeq2Seq(tokenizer, trainer.model)
            trainer.train()
        for name, state in states(upstream.model).items():
            torch.testing.assert_close(ours.model.get_parameter(name), state, atol=1e-5, rtol=1e-5)
        assert ours.evaluate()["eval_loss"] == pytest.approx(upstream.evaluate()["eval_loss"], abs=1e-5)

    def test_rows_that_fill_up_a_processes_last_batch_are_left_out_in_training_alone(
        self, make_trainer, rows, monkeypatch
    ):
        trainer = make_trainer()
        batch = trainer.data_collator(rows[:2])
        labels = batch["labels"].clone()
        # of 15 rows in batches of two the last is alone, and two processes have it, the second with a filler
        trainer.train_dataset = rows[:15]
        monkeypatch.setattr(trainer.accelerator, "gradient_state", SimpleNamespace(end_of_dataloader=True))
        for name, value in {"world_size": 2, "process_index": 1, "train_batch_size": 2}.items():
            monkeypatch.setattr(type(trainer.args), name, value)
        trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=True)
        assert torch.equal(batch["labels"], labels)
        (given,), count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        assert torch.equal(given["labels"][:1], labels[:1]) and (given["labels"][1] == -100).all()
        assert count == (labels[0] != -100).sum()


class TestScheduledSampling:
    @pytest.fixture
    def batch(self, make_trainer, rows):
        return make_trainer().data_collator(rows[:6])

    def inputs(self, trainer, batch) -> dict:
        clean = trainer.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        return batch | {"decoder_input_ids": clean}

    def test_all_inputs_are_predictions_but_start_tag_and_padding(self, make_trainer, batch):
        trainer = make_trainer()
        inputs = self.inputs(trainer, batch)
        clean = inputs["decoder_input_ids"]
        sampled = trainer._sample_inputs(trainer.model.eval(), inputs, 1.0)
        predictions = logits_of(trainer.model, **inputs).argmax(-1)
        for row in range(6):
            length = int((clean[row] != 1).sum())
            assert sampled[row, :2].tolist() == clean[row, :2].tolist()
            assert sampled[row, 2:length].tolist() == predictions[row, 1 : length - 1].tolist()
            assert sampled[row, length:].tolist() == clean[row, length:].tolist()
        assert not torch.equal(sampled, clean)

    def test_the_share_is_what_is_asked(self, make_trainer, rows):
        trainer = make_trainer()
        batch = trainer.data_collator([{"input_ids": [0, 5, 2], "labels": [5, *range(8, 68), 2]}] * 32)
        inputs = self.inputs(trainer, batch)
        trainer.model.forward = lambda **_: type(
            "Output", (), {"logits": torch.eye(len(rows) * 10)[torch.full((32, 62), 7)]}
        )
        changed = trainer._sample_inputs(trainer.model, inputs, 0.3) == 7
        assert changed.float().sum() / (32 * 60) == pytest.approx(0.3, abs=0.04)

    def test_it_grows_over_the_training(self, make_trainer, monkeypatch):
        shares = []
        original = XLMSWCMTrainer._sample_inputs
        monkeypatch.setattr(
            XLMSWCMTrainer,
            "_sample_inputs",
            lambda self, m, i, share: shares.append(share) or original(self, m, i, share),
        )
        trainer = make_trainer(scheduled_sampling=0.8)
        trainer.train()
        assert shares == pytest.approx([0.2, 0.4, 0.6])
        shares.clear()
        trainer.evaluate()
        make_trainer().train()
        assert shares == []

    def test_it_changes_what_is_learnt(self, make_trainer):
        sampled, plain = make_trainer(scheduled_sampling=1.0), make_trainer()
        sampled.train()
        plain.train()
        assert not torch.equal(sampled.model.lm_head.bias, plain.model.lm_head.bias)

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_impossible_shares_are_refused(self, share, tmp_path):
        with pytest.raises(ValueError, match="scheduled_sampling must be between 0 and 1"):
            TrainingArguments(str(tmp_path), scheduled_sampling=share)


class TestGeneration:
    def test_each_text_begins_with_the_tag_of_its_labels(self, make_trainer, rows, tokenizer):
        trainer = make_trainer(predict_with_generate=True, generation_max_length=9, per_device_eval_batch_size=4)
        settings = trainer.model.generation_config.to_dict()
        predicted = trainer.predict(rows)
        assert trainer.model.generation_config.to_dict() == settings
        assert predicted.predictions[:, :2].tolist() == [[0, row["labels"][0]] for row in rows]
        assert (predicted.predictions[:, 9:] == tokenizer.pad_token_id).all()
        assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"])

    def test_other_arguments_reach_generate(self, make_trainer, rows):
        trainer = make_trainer(predict_with_generate=True)
        predicted = trainer.predict(rows, max_length=5, num_beams=2)
        assert predicted.predictions.shape[1] <= 20 and (predicted.predictions[:, 5:] == 1).all()


class TestLora:
    def test_every_projection_of_the_decoder_is_adapted_and_nothing_else(self, tokenizer):
        model = prepare_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        # four custom layers: twice four projections of attention, twice two of feed-forward; one normal: 8 and 2
        assert len(adapted) == 4 * 12 + 10
        assert all(".decoder.layers." in name for name in adapted)

    def test_it_is_merged_on_export(self, make_trainer, tokenizer, tmp_path, rows):
        model = prepare_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        trainer = make_trainer(model, learning_rate=0.05, max_steps=6, save_strategy="no")
        trainer.train()
        batch = trainer.data_collator(rows)
        expected = logits_of(trainer.model.eval(), **batch)
        assert (expected - logits_of(new_model(tokenizer), **batch)).abs().max() > 1e-2
        results.save_merged(trainer)
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(logits_of(loaded.eval(), **batch), expected, atol=1e-4, rtol=1e-4)
        assert not list(tmp_path.glob("adapter*"))

    def test_it_learns(self, make_trainer, tokenizer):
        model = prepare_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=8))
        trainer = make_trainer(model, learning_rate=0.02, max_steps=30, save_strategy="no")
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < 0.9 * before

    def test_it_goes_on_from_a_checkpoint(self, make_trainer, tokenizer, tmp_path):
        whole, resumed = (
            make_trainer(prepare_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4)))
            for _ in range(2)
        )
        whole.train()
        expected = states(whole.model)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_equal(states(resumed.model), expected)

    def test_a_frozen_encoder_stays_and_the_decoder_learns(self, make_trainer, tokenizer):
        model = prepare_model(new_model(tokenizer), ModelArguments("", freeze_encoder=True))
        before = states(model)
        make_trainer(model, save_strategy="no").train()
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == (not name.startswith("model.encoder.")), name

    def test_adapters_are_not_spread_over_gpus(self, tokenizer, monkeypatch):
        monkeypatch.setattr("modeling_xlm_swcm.training.trainer.is_fsdp_enabled", lambda: True)
        with pytest.raises(TrainingError, match="--lora cannot merge what FSDP spreads"):
            prepare_model(new_model(tokenizer), ModelArguments("", lora=True))

    @pytest.mark.parametrize("option", ["--lora", "--freeze_encoder", "FSDP"])
    def test_layers_that_are_the_encoders_are_refused(self, tokenizer, monkeypatch, option):
        monkeypatch.setattr("modeling_xlm_swcm.training.trainer.is_fsdp_enabled", lambda: option == "FSDP")
        args = ModelArguments("", **({} if option == "FSDP" else {option.strip("-"): True}))
        with pytest.raises(TrainingError, match=f"{option} needs a decoder with weights of its own"):
            prepare_model(new_model(tokenizer, weight_sharing="tied"), args)
        prepare_model(new_model(tokenizer), args)


class TestResults:
    @pytest.fixture
    def start(self, tokenizer, tmp_path_factory) -> Path:
        """The folder of a converted model."""
        folder = tmp_path_factory.mktemp("converted")
        report = {"source": "somebody/encoder", "options": {}, "counts": {"copied": 1, "new": 2, "dropped": 3}}
        model = new_model(tokenizer)
        model.conversion_report = report | {"license": "mit"}
        model.save_pretrained(folder)
        return folder

    def write(self, make_trainer, start, **options):
        model = XLMSWCMForConditionalGeneration.from_pretrained(start)
        trainer = make_trainer(model, logging_steps=1, eval_strategy="steps", eval_steps=2, **options)
        trainer.train()
        data = {"training data": "text.txt", "bleu_signature": "nrefs:1|case:mixed"}
        results.save_merged(trainer)
        write_results(trainer, ModelArguments(str(start)), "translation", "news", {"chrf": {"ug": 12.5}}, data)

    def test_everything_is_left_behind(self, make_trainer, start, tmp_path):
        self.write(make_trainer, start, label_smoothing_factor=0.1, gradient_accumulation_steps=2)
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert (metrics["task"], metrics["dataset"], metrics["results"]) == (
            "translation",
            "news",
            {"chrf": {"ug": 12.5}},
        )
        training = metrics["training"]
        assert training["start"] == start.name
        assert training["steps"] == 4 and training["batch_size"] == 8 and training["label_smoothing"] == 0.1
        assert "lora_rank" not in training and training["precision"] == "float32" and "seconds" in training

        card = (tmp_path / "README.md").read_text()
        assert "| training data | text.txt |" in card and "| optimizer | adamw_torch" in card
        assert "| bleu_signature | nrefs:1\\|case:mixed |" in card
        assert "| learning_rate | 0.001 |" in card and "12.5" in card and str(start.parent) not in card
        assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
        for name in ("model.safetensors", "tokenizer.json", "conversion_report.json"):
            assert (tmp_path / name).is_file()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_an_unknown_licence_is_said_and_stops_nothing(self, make_trainer, tmp_path, start, caplog):
        report = json.loads((start / "conversion_report.json").read_text()) | {"license": None}
        (start / "conversion_report.json").write_text(json.dumps(report))
        card.logger.addHandler(caplog.handler)
        self.write(make_trainer, start)
        card.logger.removeHandler(caplog.handler)
        assert "The licence of somebody/encoder is not known, and the model card says so" in caplog.text
        assert ModelCard.load(tmp_path / "README.md").data.license is None

    def test_tensorboard_gets_the_losses(self, make_trainer, tmp_path):
        trainer = make_trainer(report_to=["tensorboard"], max_steps=2, logging_steps=1, save_strategy="no")
        trainer.train()
        (folder,) = (tmp_path / "runs").iterdir()
        losses = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert [event.value for event in losses] == pytest.approx(logged) and len(losses) == 2

    @pytest.mark.parametrize(("max_steps", "logging_steps", "steps"), [(3, 500, [1, 2, 3]), (4, 2, [2, 4])])
    def test_a_training_that_is_shorter_than_its_logging_steps_has_losses_to_plot(
        self, make_trainer, max_steps, logging_steps, steps
    ):
        trainer = make_trainer(max_steps=max_steps, logging_steps=logging_steps, save_strategy="no")
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == steps

    def test_the_plot_has_losses_and_metrics(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(
            results.plt.Axes, "plot", lambda self, x, y, *a, label=None, **k: drawn.append((label, x, y)) or []
        )
        history = [
            {"step": 1, "loss": 3.0, "epoch": 1},
            {"step": 2, "loss": 2.0},
            {"step": 2, "eval_loss": 2.5, "eval_chrf": 9.0, "eval_runtime": 1.0, "eval_samples_per_second": 3.0},
            {"step": 2, "train_runtime": 3.0, "train_loss": 2.5},
        ]
        plot_history(history, tmp_path / "plot.png")
        assert drawn == [
            ("training", (1, 2), (3.0, 2.0)), ("held out", (2,), (2.5,)), ("chrf", (2,), (9.0,))
        ]  # fmt: skip


class TestCard:
    REPORT = {"source": "encoder", "options": {}, "counts": {"copied": 1, "new": 2, "dropped": 3}}

    @pytest.fixture
    def trainer(self, make_trainer, tokenizer) -> XLMSWCMTrainer:
        model = new_model(tokenizer)
        model.conversion_report = dict(self.REPORT)
        trainer = make_trainer(model)
        trainer.save_model()
        return trainer

    def test_it_has_what_the_caller_knows_and_the_settings(self, trainer, tmp_path):
        trainer.create_model_card(license="mit", tasks="summarization", dataset="somebody/news")
        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.license, card.data.pipeline_tag) == ("mit", "summarization")
        assert card.data.datasets == ["somebody/news"] and "was trained for summarization" in card.text
        assert "| learning_rate | 0.001 |" in card.text

    def test_without_a_task_none_is_claimed(self, trainer, tmp_path):
        trainer.create_model_card()
        text = ModelCard.load(tmp_path / "README.md").text
        assert "No task is recorded" in text and "trained for" not in text

    def test_metrics_of_the_run_come_first(self, trainer, tmp_path):
        (tmp_path / "metrics.json").write_text('{"task": "question-answering", "results": {"f1": 12.5}}')
        trainer.create_model_card(tasks="summarization")
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.pipeline_tag == "question-answering" and "| f1 | all | 12.5 |" in card.text

    def test_a_task_that_no_card_knows_is_refused(self, trainer, tmp_path):
        with pytest.raises(TrainingError, match='tasks is "fill-mask", not one of translation'):
            trainer.create_model_card(tasks="fill-mask")
        assert not (tmp_path / "README.md").exists()

    def check_upstreams_card(self, trainer, folder):
        trainer.create_model_card(model_name="mine", tasks="translation")
        assert "according to the information the Trainer had access to" in (folder / "README.md").read_text()

    def test_adapters_and_models_without_a_report_have_upstreams(self, make_trainer, tokenizer, tmp_path):
        adapted = new_model(tokenizer)
        adapted.conversion_report = dict(self.REPORT)
        for model in (prepare_model(adapted, ModelArguments("", lora=True)), new_model(tokenizer)):
            self.check_upstreams_card(make_trainer(model), tmp_path)

    @wants_peft
    def test_a_model_with_adapters_of_transformers_own_has_upstreams(self, make_trainer, tokenizer, tmp_path):
        model = new_model(tokenizer)
        model.conversion_report = dict(self.REPORT)
        model.add_adapter(LoraConfig(target_modules=["q_proj"]))
        self.check_upstreams_card(make_trainer(model), tmp_path)
