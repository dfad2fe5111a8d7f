"""Metrics of generated text in any script: ROUGE, chrF++, BLEU, exact match and token F1.

`segmentation.py` defines the words. All scores lie between 0 and 100, and a text scores 100 against itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import mean

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer
from transformers import EvalPrediction, PreTrainedTokenizerBase

from .faults import count_faults, find_cut
from .segmentation import segment, words


CUT = "cut_outputs"
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class WordTokenizer(BaseTokenizer):
    """Segmentation with the methods that rouge-score and sacrebleu call."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, for rouge-score."""
        return words(text)

    def __call__(self, line: str) -> str:
        """Return a line with spaces between words and punctuation marks, for sacrebleu."""
        return " ".join(segment(line))

    def signature(self) -> str:
        """Return the name of the segmentation in sacrebleu's signature."""
        return "uax29-nfkc-notsheg"


def score_rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """
    Compute ROUGE-1, ROUGE-2 and ROUGE-L as means over the texts.

    Two texts with the same words score 100 in all of them, even if they are too short for a bigram.

    Args:
        predictions (`Sequence[str]`):
            Generated texts.
        references (`Sequence[Sequence[str]]`):
            Texts to compare them with, one or more per prediction. The one with the highest F counts.

    Returns:
        `dict[str, float]`: F, precision and recall, for example `rougeL_f`, `rougeL_p` and `rougeL_r`.
    """
    scorer = RougeScorer(ROUGE_TYPES, tokenizer=WordTokenizer())
    rows = [
        dict.fromkeys(ROUGE_TYPES, Score(1.0, 1.0, 1.0))
        if is_exact(prediction, texts)
        else scorer.score_multi(texts, prediction)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    parts = {"f": "fmeasure", "p": "precision", "r": "recall"}
    return {
        f"{kind}_{part}": 100.0 * mean(getattr(row[kind], name) for row in rows)
        for kind in ROUGE_TYPES
        for part, name in parts.items()
    }


def is_exact(prediction: str, references: Sequence[str]) -> bool:
    """Return True if a text has the same words as one of its references."""
    return words(prediction) in map(words, references)


def make_corpus_metrics() -> dict[str, Metric]:
    """Return sacrebleu's metrics over a corpus: chrF++, and BLEU with the segmentation of this package."""
    # The effective order lets texts of under four words score 100. It changes nothing for longer texts.
    bleu = BLEU(effective_order=True)
    bleu.tokenizer = WordTokenizer()
    bleu.tokenizer_signature = bleu.tokenizer.signature()
    return {"chrf++": CHRF(word_order=2), "bleu": bleu}


def score(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float | str]:
    """
    Compute all metrics of `predictions`. Token F1 equals ROUGE-1 F here.

    Args:
        predictions (`Sequence[str]`):
            Generated texts.
        references (`Sequence[str | Sequence[str]]`):
            Text to compare each prediction with, or all right texts. The best of them counts.

    Returns:
        `dict[str, float | str]`:

        - `rouge1_f`, `rouge1_p`, `rouge1_r`, and the same for `rouge2` and `rougeL`,
        - `chrf++` and `bleu` over the corpus (sacrebleu), with `chrf++_signature` and `bleu_signature`,
        - `exact_match` (share of texts with the same words) and `token_f1`, for reading comprehension.

    Raises:
        ValueError: if there are no texts, or not one reference per prediction.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("predictions and references must be lists of texts (got one text). Put the text in a list.")
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"Cannot score {len(predictions)} predictions against {len(references)} references. Pass at least one "
            "prediction, and one reference for each prediction."
        )
    right = [[texts] if isinstance(texts, str) else texts for texts in references]
    rouge = score_rouge(predictions, right)
    scores = rouge | {"token_f1": rouge["rouge1_f"]}
    scores["exact_match"] = 100.0 * mean(map(is_exact, predictions, right))
    for name, metric in make_corpus_metrics().items():
        # Rounding can lift a perfect BLEU above 100.
        scores[name] = min(metric.corpus_score(predictions, [*zip_longest(*right)]).score, 100.0)
        scores[f"{name}_signature"] = metric.get_signature().format()
    return scores


@dataclass
class GenerationMetrics:
    """
    Score generated texts: the `compute_metrics` of a Seq2SeqTrainer with `predict_with_generate`.

    It also counts faults of the texts, for example `cut_outputs`: texts that reached the maximum length.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that decodes the generated ids.
        references (`Sequence[str | Sequence[str]]`, *optional*):
            Texts to compare with, in the order of the dataset, as [`score`] takes them. By default the labels are
            decoded, which hides unknown and truncated parts of a text.
        groups (`Sequence[str]`, *optional*):
            Name of a group for each text, for example its language.
        names (`Sequence[str]`, *optional*):
            Metrics to return for all texts, besides `cut_outputs`. The first metric is also returned per group as
            `<group>_<name>`. By default all numeric metrics are returned, for all texts only.

    Attributes:
        written (`list[str]`): texts of the last call.
        scores (`dict[str, dict]`): all metrics of the last call per group. The group of all texts is "all".
    """

    tokenizer: PreTrainedTokenizerBase
    references: Sequence[str | Sequence[str]] | None = None
    groups: Sequence[str] | None = None
    names: Sequence[str] | None = None
    written: list[str] = field(default_factory=list, init=False)
    scores: dict[str, dict[str, float | str]] = field(default_factory=dict, init=False)

    @property
    def signatures(self) -> dict[str, str]:
        """Signatures of sacrebleu for the scores of the last call."""
        return {name: value for name, value in self.scores.get("all", {}).items() if name.endswith("_signature")}

    @property
    def metric_names(self) -> list[str]:
        """Names of the scores that a call returns. A higher score is better."""
        names = list(self.names or [name for name in score(["a"], ["a"]) if not name.endswith("_signature")])
        return names + [f"{group}_{names[0]}" for group in dict.fromkeys(self.groups or ())]

    def _fill(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids == -100, self.tokenizer.pad_token_id, ids)

    def decode(self, ids: np.ndarray) -> list[str]:
        """Decode ids of shape (texts, length), padded with the pad token or -100."""
        return self.tokenizer.batch_decode(self._fill(ids), skip_special_tokens=True)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics that a trainer logs."""
        references = self.references if self.references is not None else self.decode(prediction.label_ids)
        # Several processes pad the predictions to full batches.
        ids = self._fill(prediction.predictions[: len(references)])
        self.written = self.decode(ids)
        groups = self.groups if self.groups is not None else ["all"] * len(references)
        rows_of = {name: [row for row, group in enumerate(groups) if group == name] for name in dict.fromkeys(groups)}
        faults = {name: self._count_faults(rows, references, ids) for name, rows in rows_of.items()}
        # The script of a language is known only within its group.
        of_all = {fault: sum(counts[fault] for counts in faults.values()) for fault in [*faults.values()][0]}
        self.scores = {"all": self._score(range(len(references)), references) | of_all}
        for group in dict.fromkeys(self.groups or ()):
            self.scores[group] = self._score(rows_of[group], references) | faults[group]
        # Loggers accept only numbers.
        names = self.names or [name for name in self.scores["all"] if not name.endswith("_signature")]
        of_groups = {f"{group}_{names[0]}": self.scores[group][names[0]] for group in self.scores if group != "all"}
        return {name: self.scores["all"][name] for name in [*names, CUT]} | of_groups

    def _score(self, rows: Sequence[int], references: Sequence[str | Sequence[str]]) -> dict[str, float | str]:
        return score([self.written[row] for row in rows], [references[row] for row in rows])

    def _count_faults(
        self, rows: list[int], references: Sequence[str | Sequence[str]], ids: np.ndarray
    ) -> dict[str, int]:
        """Count the texts of one language with each kind of fault."""
        counts = count_faults(
            [self.written[row] for row in rows],
            [text if isinstance(text := references[row], str) else text[0] for row in rows],
            has_unk=(ids[rows] == self.tokenizer.unk_token_id).any(axis=1).tolist(),
            is_cut=find_cut(ids[rows], [self.tokenizer.eos_token_id]),
        )
        return {f"{fault}_outputs": count for fault, count in counts.items()}
