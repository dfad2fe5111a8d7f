"""Weights train in float32 and are saved in the dtype that was asked for."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.models import tiny_modern_model
from support.trainers import new_model
from torch import nn
from transformers import PreTrainedModel

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.training.arguments import ModelArguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.lora import adapt_model, save_merged
from modeling_xlm_swcm.training.precision import convert_tensors, find_not_finite, round_weights


# Both dtypes go the same way.
HALF = [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16]
RATE = 5e-5


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def saved_tensors(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", HALF)
class TestTraining:
    def new_model(self, tokenizer, dtype, in_float32: bool = False) -> PreTrainedModel:
        model = new_model(tokenizer).to(dtype)
        return model.float() if in_float32 else model

    def test_it_is_the_training_of_the_same_weights_in_float32(self, make_trainer, tokenizer, dtype):
        trainers = [
            make_trainer(self.new_model(tokenizer, dtype, exact), learning_rate=RATE, save_strategy="no", max_steps=10)
            for exact in (True, False)
        ]
        before = states(self.new_model(tokenizer, dtype, True))
        for trainer in trainers:
            trainer.train()
        expected, actual = (states(trainer.model) for trainer in trainers)
        for name, parameter in actual.items():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, expected[name]), name
            # AdamW moves no weight by more than about the learning rate in a step, and moves almost all of them.
            moved = (parameter - before[name]).abs()
            assert moved.max() < 2 * 10 * RATE, name

    def test_a_model_from_a_function_trains_in_float32(self, make_trainer, tokenizer, dtype):
        trainer = make_trainer(save_strategy="no", max_steps=1, warmup_steps=0)
        trainer.model_init = lambda: self.new_model(tokenizer, dtype)
        trainer.train()
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        assert not torch.equal(trainer.model.lm_head.bias, self.new_model(tokenizer, dtype, True).lm_head.bias)

    def test_the_model_is_saved_as_it_was_given_and_checkpoints_in_float32(
        self, make_trainer, tokenizer, tmp_path, dtype
    ):
        trainer = make_trainer(self.new_model(tokenizer, dtype), max_steps=2)
        trainer.train()
        trainer.save_model()
        assert {tensor.dtype for tensor in saved_tensors(tmp_path / "checkpoint-2").values()} == {torch.float32}
        tensors = saved_tensors(tmp_path)
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
        trained = states(trainer.model)
        assert all(torch.equal(tensor, trained[name].to(dtype)) for name, tensor in tensors.items())
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()) and loaded.dtype == dtype
        configs = [
            json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "checkpoint-2")
        ]
        assert [config.pop("dtype") for config in configs] == [str(dtype).removeprefix("torch."), "float32"]
        assert configs[0] == configs[1] and trainer.model.config.dtype == "float32"
        assert trainer.describe()["precision"] == "float32"
        assert trainer.describe()["saved_dtype"] == str(dtype).removeprefix("torch.")

    def test_a_resumed_run_ends_with_the_same_weights(self, make_trainer, tokenizer, tmp_path, dtype):
        whole, resumed = (make_trainer(self.new_model(tokenizer, dtype), learning_rate=RATE) for _ in range(2))
        whole.train()
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        expected = states(whole.model)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in states(resumed.model).items())

    def test_a_run_goes_on_in_float32_from_a_checkpoint_in_another_dtype(
        self, make_trainer, tokenizer, tmp_path, dtype
    ):
        make_trainer(max_steps=2).train()
        checkpoint = tmp_path / "checkpoint-2"
        XLMSWCMForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).save_pretrained(checkpoint)
        optimizer = torch.load(checkpoint / "optimizer.pt")
        for state in optimizer["state"].values():
            state |= {name: state[name].to(dtype) for name in ("exp_avg", "exp_avg_sq")}
        torch.save(optimizer, checkpoint / "optimizer.pt")
        resumed = make_trainer(self.new_model(tokenizer, dtype))
        resumed.train(resume_from_checkpoint=str(checkpoint))
        tensors = [*resumed.model.parameters(), *(s["exp_avg"] for s in resumed.optimizer.state.values())]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}

    def test_adapters_and_the_frozen_weights_below_them_are_float32(self, make_trainer, tokenizer, tmp_path, dtype):
        models = [
            adapt_model(self.new_model(tokenizer, dtype, exact), ModelArguments("", lora=True, lora_rank=4))
            for exact in (True, False)
        ]
        for model in models:
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter.data = torch.full_like(parameter.data, 0.1, dtype=torch.float32)
        trainers = [make_trainer(model, max_steps=3, save_strategy="no") for model in models]
        for trainer in trainers:
            trainer.train()
        expected, actual = (states(trainer.model) for trainer in trainers)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in actual.items())
        save_merged(trainers[1])
        assert {tensor.dtype for tensor in saved_tensors(tmp_path).values()} == {dtype}

    def test_a_frozen_encoder_is_float32_too(self, make_trainer, tokenizer, dtype):
        model = adapt_model(self.new_model(tokenizer, dtype), ModelArguments("", freeze_encoder=True))
        make_trainer(model, max_steps=1, save_strategy="no").train()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class TestEvaluation:
    @pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
    def test_an_evaluation_in_another_dtype_does_not_change_the_weights(self, make_trainer, tmp_path, option):
        plain, trainer = (make_trainer(save_strategy="no", **options) for options in ({}, {option: True}))
        before = states(trainer.model)
        loss = trainer.evaluate()["eval_loss"]
        assert loss != plain.evaluate()["eval_loss"] and loss == pytest.approx(plain.evaluate()["eval_loss"], rel=0.02)
        trainer.predict(trainer.eval_dataset)
        assert all(torch.equal(parameter, before[name]) for name, parameter in states(trainer.model).items())
        trainer.save_model()
        assert {tensor.dtype for tensor in saved_tensors(tmp_path).values()} == {torch.float32}
        trainer.train()
        plain.train()
        expected = states(plain.model)
        assert all(torch.equal(parameter, expected[name]) for name, parameter in states(trainer.model).items())

    def test_an_evaluation_in_another_dtype_does_not_change_the_buffers(self, make_trainer, tokenizer):
        model = tiny_modern_model(vocab_size=len(tokenizer))
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        make_trainer(model, bf16_full_eval=True).evaluate()
        assert before and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class TestDescription:
    @pytest.mark.parametrize(
        ("mixed", "options", "precision"),
        [("no", {}, "float32"), ("bf16", {}, "bfloat16"), ("no", {"bf16": True}, "bfloat16")],
    )
    def test_the_precision_is_that_of_the_run_also_where_the_launcher_sets_it(
        self, make_trainer, monkeypatch, mixed, options, precision
    ):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)
        trainer = make_trainer(max_steps=1, save_strategy="no", **options)
        dtypes = set()
        trainer.model.lm_head.register_forward_hook(lambda module, inputs, output: dtypes.add(str(output.dtype)))
        trainer.train()
        assert dtypes == {f"torch.{precision}"}
        assert trainer.describe()["precision"] == precision


class TestSaving:
    def test_a_weight_that_float16_cannot_hold_is_refused(self, make_trainer, tokenizer, tmp_path):
        trainer = make_trainer()
        trainer.saved_dtype = torch.float16
        trainer.model.lm_head.bias.data[3] = 1e5
        with pytest.raises(
            TrainingError, match=r"^The weight lm_head.bias has a value that is too large for float16\. Save"
        ):
            trainer.save_model()
        assert list(tmp_path.iterdir()) == []
        trainer.saved_dtype = torch.bfloat16
        trainer.save_model()
        assert saved_tensors(tmp_path)["lm_head.bias"][3] == torch.tensor(1e5).bfloat16()

    def test_a_gathered_state_dict_is_converted(self, make_trainer, tmp_path):
        trainer = make_trainer()
        trainer.saved_dtype = torch.bfloat16
        trainer._save(str(tmp_path / "model"), state_dict=trainer.model.state_dict())
        loaded = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path / "model")
        assert loaded.dtype == torch.bfloat16

    def test_rounded_weights_are_those_of_the_saved_model(self, make_trainer, tmp_path):
        trainer = make_trainer()
        trainer.saved_dtype = torch.bfloat16
        trainer.save_model()
        round_weights(trainer.model, torch.bfloat16)
        loaded = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
        assert all(
            torch.equal(parameter, loaded.get_parameter(name)) for name, parameter in states(trainer.model).items()
        )


def test_tensors_that_are_one_tensor_remain_one():
    tensor = torch.ones(3, 4)
    converted = convert_tensors({"a": tensor, "b": tensor, "c": torch.ones(3, 4), "ids": torch.arange(3)}, torch.half)
    assert converted["a"] is converted["b"] and converted["c"] is not converted["a"]
    assert converted["ids"].dtype == torch.long and converted["a"].dtype == torch.half


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_the_first_tensor_with_a_value_that_is_not_finite_is_found(value):
    tensors = {"ids": torch.arange(3), "good": torch.ones(2), "bad": torch.tensor([1.0, value])}
    assert find_not_finite(tensors) == "bad"
    assert find_not_finite({"good": torch.full((2,), torch.finfo(torch.float32).max)}) is None
