"""Adapters that users add with PEFT: they merge, save and load with equal logits, or they are refused."""

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from peft import (
    AdaLoraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from support.folders import load
from support.models import CHECKPOINTING, assert_close, logits_of, random_tokens, tiny_model, tiny_modern_model
from transformers.integrations import peft as transformers_peft

from modeling_xlm_swcm.peft_xlm_swcm import LORA_TARGETS, TIED_PREFIX_TARGETS


pytestmark = pytest.mark.filterwarnings(
    # PEFT reads the deprecated attribute.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Input and output embeddings are no longer tied after merging",
    "ignore:Model has `tie_word_embeddings=True`",
    "ignore:Setting `save_embedding_layers`",
    "ignore:Unsupported layer type",
    "ignore:You have requested `ensure_weight_tying`",
    "ignore:Careful, disabling adapter layers with bias configured",
)
BATCH = {"input_ids": random_tokens(2, 9), "decoder_input_ids": random_tokens(2, 6, seed=5)}
# Tokens of both the source and the target.
TOKENS = sorted({*BATCH["input_ids"].flatten().tolist()[:5], *BATCH["decoder_input_ids"].flatten().tolist()[:5]})
WORDS = "model.encoder.embeddings.word_embeddings"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
wants_prompts = pytest.mark.skipif(
    Version(version("peft")) < Version("0.21"), reason="Prompts of older PEFT call a method that Transformers removed."
)
PREFIX = {"decoder_blocks": ["prefix"] * 4}


def lora(**options) -> LoraConfig:
    return LoraConfig(**{"target_modules": LORA_TARGETS} | options)


def move(model, scale: float = 0.2):
    """Change all parameters that train, as a training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))


def adapt(config, **options):
    return get_peft_model(tiny_model(**options), config).eval()


RIGHT = {
    "lora": (lora(), {}),
    "all linear layers": (lora(target_modules="all-linear"), {}),
    "tokens": (lora(trainable_token_indices=TOKENS), {}),
    "tokens by name": (lora(trainable_token_indices={WORDS: TOKENS}), {}),
    "tokens and weight tying": (lora(trainable_token_indices=TOKENS, ensure_weight_tying=True), {}),
    "tokens with a head transform": (lora(trainable_token_indices=TOKENS), {"lm_head_transform": True}),
    "tokens and LayerNorms": (lora(trainable_token_indices=TOKENS, modules_to_save=["layer_norm"]), {}),
    "tokens alone": (TrainableTokensConfig(token_indices=TOKENS), {}),
    "tied prefix": (lora(target_modules=TIED_PREFIX_TARGETS), PREFIX | {"weight_sharing": "tied"}),
    "tied prefix and tokens": (
        lora(target_modules=TIED_PREFIX_TARGETS, trainable_token_indices=TOKENS),
        PREFIX | {"weight_sharing": "tied"},
    ),
    "copied prefix": (lora(trainable_token_indices=TOKENS), PREFIX),
    "untied output": (lora(), {"tie_word_embeddings": False}),
    "adapter of an untied output": (lora(target_modules=["lm_head"]), {"tie_word_embeddings": False}),
    "own output": (lora(modules_to_save=["lm_head"]), {}),
    "own head transform": (lora(modules_to_save=["lm_head_transform"]), {"lm_head_transform": True}),
    "own decoder layer": (lora(target_modules=["query"], modules_to_save=["decoder.layers.2"]), {}),
    "biases": (lora(bias="all"), {}),
    "DoRA": (lora(use_dora=True), {}),
    "rsLoRA": (lora(use_rslora=True), {}),
    "AdaLoRA": (AdaLoraConfig(target_modules=LORA_TARGETS, total_step=10), {}),
    "HRA": (HRAConfig(target_modules=["q_proj"]), {}),
    "IA3": (IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]), {}),
    "LayerNorms": (LNTuningConfig(target_modules=["layer_norm"]), {}),
    "LoHa": (LoHaConfig(target_modules=LORA_TARGETS), {}),
    "LoKr": (LoKrConfig(target_modules=LORA_TARGETS), {}),
    "OFT": (OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0), {}),
    "VeRA": (VeraConfig(target_modules=["q_proj", "v_proj"]), {}),
}
# These change the weights of linear layers as LoRA does, by other formulas of PEFT.
LIKE_LORA = {"rsLoRA", "AdaLoRA", "HRA", "LoHa", "LoKr", "OFT", "VeRA"}
TIED = {"weight_sharing": "tied"}
UNTIED = {"tie_word_embeddings": False}
# configuration, options of the model, and the module that the error names
WRONG = {
    "word embeddings": (lora(target_modules=["word_embeddings"]), {}, WORDS),
    "word embeddings of the encoder": (lora(target_modules=[WORDS]), {}, WORDS),
    "word embeddings with weight tying": (
        lora(target_modules=["word_embeddings"], ensure_weight_tying=True),
        {},
        WORDS,
    ),
    "word embeddings as a parameter": (lora(target_parameters=["word_embeddings.weight"]), {}, WORDS),
    "output": (lora(target_modules=["lm_head"]), {}, "lm_head"),
    "DoRA of the output": (lora(target_modules=["lm_head"], use_dora=True), {}, "lm_head"),
    "position embeddings": (
        lora(target_modules=["position_embeddings"]),
        {},
        "model.decoder.embeddings.position_embeddings",
    ),
    "own word embeddings": (lora(modules_to_save=["word_embeddings"]), {}, WORDS),
    "own embeddings": (lora(modules_to_save=["embeddings"]), {}, WORDS),
    "own LayerNorms of the embeddings": (
        lora(modules_to_save=["LayerNorm"]),
        {},
        "model.decoder.embeddings.LayerNorm",
    ),
    "own decoder": (
        lora(target_modules=["query"], modules_to_save=["decoder"]),
        {},
        "model.decoder.embeddings.word_embeddings",
    ),
    "own output with weight tying": (lora(modules_to_save=["lm_head"], ensure_weight_tying=True), {}, "lm_head"),
    "own output and tokens": (lora(modules_to_save=["lm_head"], trainable_token_indices=TOKENS), {}, "lm_head"),
    "tokens of the output": (lora(trainable_token_indices={"lm_head": TOKENS}), {}, "lm_head"),
    "tokens of both embeddings": (
        lora(trainable_token_indices={"word_embeddings": TOKENS}),
        {},
        "model.decoder.embeddings.word_embeddings",
    ),
    "other tokens of the output": (
        lora(trainable_token_indices={WORDS: TOKENS, "lm_head": TOKENS[:2]}),
        {},
        "lm_head",
    ),
    "tokens with an untied output": (lora(trainable_token_indices=TOKENS), UNTIED, WORDS),
    "tokens alone with an untied output": (TrainableTokensConfig(token_indices=TOKENS), UNTIED, WORDS),
    "decoder of tied layers": (
        lora(target_modules=["q_proj"]),
        TIED,
        "model.decoder.layers.0.self_attn.q_proj",
    ),
    "encoder of tied layers": (
        lora(target_modules=["query"]),
        TIED,
        "model.encoder.encoder.layer.0.attention.self.query",
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_LORA)) for name in RIGHT]
)
def test_an_adapter_is_saved_and_merged_with_equal_logits(name, tmp_path):
    config, options = RIGHT[name]
    base = tiny_model(**options)
    base.save_pretrained(tmp_path / "base")
    before = logits_of(base, **BATCH)
    model = get_peft_model(base, config).eval()
    torch.testing.assert_close(logits_of(model, **BATCH), before, atol=2e-5, rtol=2e-5)
    move(model)
    expected = logits_of(model, **BATCH)
    assert (expected - before).abs().max() > 0.1
    if name != "biases":
        with model.disable_adapter():
            assert_close(logits_of(model, **BATCH), before)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(loaded, **BATCH), expected, atol=0, rtol=0)
    for adapted in (model, loaded):
        merged = adapted.merge_and_unload()
        # A copied prefix decoder amplifies rounding errors.
        tolerance = 2e-3 if name == "copied prefix" else 2e-4
        torch.testing.assert_close(logits_of(merged, **BATCH), expected, atol=tolerance, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(logits_of(load(tmp_path / "merged"), **BATCH), logits_of(merged, **BATCH))


@pytest.mark.parametrize("name", WRONG)
def test_an_adapter_of_one_of_the_modules_that_share_a_weight_is_refused(name):
    config, options, module = WRONG[name]
    model = adapt(config, **options)
    with pytest.raises(
        ValueError, match=f"^A PEFT adapter changes {module}.weight, but not .* Both are the same weight. "
    ):
        model(**BATCH)
    with pytest.raises(ValueError, match="^A PEFT adapter changes "):
        get_peft_model(tiny_model(**options), config).train()(input_ids=BATCH["input_ids"], labels=BATCH["input_ids"])


def test_a_model_without_output_projection_is_checked_too():
    model = get_peft_model(tiny_model().model, LoraConfig(target_modules=["position_embeddings"])).eval()
    with pytest.raises(ValueError, match="A PEFT adapter changes decoder.embeddings.position_embeddings.weight"):
        model(**BATCH)


@pytest.mark.parametrize("make", [lambda: tiny_model(**PREFIX), tiny_modern_model], ids=["XLM-R", "ModernBERT"])
def test_without_the_last_encoder_layer_every_adapter_of_a_prefix_decoder_trains(make):
    """Distributed training refuses weights without a gradient."""
    base = make()
    assert base.config.has_prefix_decoder
    unread = rf".*encoder\.layers?\.{base.config.num_hidden_layers - 1}\..*"
    model = get_peft_model(base, lora(target_modules="all-linear", exclude_modules=unread)).train()
    model(input_ids=BATCH["input_ids"], labels=BATCH["decoder_input_ids"]).loss.backward()
    trained = {name: p.grad is not None for name, p in model.named_parameters() if p.requires_grad}
    assert any("encoder.layer" in name for name in trained) and all(trained.values())


def test_trained_tokens_learn_from_source_target_and_output():
    """The gradient of a trained token is the gradient of its row in a model that trains as a whole."""
    batch = {"input_ids": BATCH["input_ids"], "labels": BATCH["decoder_input_ids"]}
    whole = tiny_model(**NO_DROPOUT).train()
    whole(**batch).loss.backward()
    model = adapt(lora(trainable_token_indices=TOKENS), **NO_DROPOUT).train()
    model(**batch).loss.backward()
    (tokens,) = (p.grad for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    assert_close(tokens, whole.get_input_embeddings().weight.grad[TOKENS])
    assert tokens.abs().max() > 1e-3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    gradients = []
    for checkpoints in (False, True):
        config = lora(trainable_token_indices=TOKENS, init_lora_weights=False)
        torch.manual_seed(0)
        model = adapt(config, **NO_DROPOUT).train()
        move(model)
        if checkpoints:
            getattr(model, CHECKPOINTING)({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(input_ids=BATCH["input_ids"], labels=BATCH["decoder_input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_adapters_of_a_half_precision_model_train_in_float32(dtype, tolerance):
    model = get_peft_model(tiny_model().to(dtype), lora(trainable_token_indices=TOKENS))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    model.train()(input_ids=BATCH["input_ids"], labels=BATCH["decoder_input_ids"]).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    move(model.eval(), 0.05)
    expected = logits_of(model, **BATCH)
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {dtype}
    torch.testing.assert_close(logits_of(merged, **BATCH), expected, atol=tolerance, rtol=0)


def test_generation_with_trained_tokens_is_generation_of_the_merged_model():
    model = adapt(lora(trainable_token_indices=TOKENS))
    move(model)
    options = dict(input_ids=BATCH["input_ids"], max_new_tokens=8, num_beams=2)
    written = model.generate(**options)
    with model.disable_adapter():
        assert not torch.equal(model.generate(**options), written)
    assert torch.equal(model.merge_and_unload().generate(**options), written)


def test_adapters_with_and_without_trained_tokens_take_turns():
    model = adapt(lora(trainable_token_indices=TOKENS))
    before = logits_of(tiny_model(), **BATCH)
    move(model)
    first = logits_of(model, **BATCH)
    model.add_adapter("plain", lora())
    model.add_adapter("other", lora(trainable_token_indices=[1, 2]))
    for name, expected in (("plain", before), ("other", before), ("default", first)):
        model.set_adapter(name)
        assert_close(logits_of(model, **BATCH), expected)


def test_one_batch_with_several_adapters_is_right_or_refused():
    model = adapt(lora(init_lora_weights=False))
    logits = model(**BATCH, adapter_names=["default", "__base__"]).logits
    assert_close(logits[1], logits_of(tiny_model(), **BATCH)[1])
    model = adapt(lora(trainable_token_indices=TOKENS))
    with pytest.raises(ValueError, match="^trainable_token_indices does not work with adapter_names"):
        model(**BATCH, adapter_names=["default", "__base__"])


def test_embeddings_are_resized_beside_adapters_but_not_with_trained_tokens(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = get_peft_model(load(tmp_path / "base"), lora()).eval()
    move(model)
    before = logits_of(model, **BATCH)
    model.resize_token_embeddings(105)
    expected = logits_of(model, **BATCH)
    assert_close(expected[..., :99], before)
    model.save_pretrained(tmp_path / "adapter")
    base = load(tmp_path / "base")
    base.resize_token_embeddings(105)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(logits_of(loaded, **BATCH), expected)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(load(tmp_path / "merged"), **BATCH), expected, atol=1e-4, rtol=1e-4)

    model = adapt(lora(trainable_token_indices=TOKENS))
    with pytest.raises(ValueError, match="^The embeddings cannot be resized while an adapter trains single tokens"):
        model.resize_token_embeddings(105)
    merged = model.merge_and_unload()
    merged.resize_token_embeddings(105)
    assert_close(logits_of(merged, **BATCH)[..., :99], logits_of(tiny_model(), **BATCH))


@wants_prompts
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_prefix_tuning_is_refused():
    model = adapt(PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="The cache has 4 layers, but the decoder has 5. Prefix tuning of PEFT"):
        model(**BATCH)


@wants_prompts
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{}, PREFIX, PREFIX | {"weight_sharing": "tied"}], ids=["paper", "prefix", "tied"])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 6}, {"num_transformer_submodules": 1}], ids=str)
def test_prefix_tuning_is_refused_in_every_form(options, settings):
    model = adapt(PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, **settings), **options)
    with pytest.raises(ValueError, match="The cache .*Prefix tuning of PEFT is not supported. Use LoRA instead."):
        model(**BATCH)
    with pytest.raises((TypeError, ValueError), match="refix tuning of PEFT.* [uU]se LoRA instead."):
        model.generate(input_ids=BATCH["input_ids"], max_new_tokens=2)


@wants_prompts
@pytest.mark.parametrize("options", [{}, PREFIX, PREFIX | {"weight_sharing": "tied"}], ids=["paper", "prefix", "tied"])
def test_prompt_tuning_puts_its_prompt_before_the_source(options):
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=1)
    model = adapt(config, **options)
    mask = torch.ones_like(BATCH["input_ids"])
    mask[1, 6:] = 0
    base, prompt = tiny_model(**options), model.get_prompt(2)
    expected = logits_of(
        base,
        inputs_embeds=torch.cat([prompt, base.get_input_embeddings()(BATCH["input_ids"])], dim=1),
        attention_mask=torch.cat([mask.new_ones(2, 4), mask], dim=1),
        decoder_input_ids=BATCH["decoder_input_ids"],
    )
    assert_close(logits_of(model, attention_mask=mask, **BATCH), expected)
    assert (expected - logits_of(base, attention_mask=mask, **BATCH)).abs().max() > 0.1


class TestOfTransformers:
    """`model.add_adapter` of Transformers."""

    @pytest.fixture(autouse=True)
    def any_peft(self, monkeypatch):
        monkeypatch.setattr(transformers_peft, "MIN_PEFT_VERSION", "0.18.0")

    def test_trained_tokens_start_as_the_base_and_load(self, tmp_path):
        tiny_model().save_pretrained(tmp_path / "base")
        model = load(tmp_path / "base")
        model.add_adapter(lora(trainable_token_indices=TOKENS))
        assert_close(logits_of(model.eval(), **BATCH), logits_of(tiny_model(), **BATCH))
        move(model)
        expected = logits_of(model, **BATCH)
        model.save_pretrained(tmp_path / "adapter")
        loaded = load(tmp_path / "base")
        loaded.load_adapter(str(tmp_path / "adapter"))
        assert_close(logits_of(loaded.eval(), **BATCH), expected)

    def test_an_adapter_of_one_of_the_modules_that_share_a_weight_is_refused(self):
        model = tiny_model()
        model.add_adapter(lora(target_modules=["lm_head"]))
        with pytest.raises(ValueError, match="A PEFT adapter changes lm_head.weight"):
            model(**BATCH)
