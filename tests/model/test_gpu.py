"""Tests that need a GPU: it computes the same as the CPU, with each precision and each attention."""

import pytest
import torch
from support.models import PREFIX_DECODERS, SHARINGS, tiny_model
from transformers.utils import is_flash_attn_2_available

from modeling_xlm_swcm.training import TrainingArguments, XLMSWCMTrainer


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is available"),
]
DECODERS = [*SHARINGS, *PREFIX_DECODERS]


@pytest.fixture(params=DECODERS, ids=str)
def decoder(request) -> dict:
    return request.param


def make_batch(device: str) -> dict[str, torch.Tensor]:
    """Return two sources, the first with padding on the left, and their labels."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(5, 99, shape, generator=generator) for shape in ((2, 9), (2, 6)))
    mask = torch.ones_like(tokens)
    tokens[0, :3], mask[0, :3] = 1, 0
    return {
        name: value.to(device) for name, value in dict(input_ids=tokens, attention_mask=mask, labels=labels).items()
    }


def generate(model, device: str, **options) -> list[list[int]]:
    batch = make_batch(device)
    del batch["labels"]
    return model.to(device).generate(**batch, max_new_tokens=12, **options).tolist()


@torch.no_grad()
def test_float32_logits_and_tokens_equal_those_of_the_cpu(decoder):
    model = tiny_model(**decoder)
    expected, tokens = model(**make_batch("cpu")).logits, generate(model, "cpu", num_beams=3)
    actual = model.to("cuda")(**make_batch("cuda")).logits.cpu()
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
    assert generate(model, "cuda", num_beams=3) == tokens


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "attention",
    [
        "eager",
        "sdpa",
        pytest.param(
            "flash_attention_2",
            marks=pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed"),
        ),
    ],
)
def test_half_precision_is_close_to_float32(decoder, dtype, attention):
    model = tiny_model(**decoder).to("cuda")
    expected = model(**make_batch("cuda")).loss
    model.set_attn_implementation(attention)
    assert abs(model.to(dtype)(**make_batch("cuda")).loss - expected) < 0.05 * expected


def test_a_static_cache_with_a_compiled_step_writes_the_same_tokens(decoder):
    model = tiny_model(**decoder)
    assert generate(model, "cuda", cache_implementation="static") == generate(model, "cuda")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_in_half_precision_learns_what_float32_learns(decoder, precision, tmp_path):
    batch = make_batch("cpu")
    columns = [values.tolist() for values in batch.values()]
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]

    def last_loss(**options) -> float:
        model = tiny_model(**decoder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = TrainingArguments(str(tmp_path), max_steps=30, learning_rate=3e-3, report_to="none", **options)
        trainer = XLMSWCMTrainer(model, args, train_dataset=rows)
        trainer.train()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        return trainer.evaluate(rows)["eval_loss"]

    exact, half = last_loss(), last_loss(**{precision: True})
    assert half < 1.0 and abs(half - exact) < 0.2
