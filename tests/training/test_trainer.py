"""The trainer: losses that are not finite, checkpoints, scheduled sampling and generation."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from support.models import logits_of, tiny_model
from support.trainers import new_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, TrainerCallback
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.training.arguments import TrainingArguments
from modeling_xlm_swcm.training.checkpoints import UNFINISHED, TrainingError, logger
from modeling_xlm_swcm.training.resuming import find_checkpoint
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


@pytest.fixture
def rows(make_trainer) -> list[dict]:
    return make_trainer.rows


def states(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class AtStep(TrainerCallback):
    """Call `action` with the model before a step."""

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
        with pytest.raises(TrainingError, match=f"{message}.* at step 4. The last good checkpoint is .*checkpoint-2"):
            trainer.train()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
        saved = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
        assert all(parameter.isfinite().all() for parameter in saved.parameters())

    def test_before_the_first_checkpoint(self, make_trainer):
        with pytest.raises(TrainingError, match="at step 1. There is no checkpoint yet."):
            make_trainer(callbacks=[AtStep(1, self.poison)]).train()


class TestCheckpoints:
    @pytest.mark.parametrize("written", ["_save_optimizer_and_scheduler", "_save_rng_state"])
    def test_half_of_one_is_never_picked_up(self, make_trainer, tmp_path, monkeypatch, written):
        """A process can be killed while it writes the first or the last file after the model."""
        trainer = make_trainer(max_steps=6)
        save = getattr(XLMSWCMTrainer, written)

        def die(self, folder):
            if "checkpoint-4" in folder:
                raise KeyboardInterrupt
            save(self, folder)

        with monkeypatch.context() as patch:
            patch.setattr(XLMSWCMTrainer, written, die)
            # A process that is killed does not clean up.
            patch.setattr("modeling_xlm_swcm.training.checkpoints.shutil.rmtree", lambda *args, **options: None)
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

    def test_the_processes_of_a_step_get_batches_of_like_length(self, make_trainer, monkeypatch):
        trainer = make_trainer(train_sampling_strategy="group_by_length", per_device_train_batch_size=2)
        assert trainer._get_train_sampler().batch_size == 2
        monkeypatch.setattr(type(trainer.args), "world_size", 3)
        assert trainer._get_train_sampler().batch_size == 6

    def test_one_of_another_model_is_refused(self, make_trainer, tokenizer, tmp_path):
        make_trainer(max_steps=2).train()
        other = make_trainer(new_model(tokenizer, normal_layer_interval=None))
        with pytest.raises(
            TrainingError, match=r"belongs to another model: only one of the two models has model\.decoder\.layers"
        ):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        other = make_trainer(new_model(tokenizer, intermediate_size=24))
        with pytest.raises(
            TrainingError, match=r"checkpoint-2 does not fit this model or is damaged: .*size mismatch for .*fc2"
        ):
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
        with pytest.raises(TrainingError, match=f"{tmp_path} has no checkpoint to resume from"):
            make_trainer().train(resume_from_checkpoint=True)

    def test_a_run_says_with_what_other_settings_it_goes_on(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=2)
        trainer.settings = {"data": "first.yaml", "max_length": 8}
        trainer.train()
        for settings, said in [
            ({"data": "first.yaml", "max_length": 8}, ""),
            ({"data": "second.yaml", "max_length": 8}, "--data second.yaml. The checkpoint used first.yaml."),
        ]:
            resumed = make_trainer(max_steps=2)
            resumed.settings = settings
            with (
                CaptureLogger(logging.get_logger("transformers.trainer_utils")) as upstream,
                CaptureLogger(logger) as ours,
            ):
                resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
            *changed, ended = ours.out.splitlines()
            assert "".join(changed).removeprefix("Resuming with ") == said
            assert ended.startswith("The run has ended: the checkpoint has 2 of 2 steps. To train further, pass a ")
            # Transformers does not warn of the logging steps that a short run sets itself.
            assert upstream.out == ""
        again = make_trainer(max_steps=2, adam_epsilon=1e-3, train_sampling_strategy="sequential")
        again.settings = trainer.settings
        with CaptureLogger(logger) as ours:
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert "--adam_epsilon 0.001. The" in ours.out and "--train_sampling_strategy sequential. The" in ours.out

    @pytest.mark.parametrize(
        ("name", "before", "now"),
        [("optim", "adamw_torch", "sgd"), ("lr_scheduler_type", "linear", "reduce_lr_on_plateau")],
    )
    def test_the_state_of_another_optimizer_or_scheduler_is_refused(self, make_trainer, tmp_path, name, before, now):
        make_trainer(max_steps=2, **{name: before}).train()
        again = make_trainer(max_steps=3, eval_strategy="steps", eval_steps=1, **{name: now})
        message = (
            f"--{name} {now} cannot use the state in {tmp_path}/checkpoint-2, which is of {before}. Pass --{name}"
        )
        with pytest.raises(TrainingError, match=f"^{re.escape(message)}"):
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    def test_what_is_asked_of_the_optimizer_is_done_after_a_resume(self, make_trainer, tmp_path):
        options = dict(lr_scheduler_type="constant", logging_steps=1, weight_decay=0.1)
        make_trainer(max_steps=2, **options).train()
        faster = make_trainer(max_steps=4, learning_rate=1e-2, **options | {"weight_decay": 0.2})
        with CaptureLogger(logger) as ours:
            faster.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert "--learning_rate 0.01. The checkpoint used 0.001." in ours.out
        rates = [entry["learning_rate"] for entry in faster.state.log_history if "learning_rate" in entry]
        assert rates == pytest.approx([1e-3, 1e-3, 1e-2, 1e-2])
        assert [group["weight_decay"] for group in faster.optimizer.param_groups] == [0.2, 0.0]

    def test_a_longer_run_continues_with_its_own_schedule(self, make_trainer, tmp_path):
        make_trainer(max_steps=2).train()
        longer, whole = (make_trainer(max_steps=4, logging_steps=1, save_strategy="no") for _ in range(2))
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        whole.train()
        rates = [
            [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
            for trainer in (longer, whole)
        ]
        assert rates[0][-2:] == rates[1][2:] and rates[0][-1] > 0

    def test_a_reduced_rate_follows_a_new_learning_rate(self, make_trainer, tmp_path):
        options = dict(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=1, logging_steps=1)
        options |= dict(lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0})
        make_trainer(max_steps=2, **options).train()
        faster = make_trainer(max_steps=3, learning_rate=1e-2, **options)
        faster.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        rates = [entry["learning_rate"] for entry in faster.state.log_history if "learning_rate" in entry]
        # Each evaluation halves the rate.
        assert rates == pytest.approx([1e-3, 5e-4, 2.5e-3])

    def test_a_damaged_one_is_named(self, make_trainer, tmp_path):
        make_trainer(max_steps=2).train()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            path = tmp_path / "checkpoint-2" / name
            whole = path.read_bytes()
            for size in (0, 100):
                path.write_bytes(whole[:size])
                with pytest.raises(
                    TrainingError, match=r"checkpoint-2 does not fit this model or is damaged: .*[^.]\. Use the model"
                ):
                    make_trainer(max_steps=4).train(resume_from_checkpoint=True)
            path.write_bytes(whole)

    def test_a_damaged_state_is_named(self, make_trainer, tmp_path):
        args = make_trainer(resume_from_checkpoint="last").args
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2" / "trainer_state.json").write_text('{"epoch": ')
        with pytest.raises(TrainingError, match=r"trainer_state\.json is damaged\. Delete this checkpoint"):
            find_checkpoint(args)

    def test_checkpoints_are_not_gone_on_from_unasked(self, make_trainer, tmp_path):
        args = make_trainer().args
        assert find_checkpoint(args) is None
        args.resume_from_checkpoint = "last"
        assert find_checkpoint(args) is None
        (tmp_path / "checkpoint-7").mkdir()
        with pytest.raises(TrainingError, match="checkpoint-7 is not a checkpoint of a training. Delete it, or pass"):
            find_checkpoint(args)
        for name in ("trainer_state.json", "scheduler.pt"):
            (tmp_path / "checkpoint-7" / name).write_text("{}")
        assert find_checkpoint(args) == str(tmp_path / "checkpoint-7")
        elsewhere = tmp_path / "elsewhere"
        args.resume_from_checkpoint = str(elsewhere)
        with pytest.raises(TrainingError, match="elsewhere is not a checkpoint"):
            find_checkpoint(args)
        (tmp_path / "checkpoint-7").rename(elsewhere)
        assert find_checkpoint(args) == str(elsewhere)
        args.resume_from_checkpoint = None
        elsewhere.rename(tmp_path / "checkpoint-7")
        with pytest.raises(TrainingError, match="Pass --resume_from_checkpoint last to resume from checkpoint-7"):
            find_checkpoint(args)
        for name in ("config.json", "adapter_config.json"):
            folder = tmp_path / name.removesuffix(".json")
            folder.mkdir()
            (folder / name).write_text("{}")
            args.output_dir = str(folder)
            for args.resume_from_checkpoint in (None, "last"):
                with pytest.raises(TrainingError, match="config already holds a model. Choose another folder."):
                    find_checkpoint(args)
        args.resume_from_checkpoint = None
        (tmp_path / "file").write_text("")
        args.output_dir = str(tmp_path / "file")
        with pytest.raises(TrainingError, match="file is a file. Name a folder."):
            find_checkpoint(args)
        args.output_dir = str(tmp_path / "file" / "output")
        with pytest.raises(TrainingError, match="file/output cannot be created or written. Choose another folder."):
            find_checkpoint(args)


class TestLoss:
    def test_a_warmup_is_not_longer_than_the_training(self, make_trainer):
        make_trainer(max_steps=2, warmup_steps=2).train()
        with pytest.raises(TrainingError, match="--warmup_steps 3 is longer than the training of 2 steps. Use fewer"):
            make_trainer(max_steps=2, warmup_steps=3).train()

    def test_without_options_it_is_the_upstream_trainer(self, make_trainer):
        ours, upstream = make_trainer(), make_trainer(trainer_class=Seq2SeqTrainer)
        ours.train()
        upstream.train()
        assert_equal(states(ours.model), states(upstream.model))

    @pytest.mark.parametrize(("decoder", "label_smoothing"), [({}, 0.1), ({"decoder_blocks": 4 * ["prefix"]}, 0.0)])
    def test_accumulation_of_unequal_targets_is_one_large_batch(
        self, make_trainer, tokenizer, decoder, label_smoothing
    ):
        # The last update of an epoch has five of the 13 rows, and its last batch has one.
        make_trainer.rows = make_trainer.rows[:13]
        options = dict(optim="sgd", lr_scheduler_type="constant", learning_rate=0.1, max_grad_norm=0.0)
        options |= dict(max_steps=-1, num_train_epochs=2, label_smoothing_factor=label_smoothing)
        whole = make_trainer(new_model(tokenizer, **decoder), per_device_train_batch_size=8, **options)
        options |= dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
        parts = make_trainer(new_model(tokenizer, **decoder), **options)
        before = states(whole.model)
        losses = [trainer.train().training_loss for trainer in (whole, parts)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-5) and parts.state.global_step == 4
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
            # With label smoothing, Transformers' trainer takes the decoder inputs from the collator.
            trainer.data_collator = DataCollatorForSeq2Seq(tokenizer, trainer.model)
            trainer.train()
        for name, state in states(upstream.model).items():
            torch.testing.assert_close(ours.model.get_parameter(name), state, atol=1e-5, rtol=1e-5)
        for trainer in (ours, upstream):
            # The upstream loss is the mean over all labels if there is one batch.
            trainer.args.per_device_eval_batch_size = len(make_trainer.rows)
        assert ours.evaluate()["eval_loss"] == pytest.approx(upstream.evaluate()["eval_loss"], abs=1e-5)

    def test_rows_that_fill_up_a_processes_last_batch_are_left_out_in_training_alone(
        self, make_trainer, rows, monkeypatch
    ):
        trainer = make_trainer()
        batch = trainer.data_collator(rows[:2])
        labels = batch["labels"].clone()
        # 15 rows in batches of two leave one row for two processes, so the second process gets a repeated row.
        trainer.train_dataset = rows[:15]
        monkeypatch.setattr(trainer.accelerator, "gradient_state", SimpleNamespace(end_of_dataloader=True))
        for name, value in {"world_size": 2, "process_index": 1, "train_batch_size": 2}.items():
            monkeypatch.setattr(type(trainer.args), name, value)
        trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=True)
        assert torch.equal(batch["labels"], labels)
        (given,), count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        assert torch.equal(given["labels"][:1], labels[:1]) and (given["labels"][1] == -100).all()
        assert count == (labels[0] != -100).sum()

    @pytest.mark.parametrize(("process_index", "kept"), [(0, 2), (1, 0)])
    def test_all_processes_count_the_labels_again_if_one_has_rows_that_fill_up(
        self, make_trainer, rows, monkeypatch, process_index, kept
    ):
        """The count gathers from all processes. A process that does not call it would stop the others forever."""
        trainer = make_trainer()
        # Two processes with batches of two share 14 rows, so the last batch of the second process has no own row.
        trainer.train_dataset = rows[:14]
        monkeypatch.setattr(trainer.accelerator, "gradient_state", SimpleNamespace(end_of_dataloader=True))
        for name, value in {"world_size": 2, "process_index": process_index, "train_batch_size": 2}.items():
            monkeypatch.setattr(type(trainer.args), name, value)
        counts = []
        count = trainer._get_num_items_in_batch
        monkeypatch.setattr(
            trainer, "_get_num_items_in_batch", lambda batches, device: counts.append(count(batches, device)) or 1
        )
        (given,), _ = trainer.get_batch_samples(iter([trainer.data_collator(rows[:2])]), 1, trainer.args.device)
        assert (given["labels"] != -100).any(dim=1).sum() == kept
        assert len(counts) == 2 and counts[1] == (given["labels"] != -100).sum()


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

    def test_a_prediction_of_padding_is_not_an_input(self, make_trainer, batch):
        trainer = make_trainer()
        inputs = self.inputs(trainer, batch)
        trainer.model.lm_head.bias.data[trainer.processing_class.pad_token_id] = 1e6
        assert torch.equal(trainer._sample_inputs(trainer.model.eval(), inputs, 1.0), inputs["decoder_input_ids"])

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


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [{}, {"decoder_blocks": 4 * ["prefix"]}])
def test_a_compiled_model_trains_and_generates_as_without_compilation(make_trainer, tokenizer, decoder):
    results = []
    for torch_compile in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(
            new_model(tokenizer, **decoder), max_steps=2, torch_compile=torch_compile, predict_with_generate=True
        )
        loss = trainer.train().training_loss
        results.append((loss, trainer.predict(trainer.eval_dataset, max_length=8)))
    (loss, result), (compiled_loss, compiled_result) = results
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    assert (compiled_result.predictions == result.predictions).all()
