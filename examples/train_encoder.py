"""Train a small XLM-R from plain text: learn a vocabulary, then train by masked language modelling.

    python examples/train_encoder.py examples/presets/encoder_small.yaml --corpus bo.txt zh.txt --output_dir OUTPUT

It takes hours on a CPU. Use it for experiments, and for languages that no encoder knows. For all other languages start
from XLM-R or a related encoder. Each file holds text of one language with a sentence or paragraph per line, or has a
column with the name of the language or `text`. Pass it as `bo=some/file.txt`, or name the file by its language. Each
checkpoint is a complete encoder with its tokenizer. With `--resume_from_checkpoint last` a run that was stopped
continues.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

import modeling_xlm_swcm  # noqa: F401


# isort: split
from small_tokenizer import make_tokenizer, read_texts

from modeling_xlm_swcm.training.arguments import parse_arguments
from modeling_xlm_swcm.training.checkpoints import find_checkpoint
from modeling_xlm_swcm.training.encoder import EncoderArguments, EncoderTrainingArguments, train_encoder
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
