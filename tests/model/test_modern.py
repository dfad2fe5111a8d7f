"""XLM-SWCM with the layers of ModernBERT: the decoder is the encoder over source and target."""

import pytest
import torch
from support.encoders import SENTENCES, gemma_tokenizer, make_encoder
from support.models import CHECKPOINTING, Batch, assert_close, logits_of, random_tokens, tiny_modern_model
from transformers import AutoModelForSeq2SeqLM, ModernBertForMaskedLM, ModernBertModel

from modeling_xlm_swcm import XLMSWCMModernForConditionalGeneration, long_attention_xlm_swcm, modern_xlm_swcm
from modeling_xlm_swcm.compat_xlm_swcm import CACHE
from modeling_xlm_swcm.conversion import from_encoder


# Half of the window of local layers in the tiny models.
NEAR = 4


MODELS = {
    "init": {},
    "tied": {"weight_sharing": "tied"},
    "paper": {"normal_layer_interval": 2},
    "tied paper": {"normal_layer_interval": 2, "weight_sharing": "tied"},
}


@pytest.fixture(params=["init", "tied"])
def model(request) -> XLMSWCMModernForConditionalGeneration:
    return tiny_modern_model(**MODELS[request.param])


@pytest.fixture
def source() -> Batch:
    """Return a right-padded and a left-padded source, both longer than the window of local layers."""
    tokens, mask = random_tokens(3, 14), torch.ones(3, 14, dtype=torch.long)
    mask[1, 9:] = mask[2, :3] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


@pytest.fixture
def target() -> torch.Tensor:
    return random_tokens(3, 11, seed=4)


def encode_together(encoder: ModernBertModel, source: Batch, target: torch.Tensor) -> torch.Tensor:
    """
    Run ModernBERT's layers over source and target as one sequence, in which the source cannot see the target.

    In local layers the target starts at position 0, and reads the whole source and its own last tokens.
    """
    mask, (rows, length) = source["attention_mask"], target.shape
    size, places = mask.shape[1], torch.arange(length).expand(rows, -1)
    tokens = torch.cat([mask, torch.ones_like(target)], dim=1).bool()
    visible = torch.ones(size + length, size + length, dtype=torch.bool).tril()
    visible[:size, :size] = True
    full = visible & tokens[:, None]
    near = (torch.arange(size + length)[:, None] - torch.arange(size + length)).abs() <= NEAR
    near[size:, :size] = True
    after = {"full_attention": mask.sum(-1, keepdim=True), "sliding_attention": 0}
    masks = {"full_attention": full[:, None], "sliding_attention": (full & near)[:, None]}
    states = encoder.embeddings(torch.cat([source["input_ids"], target], dim=1))
    for layer in encoder.layers:
        kind = layer.attention_type
        rotation = encoder.rotary_emb(states, torch.cat([mask.cumsum(-1) - 1, places + after[kind]], dim=1), kind)
        states = layer(states, masks[kind], rotation)
    return encoder.final_norm(states)[:, size:]


class TestComputation:
    def test_a_tied_decoder_is_the_encoder_over_source_and_target_with_its_gradients(self, source, target):
        model, labels = tiny_modern_model(weight_sharing="tied").train(), random_tokens(3, 11, seed=9)
        logits = model.lm_head(model.lm_head_transform(encode_together(model.model.encoder, source, target)))
        assert_close(logits_of(model.eval(), **source, decoder_input_ids=target), logits.detach())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        expected = torch.autograd.grad(loss, [*model.parameters()])
        model.train()(**source, decoder_input_ids=target, labels=labels).loss.backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert_close(parameter.grad, gradient)

    @pytest.mark.parametrize("head", [ModernBertForMaskedLM, ModernBertModel])
    def test_a_converted_model_starts_as_the_encoder(self, head):
        tokenizer = gemma_tokenizer()
        encoder = make_encoder(head, tokenizer)
        models = [from_encoder(encoder, weight_sharing=sharing)[0] for sharing in ("init", "tied")]
        base = getattr(encoder, "model", encoder)
        batch = tokenizer(SENTENCES[:1] * 2 + ["The ferry"], padding=True, return_tensors="pt")
        target = random_tokens(3, 11)
        with torch.no_grad():
            states = base(**batch).last_hidden_state
            together = encode_together(base, batch, target)
            new_head = models[0].lm_head(models[0].lm_head_transform(together))
            expected = encoder.decoder(encoder.head(together)) if head is ModernBertForMaskedLM else new_head
        is_token = batch["attention_mask"].bool()
        for model in models:
            assert torch.equal(model.get_encoder()(**batch).last_hidden_state[is_token], states[is_token])
            # The longer sequence is summed in another order.
            logits = logits_of(model, **batch, decoder_input_ids=target)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)

    def test_eager_attention_and_a_mask_of_ones_change_nothing(self, model, source, target):
        expected = logits_of(model, **source, decoder_input_ids=target)
        ones = torch.ones_like(target)
        assert_close(logits_of(model, **source, decoder_input_ids=target, decoder_attention_mask=ones), expected)
        model.set_attn_implementation("eager")
        outputs = model(**source, decoder_input_ids=target, output_attentions=True)
        assert_close(outputs.logits, expected)
        for own, cross in zip(outputs.decoder_attentions, outputs.cross_attentions, strict=True):
            assert_close(own.sum(-1) + cross.sum(-1), torch.ones(3, 4, 11))


