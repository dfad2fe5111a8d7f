"""Training of a small XLM-R encoder from plain text, by masked language modelling."""

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from datasets import Dataset, interleave_datasets
from transformers import (
    DataCollatorForLanguageModeling,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.trainer_utils import IntervalStrategy

from modeling_xlm_swcm import XLMSWCMTokenizer

from .arguments import CheckedOptions, check_counts
from .checkpoints import ResumableTrainer
from .files import print_output
from .option_help import HUB_OPTIONS
from .plots import plot_history
from .pretraining import check_exponent, check_without_evaluation
from .rows import AS_TEXT


NO_UPLOAD = (
    "train_encoder.py does not support --push_to_hub and its options. Convert the encoder, and push the model with "
    "xlm-swcm push FOLDER REPO."
)


@dataclass
class EncoderArguments:
    """Options of a small encoder: text, sizes and masking."""

    corpus: list[str] = field(
        metadata={
            "help": "Text files with one sentence or paragraph per line. Other formats need a column text, or a "
            "column with the language code as its name. The language code stands before the path (bo=FILE) or in the "
            "file name (bo.news.txt)."
        }
    )
    validation: list[str] = field(default_factory=list, metadata={"help": "Validation text: files as in --corpus."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer: a folder or Hub id. Default: learn a vocabulary from the text."}
    )
    vocab_size: int = field(default=12_000, metadata={"help": "Number of tokens to learn, without <mask>."})
    hidden_size: int = field(
        default=160, metadata={"help": "Size of the hidden states. Feed-forward layers are four times as wide."}
    )
    num_hidden_layers: int = field(default=6, metadata={"help": "Number of layers."})
    num_attention_heads: int = field(default=5, metadata={"help": "Number of attention heads per layer."})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout of hidden states and attention weights. 0 trains faster."}
    )
    max_length: int = field(
        default=128, metadata={"help": "Maximum length of a row in tokens. Longer lines become several rows."}
    )
    mask_share: float = field(default=0.2, metadata={"help": "Share of the tokens to predict, between 0 and 1."})
    sampling_exponent: float = field(
        default=0.3,
        metadata={"help": "Exponent on the share of each language, between 0 (sample equally) and 1 (by size)."},
    )

    def __post_init__(self):
        check_counts(self, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"--hidden_size must be a multiple of --num_attention_heads (got {self.hidden_size} and "
                f"{self.num_attention_heads}). Change one of them."
            )
        if not 0 < self.mask_share < 1:
            raise ValueError(
                f"--mask_share must be above 0 and below 1 (got {self.mask_share}). Use, for example, 0.2."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"--dropout must be at least 0 and below 1 (got {self.dropout}). Use a share, for example 0.1."
            )
        check_exponent(self.sampling_exponent)
        if self.max_length < 3:
            raise ValueError(
                f"--max_length must be at least 3, for <s>, one token and </s> (got {self.max_length}). Use a larger "
                "number."
            )


@dataclass
class EncoderTrainingArguments(CheckedOptions, transformers.TrainingArguments):
    """[`~transformers.TrainingArguments`] with checks of the options."""

    unsupported: ClassVar[dict[str, str]] = CheckedOptions.unsupported | dict.fromkeys(HUB_OPTIONS, NO_UPLOAD)

    def __post_init__(self):
        """Check the options before Transformers reads them."""
        if self.push_to_hub:
            raise ValueError(NO_UPLOAD)
        super().__post_init__()


class XLMRobertaForMaskedLM(transformers.XLMRobertaForMaskedLM):
    """XLM-R that computes logits only at masked tokens. It is saved under the name of Transformers' class."""

    # The loss takes num_items_in_batch.
    accepts_loss_kwargs = True

    def forward(self, input_ids, attention_mask, labels, num_items_in_batch=None):
        """Return the loss of the masked tokens. The label -100 marks all other tokens."""
        hidden_states = self.roberta(input_ids, attention_mask=attention_mask).last_hidden_state
        masked = labels != -100
        logits = self.lm_head(hidden_states[masked]).float()
        total = torch.nn.functional.cross_entropy(logits, labels[masked], reduction="sum")
        # A batch of short rows can have no masked token.
        count = masked.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return MaskedLMOutput(loss=total / count.clamp(min=1))


class MaskingCollator(DataCollatorForLanguageModeling):
    """Mask tokens at random. The same batch and seed give the same masks, also in a resumed run and an evaluation."""

    def __call__(self, features, return_tensors=None):
        """Return a batch of rows with masked tokens."""
        rows = str([list(feature["input_ids"]) for feature in features])
        self.generator = torch.Generator().manual_seed(zlib.crc32(rows.encode(), self.seed))
        self._generator_pid = os.getpid()
        return super().__call__(features, return_tensors)


def make_rows(tokenizer: XLMRobertaTokenizer, lines: list[str], max_length: int) -> Dataset:
    """Encode lines as rows of at most `max_length` tokens. Special tokens that occur in a line are ordinary text."""
    # The tokenizer of XLM-R reads them as special tokens, also with `split_special_tokens`.
    reader = XLMSWCMTokenizer(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    options = {"truncation": True, "max_length": max_length, "return_overflowing_tokens": True}
    rows = reader(lines, **options, **AS_TEXT)
    return Dataset.from_dict({"input_ids": rows["input_ids"]})


def sample_lines(texts: dict[str, list[str]], size: int, exponent: float) -> list[str]:
    """
    Sample lines for learning a vocabulary.

    Args:
        texts (`dict[str, list[str]]`):
            Lines of each language.
        size (`int`):
            Characters to sample of the largest language.
        exponent (`float`):
            Exponent on the share of the other languages.

    Returns:
        `list[str]`: lines of all languages.
    """
    characters = {language: sum(map(len, lines)) for language, lines in texts.items()}
    largest, sampled = max(characters.values()), []
    for language, lines in texts.items():
        wanted = size * (characters[language] / largest) ** exponent
        step = max(1, round(characters[language] / wanted))
        sampled += lines[::step]
    return sampled


def train_encoder(
    args: EncoderArguments,
    training: EncoderTrainingArguments,
    tokenizer: XLMRobertaTokenizer,
    texts: dict[str, list[str]],
    held_out: list[str],
    checkpoint: str | None = None,
):
    """
    Train an encoder, and write it with its tokenizer and a plot of its losses to the output folder.

    Args:
        args ([`EncoderArguments`]):
            Sizes and masking.
        training ([`EncoderTrainingArguments`]):
            Training arguments.
        tokenizer ([`~transformers.XLMRobertaTokenizer`]):
            Tokenizer of the encoder.
        texts (`dict[str, list[str]]`):
            Training lines of each language.
        held_out (`list[str]`):
            Validation lines. May be empty.
        checkpoint (`str`, *optional*):
            Checkpoint to resume from.
    """
    set_seed(training.seed)
    if not held_out:
        training.eval_strategy = IntervalStrategy.NO
        check_without_evaluation(training, "Pass --validation FILE.")
    trainer = ResumableTrainer(
        XLMRobertaForMaskedLM(make_config(args, len(tokenizer))),
        training,
        train_dataset=mix_languages(args, tokenizer, texts, training.seed),
        eval_dataset=make_rows(tokenizer, held_out, args.max_length) if held_out else None,
        data_collator=MaskingCollator(tokenizer, mlm_probability=args.mask_share, seed=training.seed),
        processing_class=tokenizer,
    )
    trainer.settings = vars(args)
    trainer.train(resume_from_checkpoint=checkpoint)
    if held_out and training.eval_strategy == IntervalStrategy.NO:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    plot_history(trainer.state.log_history, Path(training.output_dir) / "training.png")
    print_output(training)


def make_config(args: EncoderArguments, vocab_size: int) -> XLMRobertaConfig:
    """Return the config of the encoder."""
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=4 * args.hidden_size,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        max_position_embeddings=args.max_length + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def mix_languages(
    args: EncoderArguments, tokenizer: XLMRobertaTokenizer, texts: dict[str, list[str]], seed: int
) -> Dataset:
    """Mix the rows of all languages, each sampled by its share to the power of `sampling_exponent`."""
    parts = [make_rows(tokenizer, lines, args.max_length) for lines in texts.values()]
    shares = torch.tensor([len(part) for part in parts]).double() ** args.sampling_exponent
    probabilities = (shares / shares.sum()).tolist()
    return interleave_datasets(parts, probabilities, seed=seed, stopping_strategy="all_exhausted")
