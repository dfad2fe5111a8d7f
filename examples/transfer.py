"""Measure cross-lingual transfer: one language has many examples, the others a few or none (Su et al., ACL 2025).

    python examples/transfer.py --task summarization --model_name_or_path outputs/model --lang_column lang \
        --high_resource zh --samples 0 100 500 --train_file train.jsonl --test_file test.jsonl --output_dir outputs/zh

The script fine-tunes a new model for each number in `--samples`. It trains on all examples of the high-resource
language, and on this number of examples of each other language. A larger sample contains all smaller samples. The
script scores each model on all languages of the test file. It writes `transfer.md`, `transfer.json`, `transfer.png`
and a folder for each model. With `--resume_from_checkpoint last` an experiment that was stopped continues. All options
of finetune.py work too, except `--push_to_hub`.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.files import print_output
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments
from modeling_xlm_swcm.training.scripts import report_errors
from modeling_xlm_swcm.training.transfer import TransferArguments, transfer, write_transfer


def main():
    with report_errors():
        parsed = parse_arguments(ModelArguments, FinetuneDataArguments, TransferArguments, TrainingArguments)
        scores, metric = transfer(*parsed)
        _, _, transfer_args, args = parsed
        if args.process_index == 0:
            table = write_transfer(scores, metric, transfer_args.high_resource, args.seed, Path(args.output_dir))
            Console().print(Markdown(table))
        print_output(args)


if __name__ == "__main__":
    main()