class TestTraining:
    @pytest.mark.parametrize("use_reentrant", [False, True])
    @pytest.mark.parametrize("model", MODELS, indirect=True)
    def test_checkpointing_changes_no_gradient(self, model, source, use_reentrant):
        gradients = []
        for checkpointing in (False, True):
            model.train().zero_grad()
            if checkpointing:
                getattr(model, CHECKPOINTING)({"use_reentrant": use_reentrant})
            model(**source, labels=random_tokens(3, 8)).loss.backward()
            # Nothing reads the output of the last layer of a copied encoder.
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        for expected, actual in zip(*gradients, strict=True):
            assert_close(actual, expected)

    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    @pytest.mark.parametrize("decoder", MODELS.values(), ids=MODELS)
    def test_a_saved_and_resized_model_loads(self, decoder, source, target, tie_word_embeddings, tmp_path):
        model = tiny_modern_model(tie_word_embeddings=tie_word_embeddings, **decoder)
        model.resize_token_embeddings(104)
        model.save_pretrained(tmp_path)
        loaded, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie_word_embeddings
        assert_close(
            logits_of(loaded, **source, decoder_input_ids=target), logits_of(model, **source, decoder_input_ids=target)
        )


@pytest.mark.parametrize("is_padded", [True, False])
def test_attention_in_parts_changes_no_logits_and_gradients(model, source, target, is_padded, monkeypatch):
    batch = source | {"decoder_input_ids": target, "decoder_attention_mask": torch.ones_like(target)}
    batch["decoder_attention_mask"][0, :3] = 0
    if not is_padded:
        batch = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    labels = random_tokens(3, 11, seed=9)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        first = model(source["input_ids"], decoder_input_ids=target[:, :2], use_cache=True)
        more = model(source["input_ids"], decoder_input_ids=target[:, 2:], cache=getattr(first, CACHE))
        return [logits_of(model, **batch), more.logits.detach(), *gradients]

    expected = run()
    monkeypatch.setattr(long_attention_xlm_swcm, "ENCODER_PART", 3)
    for module in (long_attention_xlm_swcm, modern_xlm_swcm):
        monkeypatch.setattr(module, "DECODER_PART", 4)
    for actual, tensor in zip(run(), expected, strict=True):
        assert_close(actual, tensor)


def test_a_source_of_2048_tokens_is_read_in_training_and_generation():
    """The first and the last token of the source are far outside the window of the encoder's local layers."""
    model = tiny_modern_model(weight_sharing="tied", num_hidden_layers=2, max_position_embeddings=2048)
    tokens = random_tokens(1, 2048)
    embeds = model.get_input_embeddings()(tokens).detach().requires_grad_()
    labels = torch.full((1, 2048), -100)
    labels[0, -1] = 7
    model.train()(inputs_embeds=embeds, decoder_input_ids=tokens, labels=labels).loss.backward()
    assert embeds.grad.isfinite().all() and (embeds.grad[0, [0, -1]].abs().amax(-1) > 0).all()
    settings = {"max_new_tokens": 3, "min_new_tokens": 3}
    generated = model.eval().generate(tokens, **settings)
    assert torch.equal(model.generate(tokens, **settings, use_cache=False), generated)
    with pytest.raises(ValueError, match="The source has 2049 tokens, but the model has only 2048 positions"):
        model(torch.cat([tokens, tokens[:, :1]], dim=1), decoder_input_ids=tokens)
