"""Pretrain a converted model on denoising and translation (Su et al., ACL 2025).

    python examples/pretrain.py examples/presets/one_gpu.yaml --model_name_or_path MODEL --data corpora.yaml \
        --output_dir OUTPUT

The corpora file lists corpora under `train` and `validation`. The class `CorpusConfig` in
`modeling_xlm_swcm/training/mixture.py` describes the fields of a corpus:

    train:
      - {path: bo/*.txt.gz, language: bo}
      - {path: pairs.zh-bo.tsv, languages: [zh, bo]}
    validation:
      - {path: bo.held_out.txt, language: bo}
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments, parse_arguments
from modeling_xlm_swcm.training.pretraining import PretrainDataArguments, pretrain
from modeling_xlm_swcm.training.scripts import report_errors


def main():
    with report_errors():
        pretrain(*parse_arguments(ModelArguments, PretrainDataArguments, TrainingArguments))


if __name__ == "__main__":
    main()
