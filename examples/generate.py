"""Generate one line of output for each line of a file or of stdin: a translation, a title, or what the model learnt.

    python examples/generate.py --model_name_or_path outputs/demo/copied --source_lang zh --target_lang bo \
        --input zh.txt --output bo.txt

Lines keep their order, and empty lines stay empty. Lines of similar length form a batch.
"""

import sys

from transformers import HfArgumentParser

from modeling_xlm_swcm.checkpoints.errors import first_line
from modeling_xlm_swcm.training.arguments import HelpFormatter, check_options
from modeling_xlm_swcm.training.generation import GenerateArguments, generate_file


def main():
    try:
        parser = HfArgumentParser(GenerateArguments, formatter_class=HelpFormatter)
        check_options(parser, sys.argv[1:])
        (args,) = parser.parse_args_into_dataclasses()
        generate_file(args)
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} does not exist. Check the path.")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {first_line(error)}")


if __name__ == "__main__":
    main()
