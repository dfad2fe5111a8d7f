"""ModernBERT: ModernBERT, mmBERT and the encoders of Ettin."""

from transformers import ModernBertConfig

from modeling_xlm_swcm import XLMSWCMModernConfig
from modeling_xlm_swcm.checkpoints.family import EncoderFamily, MaskedLMHead
from modeling_xlm_swcm.modern_layers_xlm_swcm import MODERN_CUSTOM_LAYER_SOURCES


# Modules of an encoder layer. A prefix decoder layer has the same modules.
MODULES = ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")

CONFIG_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_activation"),
    *("max_position_embeddings", "initializer_range", "initializer_cutoff_factor", "norm_eps", "norm_bias"),
    *("attention_bias", "attention_dropout", "layer_types", "rope_parameters", "local_attention"),
    *("embedding_dropout", "mlp_bias", "mlp_dropout", "classifier_bias", "classifier_activation"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def decoder_fields(config: dict, layers: list[tuple[int, int] | None]) -> dict:
    """Give each layer of the paper's decoder the type of the layer that its self-attention copies."""
    return {"decoder_layer_types": [config["layer_types"][0 if copied is None else copied[0]] for copied in layers]}


FAMILY = EncoderFamily(
    name="ModernBERT",
    model_types=("modernbert",),
    head=MaskedLMHead(dense="head.dense", layer_norm="head.norm", bias="decoder.bias", projection="decoder"),
    dropped={r"classifier\..+": "the head of another task"},
    word_embeddings="embeddings.tok_embeddings.weight",
    embeddings={
        f"embeddings.{name}": f"model.encoder.embeddings.{name}"
        for name in ("tok_embeddings.weight", "norm.weight", "norm.bias")
    },
    final_norm="final_norm",
    layers={
        f"layers.{{}}.{module}.{parameter}": f"model.encoder.layers.{{}}.{module}.{parameter}"
        for module in MODULES
        for parameter in ("weight", "bias")
    },
    decoder_modules={"custom": MODERN_CUSTOM_LAYER_SOURCES, "prefix": {module: module for module in MODULES}},
    silent_sublayers={
        "custom": {"cross_attn": "Wo", "ffn2": "Wo"},
        "normal": {"self_attn": "Wo", "cross_attn": "Wo", "ffn": "Wo"},
    },
    has_norms_after=False,
    # The first layer reads the output of the norm of the embeddings.
    substitutes={
        f"layers.0.attn_norm.{parameter}": f"embeddings.norm.{parameter}" for parameter in ("weight", "bias")
    },
    decoder_fields=decoder_fields,
    config_class=XLMSWCMModernConfig,
    config_fields={name: name for name in CONFIG_FIELDS},
    activation="hidden_activation",
    has_absolute_positions=False,
    has_positions_from_zero=True,
    # Old files have the fields of RoPE and of the local layers under other names.
    modernise=lambda config: ModernBertConfig.from_dict(config).to_dict(),
)
