"""ELECTRA, which has the layers of BERT. Generators have a masked-LM head, discriminators have none."""

from dataclasses import replace

from modeling_xlm_swcm.checkpoints.families.bert import FAMILY as BERT
from modeling_xlm_swcm.checkpoints.family import DROPPED, MaskedLMHead


def find_problem(config: dict) -> str | None:
    """Return why an ELECTRA cannot be converted, or `None`."""
    embedding_size, hidden_size = config.get("embedding_size", 128), config.get("hidden_size")
    if embedding_size == hidden_size:
        return None
    return (
        f"its embedding_size is {embedding_size} and its hidden_size is {hidden_size}, but the model has no "
        "projection between them. Use an ELECTRA with equal sizes"
    )


FAMILY = replace(
    BERT,
    name="ELECTRA",
    model_types=("electra",),
    head=MaskedLMHead(
        dense="generator_predictions.dense",
        layer_norm="generator_predictions.LayerNorm",
        bias="generator_lm_head.bias",
        projection="generator_lm_head",
    ),
    dropped=DROPPED | {r"discriminator_predictions\..+": "predicts which tokens were replaced"},
    find_problem=find_problem,
)
