"""Train a small XLM-R from plain text: learn a vocabulary, then train by masked language modelling.

    python examples/train_encoder.py examples/presets/encoder_small.yaml --corpus bo.txt zh.txt --output_dir OUTPUT

It takes hours on a CPU. Use it for experiments, and for languages that no encoder knows. For all other languages,
start from XLM-R or a related encoder. A plain text file has one sentence or paragraph of one language per line. Other
files need a column `text` or a column with the language code as its name. Pass a file as `bo=some/file.txt`, or start
its name with the language code (bo.news.txt). Each checkpoint is a complete encoder with its tokenizer. With
`--resume_from_checkpoint last` a run that was stopped continues.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

import modeling_xlm_swcm  # noqa: F401


# isort: split
from small_tokenizer import make_tokenizer, read_texts

from modeling_xlm_swcm.training.arguments import parse_arguments
from modeling_xlm_swcm.training.encoder import EncoderArguments, EncoderTrainingArguments, train_encoder
from modeling_xlm_swcm.training.resuming import find_checkpoint
from modeling_xlm_swcm.training.scripts import report_errors


def main():
    with report_errors():
        args, training = parse_arguments(EncoderArguments, EncoderTrainingArguments)
        checkpoint = find_checkpoint(training)
        texts = read_texts(args.corpus)
        tokenizer = make_tokenizer(args, texts, checkpoint)
        held_out = [line for lines in read_texts(args.validation).values() for line in lines]
        train_encoder(args, training, tokenizer, texts, held_out, checkpoint)


if __name__ == "__main__":
    main()
