"""ModernBERT: ModernBERT, mmBERT and the encoders of Ettin."""

from transformers import ModernBertConfig

from modeling_xlm_swcm import XLMSWCMModernConfig
from modeling_xlm_swcm.checkpoints.family import EncoderFamily, MaskedLMHead


# Modules of an encoder layer. A prefix decoder layer has the same modules.
MODULES = ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")

CONFIG_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_activation"),
    *("max_position_embeddings", "initializer_range", "initializer_cutoff_factor", "norm_eps", "norm_bias"),
    *("attention_bias", "attention_dropout", "layer_types", "rope_parameters", "local_attention"),
    *("embedding_dropout", "mlp_bias", "mlp_dropout", "classifier_bias", "classifier_activation"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)

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
    decoder_modules={"prefix": {module: module for module in MODULES}},
    config_class=XLMSWCMModernConfig,
    config_fields={name: name for name in CONFIG_FIELDS},
    activation="hidden_activation",
    has_absolute_positions=False,
    has_positions_from_zero=True,
    # Old files have the fields of RoPE and of the local layers under other names.
    modernise=lambda config: ModernBertConfig.from_dict(config).to_dict(),
)
