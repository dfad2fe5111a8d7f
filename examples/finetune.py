"""Fine-tune a model for summarization, translation or question answering, in one language or several.

    python examples/finetune.py --task translation --model_name_or_path outputs/demo/copied \
        --source_lang zh --target_lang bo kk --train_file train.tsv --validation_file dev.tsv --test_file test.tsv \
        --max_source_length 126 --max_target_length 126 --output_dir outputs/zh-bo-kk \
        --do_train --do_eval --do_predict --predict_with_generate
    python examples/finetune.py settings.yaml

The script takes the main options of Transformers' run_summarization.py and run_translation.py, also from a YAML or
JSON file. `--help` lists the options. Files are .jsonl, .json, .csv, .tsv or .parquet, also compressed (example:
train.tsv.gz). To read a Hub dataset, pass --dataset_name instead of files. The script uses the language tags of each
row. It scores each language, or each translation direction, separately.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.finetuning import finetune
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments
from modeling_xlm_swcm.training.scripts import report_errors


def main():
    with report_errors():
        finetune(*parse_arguments(ModelArguments, FinetuneDataArguments, TrainingArguments))


if __name__ == "__main__":
    main()
