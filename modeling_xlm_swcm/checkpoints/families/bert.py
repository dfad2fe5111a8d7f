"""BERT: mBERT, LaBSE, MuRIL, IndicBERT v2, multilingual E5-small and MiniLM, and most encoders of one language."""

from modeling_xlm_swcm.checkpoints.family import DROPPED, EncoderFamily, MaskedLMHead


FAMILY = EncoderFamily(
    name="BERT",
    model_types=("bert",),
    head=MaskedLMHead(
        dense="cls.predictions.transform.dense",
        layer_norm="cls.predictions.transform.LayerNorm",
        bias="cls.predictions.bias",
        projection="cls.predictions.decoder",
        uses_hidden_act=True,
    ),
    dropped=DROPPED | {r"cls\.seq_relationship\..+": "predicts whether a sentence follows another"},
    defaults={"layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2},
    has_positions_from_zero=True,
    token_types=1,
)
