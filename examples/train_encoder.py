"""A small XLM-R from plain text: a vocabulary, then masked language modelling, on a CPU in hours.

    python examples/train_encoder.py examples/presets/encoder_small.yaml --corpus bo.txt zh.txt --output_dir OUTPUT

For experiments, and for languages that no encoder knows; who has XLM-R or a kin of it begins with that. Each file
holds text of one language, a sentence or paragraph a line, as `bo=some/file.txt` or named by its language. Checkpoints
are whole encoders with their tokenizer, and stay: stages of the same encoder. With `--resume_from_checkpoint last` a
run that was stopped goes on.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import Dataset, interleave_datasets
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.trainer_utils import IntervalStrategy

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.reading import load_pretrained
from modeling_xlm_swcm.training.arguments import check_counts, parse_arguments
from modeling_xlm_swcm.training.checkpoints import ResumableTrainer, TrainingError, find_checkpoint
from modeling_xlm_swcm.training.results import plot_history
from modeling_xlm_swcm.vocabulary.corpus import Corpus, read_corpora
from modeling_xlm_swcm.vocabulary.pieces import learnt_pieces


SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


@dataclass
class EncoderArguments:
    corpus: list[str] = field(metadata={"help": "text to learn from"})
    validation: list[str] = field(default_factory=list, metadata={"help": "text that is held out"})
    tokenizer_name: str | None = field(default=None, metadata={"help": "folder or Hub id; else one is learnt"})
    vocab_size: int = field(default=12_000, metadata={"help": "pieces, without <mask>"})
    hidden_size: int = field(default=160, metadata={"help": "FFNs have four times as much"})
    num_hidden_layers: int = field(default=6, metadata={"help": "layers"})
    num_attention_heads: int = field(default=5, metadata={"help": "heads"})
    dropout: float = field(default=0.1, metadata={"help": "of hidden states and attention; 0 is faster"})
    max_length: int = field(default=128, metadata={"help": "tokens; longer lines are cut into several rows"})
    mask_share: float = field(default=0.2, metadata={"help": "tokens to predict"})
    sampling_exponent: float = field(
        default=0.3, metadata={"help": "languages are drawn by their share to this power"}
    )

    def __post_init__(self):
        check_counts(self, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"--hidden_size {self.hidden_size} cannot be divided among --num_attention_heads "
                f"{self.num_attention_heads}; give a multiple of it."
            )
        if not 0 < self.mask_share < 1:
            raise ValueError(f"--mask_share must be between 0 and 1; got {self.mask_share}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1; got {self.dropout}.")
        if self.max_length < 3:
            raise ValueError(
                f"--max_length must be at least 3, for a token between <s> and </s>; got {self.max_length}."
            )


def train_tokenizer(texts: list[str], vocab_size: int, max_length: int) -> XLMRobertaTokenizer:
    """A Unigram vocabulary with XLM-R's layout of ids: specials first, `<mask>` last."""
    tokenizer = Tokenizer(models.Unigram())
    # no normaliser: an XLM-R tokenizer would be saved without it
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        seed_size=10 * vocab_size,
        special_tokens=SPECIAL_TOKENS,
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the library has no other
        raise TrainingError(f"--vocab_size {vocab_size} is too little for the characters of the text.") from error
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocab = [*special, *learnt_pieces(tokenizer, SPECIAL_TOKENS), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=max_length)


class XLMRobertaForMaskedLM(transformers.XLMRobertaForMaskedLM):
    """Upstream's, and saved under its name; logits are computed where a token is to be predicted, and nowhere else."""

    accepts_loss_kwargs = True  # num_items_in_batch

    def forward(self, input_ids, attention_mask, labels, num_items_in_batch=None):
        hidden_states = self.roberta(input_ids, attention_mask=attention_mask).last_hidden_state
        masked = labels != -100
        logits = self.lm_head(hidden_states[masked]).float()
        total = torch.nn.functional.cross_entropy(logits, labels[masked], reduction="sum")
        return MaskedLMOutput(loss=total / (masked.sum() if num_items_in_batch is None else num_items_in_batch))


def read_texts(files: list[str], progress: str) -> dict[str, list[str]]:
    """Language -> lines."""
    texts = {}
    for language, lines in read_corpora([Corpus.named(name) for name in files], progress):
        texts.setdefault(language, []).extend(lines)
    return texts


def make_rows(tokenizer: XLMRobertaTokenizer, lines: list[str], max_length: int) -> Dataset:
    rows = tokenizer(lines, truncation=True, max_length=max_length, return_overflowing_tokens=True)
    return Dataset.from_dict({"input_ids": rows["input_ids"]})


def sample(texts: dict[str, list[str]], size: int, exponent: float) -> list[str]:
    """Lines for a vocabulary, up to `size` characters of each language, or less by its share."""
    characters = {language: sum(map(len, lines)) for language, lines in texts.items()}
    largest, sampled = max(characters.values()), []
    for language, lines in texts.items():
        wanted = size * (characters[language] / largest) ** exponent
        step = max(1, round(characters[language] / wanted))
        sampled += lines[::step]
    return sampled


def train(args: EncoderArguments, training: TrainingArguments):
    checkpoint = find_checkpoint(training)
    set_seed(training.seed)
    texts = read_texts(args.corpus, "Reading")
    if name := checkpoint or args.tokenizer_name:
        tokenizer = load_pretrained(XLMRobertaTokenizer, name, model_max_length=args.max_length)
    else:
        tokenizer = train_tokenizer(sample(texts, 500_000, args.sampling_exponent), args.vocab_size, args.max_length)
    parts = [make_rows(tokenizer, lines, args.max_length) for lines in texts.values()]
    shares = torch.tensor([len(part) for part in parts]).double() ** args.sampling_exponent
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
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
    held_out = []
    if args.validation:
        held_out = [line for lines in read_texts(args.validation, "Reading").values() for line in lines]
    else:
        training.eval_strategy = IntervalStrategy.NO
    trainer = ResumableTrainer(
        XLMRobertaForMaskedLM(config),
        training,
        train_dataset=interleave_datasets(
            parts, (shares / shares.sum()).tolist(), seed=training.seed, stopping_strategy="all_exhausted"
        ),
        eval_dataset=make_rows(tokenizer, held_out, args.max_length) if held_out else None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=args.mask_share, seed=training.seed),
        processing_class=tokenizer,
    )
    trainer.settings = vars(args)
    trainer.train(resume_from_checkpoint=checkpoint)
    if held_out and training.eval_strategy == IntervalStrategy.NO:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    plot_history(trainer.state.log_history, Path(training.output_dir) / "training.png")


def main():
    args, training = parse_arguments(EncoderArguments, TrainingArguments)
    try:
        train(args, training)
    except (ConversionError, TrainingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
