"""Generate one line of output for each line of a file or of stdin, for example a translation or a title.

    python examples/generate.py --model_name_or_path outputs/demo/copied --source_lang zh --target_lang bo \
        --input zh.txt --output bo.txt

Lines keep their order, and empty lines stay empty. A line is translated sentence by sentence. Sentences of similar
length form a batch.
"""

# Ctrl-C also ends the script while it imports.
__interruptible__ = True

from modeling_xlm_swcm.training.arguments import parse_options
from modeling_xlm_swcm.training.generation import GenerateArguments, generate_file
from modeling_xlm_swcm.training.scripts import report_errors


def main():
    with report_errors("The output was not written."):
        generate_file(parse_options(GenerateArguments))


if __name__ == "__main__":
    main()
