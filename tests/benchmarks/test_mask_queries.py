"""benchmarks/ablation: the prefix decoder with mask queries."""

import pytest
import torch
from decoders import build
from transformers import AutoTokenizer

from modeling_xlm_swcm.compat_xlm_swcm import CACHE


SOURCE = torch.tensor([[0, 9, 30, 31, 2], [0, 9, 33, 2, 1]])
TARGET = torch.tensor([[0, 9, 20, 21], [0, 9, 25, 1]])


@pytest.fixture
def models(encoder_folder):
    return {
        name: build(f"prefix-{name}", str(encoder_folder), ["zh", "bo"], seed=3).model.eval()
        for name in ("tied", "masked")
    }


@torch.no_grad()
def logits_of(model, tokens, **inputs):
    return model(SOURCE, attention_mask=SOURCE.ne(1).long(), decoder_input_ids=tokens, **inputs)


def test_a_mask_reads_what_a_text_with_a_mask_at_its_end_reads(models, encoder_folder):
    mask = AutoTokenizer.from_pretrained(encoder_folder).mask_token_id
    expected = []
    for end in range(1, TARGET.shape[1] + 1):
        # The last state of the normal decoder, whose last token is the mask.
        tokens = torch.cat([TARGET[:, :end], torch.full((2, 1), mask)], dim=1)
        expected.append(logits_of(models["tied"], tokens).logits[:, -1])
    found = logits_of(models["masked"], TARGET).logits
    kept = TARGET.ne(1)
    torch.testing.assert_close(found[kept], torch.stack(expected, dim=1)[kept], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits_of(models["tied"], TARGET).logits, atol=0.005)


def test_steps_of_generation_agree_with_training(models):
    model = models["masked"]
    outputs, steps = logits_of(model, TARGET[:, :1], use_cache=True), []
    for end in range(1, 4):
        steps.append(outputs.logits)
        mask = torch.ones_like(TARGET[:, : end + 1])
        cache = {CACHE: getattr(outputs, CACHE), "decoder_attention_mask": mask}
        outputs = logits_of(model, TARGET[:, end : end + 1], **cache)
    at_once = logits_of(model, TARGET).logits
    torch.testing.assert_close(torch.cat([*steps, outputs.logits], dim=1)[0], at_once[0], rtol=1e-4, atol=1e-4)
    # The cache holds the tokens as in the normal decoder, and no masks.
    tokens, masks = (logits_of(models[name], TARGET, use_cache=True) for name in ("tied", "masked"))
    for one, other in zip(*(getattr(o, CACHE).self_attention_cache.layers for o in (tokens, masks)), strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_greedy_search_follows_the_logits_and_training_has_their_loss(models):
    model, source = models["masked"], SOURCE[:1]
    written = model.generate(source, max_new_tokens=5, do_sample=False)
    logits = model(source, decoder_input_ids=written[:, :-1]).logits
    assert written[0, 1:].tolist() == logits[0].argmax(-1).tolist()
    labels = written[:, 1:]
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in [*model.model.decoder.layers]:
        layer.self_attn.attention_dropout = 0.0
    loss = model(source, labels=labels).loss
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[0], labels[0]).item(), rel=1e-4)
