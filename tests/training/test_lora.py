"""LoRA: adapters that learn, that are saved, merged and resumed, and combinations that are refused."""

import pytest
import torch
from support.models import logits_of
from support.trainers import new_model

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.training.arguments import ModelArguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.lora import adapt_model, save_merged


@pytest.fixture
def rows(make_trainer) -> list[dict]:
    return make_trainer.rows


def states(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class TestLora:
    def test_every_projection_of_the_decoder_is_adapted_and_nothing_else(self, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        # Four custom layers have 8 attention and 4 feed-forward projections. The normal layer has 8 and 2.
        assert len(adapted) == 4 * 12 + 10
        assert all(".decoder.layers." in name for name in adapted)

    def test_it_is_merged_on_export(self, make_trainer, tokenizer, tmp_path, rows):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        trainer = make_trainer(model, learning_rate=0.05, max_steps=6, save_strategy="no")
        trainer.train()
        batch = trainer.data_collator(rows)
        expected = logits_of(trainer.model.eval(), **batch)
        assert (expected - logits_of(new_model(tokenizer), **batch)).abs().max() > 1e-2
        save_merged(trainer)
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(logits_of(loaded.eval(), **batch), expected, atol=1e-4, rtol=1e-4)
        assert not list(tmp_path.glob("adapter*"))

    def test_it_learns(self, make_trainer, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=8))
        trainer = make_trainer(model, learning_rate=0.02, max_steps=30, save_strategy="no")
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < 0.9 * before

    def test_it_goes_on_from_a_checkpoint(self, make_trainer, tokenizer, tmp_path):
        whole, resumed = (
            make_trainer(adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4)))
            for _ in range(2)
        )
        whole.train()
        expected = states(whole.model)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_equal(states(resumed.model), expected)

    def test_a_frozen_encoder_stays_and_the_decoder_learns(self, make_trainer, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", freeze_encoder=True))
        before = states(model)
        make_trainer(model, save_strategy="no").train()
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == (not name.startswith("model.encoder.")), name

    def test_adapters_are_not_spread_over_gpus(self, tokenizer, monkeypatch):
        monkeypatch.setattr("modeling_xlm_swcm.training.lora.is_fsdp_enabled", lambda: True)
        with pytest.raises(
            TrainingError, match="^--lora does not work with FSDP. Launch with `accelerate launch --multi_gpu`"
        ):
            adapt_model(new_model(tokenizer), ModelArguments("", lora=True))

    @pytest.mark.parametrize("option", ["--lora", "--freeze_encoder", "FSDP"])
    def test_layers_that_are_the_encoders_are_refused(self, tokenizer, monkeypatch, option):
        monkeypatch.setattr("modeling_xlm_swcm.training.lora.is_fsdp_enabled", lambda: option == "FSDP")
        args = ModelArguments("", **({} if option == "FSDP" else {option.strip("-"): True}))
        with pytest.raises(TrainingError, match=f"{option} needs a decoder with its own weights"):
            adapt_model(new_model(tokenizer, weight_sharing="tied"), args)
        adapt_model(new_model(tokenizer), args)
