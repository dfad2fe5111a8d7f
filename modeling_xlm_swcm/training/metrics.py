"""Scores of generated text that read every script: ROUGE, chrF++, BLEU, exact match and token F1.

What counts as a word is defined in `segmentation.py`. All scores are from 0 to 100; a text scores 100 against itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer
from transformers import EvalPrediction, PreTrainedTokenizerBase

from .segmentation import segment, words


ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class WordTokenizer(BaseTokenizer):
    """`segmentation.py` under the names that rouge-score and sacrebleu call."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)

    def __call__(self, line: str) -> str:
        return " ".join(segment(line))

    def signature(self) -> str:
        return "uax29-nfkc-notsheg"


def score_rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, 2 and L, each as the mean over texts of F, precision and recall: `rougeL_f`, `rougeL_p`, `rougeL_r`.

    Two texts of the same words score 100 in all of them, also where they are too short to have a bigram.
    """
    scorer = RougeScorer(ROUGE_TYPES, tokenizer=WordTokenizer())
    rows = [
        dict.fromkeys(ROUGE_TYPES, Score(1.0, 1.0, 1.0))
        if words(prediction) == words(reference)
        else scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    parts = {"f": "fmeasure", "p": "precision", "r": "recall"}
    return {
        f"{kind}_{part}": 100.0 * mean(getattr(row[kind], name) for row in rows)
        for kind in ROUGE_TYPES
        for part, name in parts.items()
    }


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Every score of `predictions` against one reference each.

    Returns:
        `rouge1_f`, `_p`, `_r`, likewise `rouge2` and `rougeL`; `chrf++` and `bleu` over the corpus (sacrebleu), with
        their signatures as `chrf++_signature` and `bleu_signature`; `exact_match` (share of texts with the same
        words) and `token_f1`, for reading comprehension. With one segmentation for all, token F1 is ROUGE-1 F.

    Raises:
        ValueError: no text, or unequally many predictions and references.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions cannot be scored against {len(references)} references.")
    rouge = score_rouge(predictions, references)
    scores = rouge | {"token_f1": rouge["rouge1_f"]}
    scores["exact_match"] = 100.0 * mean(words(p) == words(r) for p, r in zip(predictions, references, strict=True))
    # the effective order lets texts of under four words score 100, too; where texts are longer it changes nothing
    bleu = BLEU(effective_order=True)
    bleu.tokenizer = WordTokenizer()
    bleu.tokenizer_signature = bleu.tokenizer.signature()
    for name, metric in {"chrf++": CHRF(word_order=2), "bleu": bleu}.items():
        # rounding can lift a perfect BLEU over 100
        scores[name] = min(metric.corpus_score(predictions, [references]).score, 100.0)
        scores[f"{name}_signature"] = metric.get_signature().format()
    return scores


@dataclass
class GenerationMetrics:
    """`compute_metrics` of a Seq2SeqTrainer with predict_with_generate: `score` over all texts.

    Args:
        references: the texts to compare with, in the order of the data set. By default the labels are decoded, which
            hides what the tokenizer could not read or a length limit cut off.
        groups: a name for each text, such as its language.
        names: the scores to return for all texts, and the first of them for each group as `<group>_<name>`. By default
            all numbers, for all texts.

    Attributes:
        written: the texts of the last call.
        scores: their scores, group -> `score` with its signatures; the group of all texts is "all".
    """

    tokenizer: PreTrainedTokenizerBase
    references: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    names: Sequence[str] | None = None
    written: list[str] = field(default_factory=list, init=False)
    scores: dict[str, dict[str, float | str]] = field(default_factory=dict, init=False)

    @property
    def signatures(self) -> dict[str, str]:
        """What sacrebleu says of how the scores of the last call were computed."""
        return {name: value for name, value in self.scores.get("all", {}).items() if name.endswith("_signature")}

    def decode(self, ids: np.ndarray) -> list[str]:
        """Texts of ids of shape (texts, length) that are padded with the pad token or -100."""
        ids = np.where(ids == -100, self.tokenizer.pad_token_id, ids)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        references = self.references if self.references is not None else self.decode(prediction.label_ids)
        # what several processes write is filled up to full batches
        self.written = written = self.decode(prediction.predictions)[: len(references)]
        self.scores = {"all": score(written, references)}
        for group in dict.fromkeys(self.groups or ()):
            rows = [row for row, name in enumerate(self.groups) if name == group]
            self.scores[group] = score([written[row] for row in rows], [references[row] for row in rows])
        # loggers take numbers only
        names = self.names or [name for name in self.scores["all"] if not name.endswith("_signature")]
        of_groups = {f"{group}_{names[0]}": self.scores[group][names[0]] for group in self.scores if group != "all"}
        return {name: self.scores["all"][name] for name in names} | of_groups
