"""Metrics of `modeling_xlm_swcm.training.metrics` for the `evaluate` library, without network access.

evaluate.load("modeling_xlm_swcm/training/text_metrics").compute(predictions=[...], references=[...])
"""

import evaluate
from datasets import Features, Value

from modeling_xlm_swcm.training.metrics import score


class TextMetrics(evaluate.Metric):
    """The scores of [`~modeling_xlm_swcm.training.metrics.score`] as a metric of `evaluate`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="ROUGE, chrF++, BLEU, exact match and token F1 for text in any script.",
            citation="",
            inputs_description=score.__doc__,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(self, predictions, references):
        return score(predictions, references)
