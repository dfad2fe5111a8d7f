"""XLM-R, RoBERTa and CamemBERT. The model has the same layers."""

from modeling_xlm_swcm.checkpoints.family import EncoderFamily, MaskedLMHead


FAMILY = EncoderFamily(
    name="XLM-R",
    model_types=("xlm-roberta", "roberta", "camembert"),
    head=MaskedLMHead(
        dense="lm_head.dense", layer_norm="lm_head.layer_norm", bias="lm_head.bias", projection="lm_head.decoder"
    ),
    # The default of the config classes.
    defaults={"layer_norm_eps": 1e-12},
)
