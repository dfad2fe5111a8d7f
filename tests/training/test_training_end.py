"""The end of a training: weights that are not finite, disks that are full, and interrupts leave nothing broken."""

import errno

import pytest
import torch
from support.trainers import new_model
from transformers import TrainerCallback

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.training.arguments import ModelArguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.lora import adapt_model, save_merged
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


class AfterStep(TrainerCallback):
    """Set a trained weight to `value` in the optimizer step `step`, as a step that overflows does."""

    def __init__(self, step: int, value: float = torch.nan):
        self.step, self.value = step, value

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            parameter = [parameter for parameter in model.parameters() if parameter.requires_grad][-1]
            parameter.data.flatten()[0] = self.value


class TestNotFinite:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("lora", [False, True])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"save_strategy": "no"},
            {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
            {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1},
            {"push_to_hub": True, "hub_strategy": "every_save"},
        ],
        ids=lambda options: next(iter(options), "steps"),
    )
    def test_a_last_step_that_breaks_a_weight_saves_and_pushes_nothing(
        self, make_trainer, tokenizer, tmp_path, monkeypatch, value, lora, options
    ):
        pushed = []
        monkeypatch.setattr(XLMSWCMTrainer, "init_hf_repo", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(XLMSWCMTrainer, "_push_from_checkpoint", lambda self, folder: pushed.append(folder[-1]))
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=lora, lora_rank=4 if lora else 16))
        trainer = make_trainer(model, callbacks=[AfterStep(4, value)], **options)
        with pytest.raises(TrainingError) as error:
            trainer.train()
        has_checkpoint = "save_strategy" not in options
        kept = (
            f"The last good checkpoint is {tmp_path / 'checkpoint-2'}." if has_checkpoint else "There is no checkpoint"
        )
        assert str(error.value).startswith("The weight ") and "is not finite at step 4" in str(error.value)
        assert kept in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"] * has_checkpoint
        assert pushed == ["2"] * (has_checkpoint and 2 * ("push_to_hub" in options))
        for save in (trainer.save_model, trainer.push_to_hub, lambda: save_merged(trainer)):
            with pytest.raises(TrainingError, match="is not finite at step 4"):
                save()
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"] * has_checkpoint

    def test_the_best_model_is_saved_where_a_later_step_breaks(self, make_trainer, tmp_path):
        options = dict(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)

        class StopAfterStep(AfterStep):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 5

            def on_epoch_end(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    control.should_evaluate = control.should_save = False

        trainer = make_trainer(callbacks=[StopAfterStep(5)], max_steps=8, **options)
        trainer.train()
        trainer.save_model()
        saved, best = (
            XLMSWCMForConditionalGeneration.from_pretrained(path) for path in (tmp_path, tmp_path / "checkpoint-4")
        )
        assert all(map(torch.equal, saved.parameters(), best.parameters()))


class TestFloat16:
    """Accelerate makes a gradient scaler for GPUs only, so these tests set one."""

    def train(self, make_trainer, scale: float, num_overflows: int, **options) -> XLMSWCMTrainer:
        trainer = make_trainer(save_strategy="no", **options)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        def overflow(gradient):
            return gradient * torch.inf if trainer.state.global_step < num_overflows else gradient

        trainer.model.lm_head.bias.register_hook(overflow)
        trainer.train()
        return trainer

    def test_a_scale_that_falls_below_one_stops_the_training(self, make_trainer):
        message = "The norm of the gradients is (nan|inf) with a loss scale of 0.5 at step 4"
        with pytest.raises(TrainingError, match=message):
            self.train(make_trainer, 4.0, 9, max_steps=9)

    def test_a_training_whose_steps_were_all_skipped_is_an_error(self, make_trainer):
        message = "The gradients of all 4 steps overflow in float16, so no weight has changed at step 4"
        with pytest.raises(TrainingError, match=message):
            self.train(make_trainer, 2.0**16, 4, max_steps=4)

    def test_a_training_with_some_skipped_steps_is_that_of_the_others(self, make_trainer):
        options = dict(lr_scheduler_type="constant", train_sampling_strategy="sequential", max_grad_norm=0.0)
        skipped = self.train(make_trainer, 2.0**16, 1, max_steps=2, **options)
        assert skipped.accelerator.scaler.get_scale() == 2.0**15
        plain = make_trainer(save_strategy="no", max_steps=1, **options)
        plain.train_dataset = plain.train_dataset[4:]
        plain.train()
        for actual, expected in zip(skipped.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


class TestDisk:
    @pytest.mark.parametrize("kept", [True, False])
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: file write failed"),
        ],
        ids=["os", "torch"],
    )
    def test_a_disk_that_is_full_is_one_sentence(self, make_trainer, tmp_path, monkeypatch, error, kept):
        trainer = make_trainer(save_steps=2 if kept else 4)
        save = XLMSWCMTrainer._save_rng_state

        def fail(self, folder):
            if "checkpoint-4" in folder:
                raise error
            save(self, folder)

        monkeypatch.setattr(XLMSWCMTrainer, "_save_rng_state", fail)
        with pytest.raises(TrainingError, match=r"^Cannot write .*checkpoint-4: .*\. Free some space") as raised:
            trainer.train()
        assert "\n" not in str(raised.value)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"] * kept

    def test_a_final_save_that_fails_leaves_the_old_model(self, make_trainer, tokenizer, tmp_path, monkeypatch):
        trainer = make_trainer()
        trainer.save_model()
        before = (tmp_path / "model.safetensors").read_bytes()
        trainer.model.lm_head.bias.data += 1

        def fail(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
        with pytest.raises(TrainingError, match=f"^Cannot write {tmp_path}: .*No space left on device"):
            trainer.save_model()
        assert (tmp_path / "model.safetensors").read_bytes() == before
        assert not list(tmp_path.glob("_*"))


class TestInterrupt:
    def test_a_checkpoint_that_is_interrupted_leaves_nothing(self, make_trainer, tmp_path, monkeypatch):
        def interrupt(self, folder):
            raise KeyboardInterrupt

        monkeypatch.setattr(XLMSWCMTrainer, "_save_rng_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_trainer().train()
        assert list(tmp_path.iterdir()) == []
