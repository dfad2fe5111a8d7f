"""Fine-tune on Chinese and Kazakh titles, with few Kazakh examples.

    python examples/recipes/titles.py --data DATA --encoder ENCODER --output_dir OUTPUT

DATA has `titles/zh.csl.jsonl` (abstracts of papers), `titles/zh.cmrc.jsonl` and `titles/kk.kazqad.jsonl` (passages of
an encyclopaedia). These files have the columns lang, split, text and title. DATA also has plain text in `mono/`
(example: `mono/kk.news.txt`). The model is pretrained on the plain text. It is then fine-tuned on all Chinese titles
and 0, 100 or 400 Kazakh titles, and scored on the test splits of both languages. Long sources are truncated. All
options of `transfer.py` work too.
"""

import json

from steps import RecipeArguments, make_model, parse_recipe, run_script


LANGUAGES = ["zh", "kk"]
SOURCES = ["zh.csl.jsonl", "zh.cmrc.jsonl", "kk.kazqad.jsonl"]


def write_split(args: RecipeArguments, split: str) -> str:
    """Write the rows of a split to one file, and return it."""
    path = args.output_dir / f"titles.{split}.jsonl"
    text = "".join((args.data / "titles" / name).read_text(encoding="utf-8") for name in SOURCES)
    lines = [line for line in text.rstrip("\n").split("\n") if json.loads(line)["split"] == split]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def main():
    args, rest = parse_recipe(__doc__, [f"titles/{name}" for name in SOURCES])
    model = make_model(args, LANGUAGES, parallel=[], validation=[])
    run_script(
        "transfer.py",
        *("--task", "summarization", "--lang_column", "lang", "--summary_column", "title"),
        *("--high_resource", "zh", "--samples", "0", "100", "400"),
        *("--train_file", write_split(args, "train"), "--test_file", write_split(args, "test")),
        *("--model_name_or_path", model, "--output_dir", args.output_dir / "titles", "--skip_bad_rows"),
        *("--max_source_length", args.max_length, "--max_target_length", min(args.max_length, 64)),
        *("--truncate_sources", "--max_steps", args.steps),
        *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "32"),
        *("--learning_rate", args.learning_rate),
        *("--logging_steps", "20", "--save_strategy", "no", *args.shared_options(), *rest),
    )


if __name__ == "__main__":
    main()
