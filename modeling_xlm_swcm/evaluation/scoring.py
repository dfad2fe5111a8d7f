"""Scores, faults and comparisons of the outputs of one direction."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sacrebleu.significance import PairedTest

from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.faults import find_faults
from modeling_xlm_swcm.training.metrics import make_corpus_metrics, score
from modeling_xlm_swcm.training.segmentation import words

from .systems import Outputs


# Scores for tables and the model card, by task, the main one first.
TABLE_SCORES = {
    "translation": ("chrf++", "chrf++_nfkc", "bleu", "rougeL_f", "exact_match"),
    "summarization": ("rougeL_f", "rouge1_f", "rouge2_f", "chrf++", "chrf++_nfkc"),
}
RESAMPLES = 1000
# A bootstrap of fewer texts gives meaningless intervals and p-values. With one text, all samples are equal.
MIN_TEXTS = 30


@dataclass
class ModelResult:
    """
    Results of one model for one direction.

    Attributes:
        outputs ([`Outputs`]):
            Generated texts.
        scores (`dict[str, float]`):
            Scores from 0 to 100. `chrf++_nfkc` compares texts after NFKC.
        faults (`dict[str, list[bool]]`):
            For each kind of fault, True for each text with this fault.
        intervals (`dict[str, float]`):
            Half of the 95 % confidence interval of chrF++ and BLEU (bootstrap). Empty for fewer than 30 texts.
        p_values (`dict[str, float]`):
            P-values of a paired bootstrap against the first model. Empty for the first model and for fewer than 30
            texts.
    """

    outputs: Outputs
    scores: dict[str, float]
    faults: dict[str, list[bool]]
    intervals: dict[str, float] = field(default_factory=dict)
    p_values: dict[str, float] = field(default_factory=dict)

    def count_faults(self) -> dict[str, int]:
        """Return the number of texts with each kind of fault, and the number of truncated sources."""
        counts = {fault: sum(flags) for fault, flags in self.faults.items()}
        return counts | {"truncated_source": self.outputs.truncated_sources}


@dataclass
class DirectionResult:
    """
    Results of all models for one direction.

    Attributes:
        pairs (`list[Pair]`):
            Sources and references.
        models (`dict[str, ModelResult]`):
            Results by the name of the model.
        signatures (`dict[str, str]`):
            Signatures of sacrebleu.
    """

    pairs: list[Pair]
    models: dict[str, ModelResult]
    signatures: dict[str, str]


def score_direction(pairs: list[Pair], outputs: dict[str, Outputs]) -> DirectionResult:
    """
    Score the outputs of all models for one direction, and compare each model with the first one.

    Args:
        pairs (`list[Pair]`):
            Sources and references.
        outputs (`dict[str, Outputs]`):
            Outputs by the name of the model.

    Returns:
        [`DirectionResult`]: the results.
    """
    references, sources = [pair.target for pair in pairs], [str(pair.source) for pair in pairs]
    models, signatures = {}, {}
    for name, generated in outputs.items():
        scores = score(generated.texts, references)
        signatures = {metric: str(text) for metric, text in scores.items() if metric.endswith("_signature")}
        numbers = {metric: float(value) for metric, value in scores.items() if metric not in signatures}
        numbers["chrf++_nfkc"] = score_nfkc(generated.texts, references)
        faults = find_faults(generated.texts, references, sources, generated.has_unk, generated.is_cut)
        models[name] = ModelResult(generated, numbers, faults)
    if len(pairs) >= MIN_TEXTS:
        compare(models, references)
    return DirectionResult(pairs, models, signatures)


def score_nfkc(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return chrF++ after NFKC, which ignores full-width forms and other differences that XLM-R cannot read."""
    texts = [[unicodedata.normalize("NFKC", text) for text in side] for side in (predictions, references)]
    return min(make_corpus_metrics()["chrf++"].corpus_score(texts[0], [texts[1]]).score, 100.0)


def compare(models: dict[str, ModelResult], references: Sequence[str]):
    """Add confidence intervals, and p-values of a paired bootstrap against the first model (Koehn, 2004)."""
    systems: list[tuple[str, Sequence[str]]] = [(name, result.outputs.texts) for name, result in models.items()]
    metrics = make_corpus_metrics()
    _, results = PairedTest(systems, metrics, [references], "bs", RESAMPLES)()
    # sacrebleu names its columns in the order of the metrics, after the names of the systems.
    columns: list[list[Any]] = [*results.values()][1:]
    for name, column in zip(metrics, columns, strict=True):
        for result, compared in zip(models.values(), column, strict=True):
            result.intervals[name] = float(compared.ci)
            if compared.p_value is not None:
                # sacrebleu gives equal scores the smallest p-value.
                is_equal = compared.score == column[0].score
                result.p_values[name] = 1.0 if is_equal else float(compared.p_value)


def choose_samples(result: DirectionResult, count: int) -> list[int]:
    """Return the places of `count` texts, evenly from the best to the worst output of the first model."""
    first = next(iter(result.models.values()))
    chrf = make_corpus_metrics()["chrf++"]
    texts = zip(first.outputs.texts, result.pairs, strict=True)
    ranked = [chrf.sentence_score(text, [pair.target]).score for text, pair in texts]
    order = sorted(range(len(ranked)), key=lambda place: -ranked[place])
    count = min(count, len(order))
    return [order[number * (len(order) - 1) // max(count - 1, 1)] for number in range(count)]


def describe_sample(result: DirectionResult, place: int) -> dict:
    """Return a source with its reference and the output of each model, marked as right or wrong."""
    pair = result.pairs[place]
    outputs = {}
    for name, model in result.models.items():
        text = model.outputs.texts[place]
        faults = [fault for fault, flags in model.faults.items() if flags[place]]
        outputs[name] = {"text": text, "is_right": words(text) == words(pair.target), "faults": faults}
    return {"place": pair.place, "source": pair.source, "reference": pair.target, "outputs": outputs}
