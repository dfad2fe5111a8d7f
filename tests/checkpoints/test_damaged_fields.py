"""Commands succeed, or name the fault, for every field of a checkpoint's JSON files with a wrong kind or value."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.encoders import SENTENCES, write_shards

from modeling_xlm_swcm.checkpoints import ConversionError, inspect
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.hub.push import collect_files
from modeling_xlm_swcm.vocabulary import trim


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([-1, 2**31, 2**63, 10**18, -(10**18), 0.0, 0.5, -1.0, 1e300, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "x", "4", "float16", "int8", "gelu", "<s>", "<zh>", "../x", "/etc/passwd", "a/b--c.D", "\ud800"]
    ),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("content"), inner, max_size=2)
    ),
    max_leaves=4,
)
DELETED = object()

# Examples for each command. A longer search: FUZZ_EXAMPLES=200 pytest --timeout 0 FILE
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))

# Fields that the files of the tests do not have.
OTHER_FIELDS = {
    "config.json": (
        *(
            "auto_map",
            "quantization_config",
            "position_embedding_type",
            "rope_scaling",
            "tokenizer_class",
            "layer_types",
        ),
        *(
            "dtype",
            "torch_dtype",
            "attn_implementation",
            "problem_type",
            "id2label",
            "label2id",
            "num_labels",
            "decoder",
        ),
        *(
            "_name_or_path",
            "name_or_path",
            "text_config",
            "is_composition",
            "chunk_size_feed_forward",
            "prefix_token_id",
        ),
        *(
            "num_beams",
            "suppress_tokens",
            "begin_suppress_tokens",
            "sep_token_id",
            "mask_token_id",
            "task_specific_params",
        ),
        *("base_model_tp_plan", "gradient_checkpointing", "output_attentions", "return_dict", "per_layer_config"),
    ),
    "generation_config.json": (
        *(
            "num_beams",
            "forced_bos_token_id",
            "suppress_tokens",
            "bad_words_ids",
            "sequence_bias",
            "cache_implementation",
        ),
        *("watermarking_config", "compile_config", "stop_strings", "temperature", "do_sample", "custom_generate"),
        *("max_new_tokens", "begin_suppress_tokens", "forced_eos_token_id", "assistant_confidence_threshold", "dtype"),
    ),
    "tokenizer_config.json": (
        *(
            "tokenizer_file",
            "vocab_file",
            "merges_file",
            "gguf_file",
            "vocab",
            "merges",
            "fast_tokenizer_files",
            "name_or_path",
        ),
        *("added_tokens_decoder", "additional_special_tokens", "chat_template", "init_inputs", "tokenizer_object"),
        *(
            "model_max_length",
            "padding_side",
            "truncation_side",
            "split_special_tokens",
            "clean_up_tokenization_spaces",
        ),
        *("auto_map", "languages", "src_lang", "tgt_lang", "extra_special_tokens", "model_input_names", "use_fast"),
    ),
    "model.safetensors.index.json": (),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "bo.txt"
    path.write_text("\n".join(SENTENCES * 3), encoding="utf-8")
    return str(path)


def print_inspection(folder: Path, output: Path, text: str):
    with (output.parent / "printed.txt").open("w", encoding="utf-8") as file:
        inspect(str(folder)).print(Console(file=file))


COMMANDS: dict[str, Callable[[Path, Path, str], object]] = {
    "convert": lambda folder, output, text: convert(folder, output, languages=["bo"]),
    "inspect": print_inspection,
    "trim": lambda folder, output, text: trim(folder, output, corpus=[text], min_count=1),
    "push": lambda folder, output, text: collect_files(folder, "someone/model", license="mit"),
}


@st.composite
def changes(draw, folder: Path) -> tuple[str, object, object]:
    """A file, one of its fields and the new value of the field."""
    file = draw(st.sampled_from([name for name in OTHER_FIELDS if (folder / name).is_file()]))
    content = json.loads((folder / file).read_text())
    if file.endswith("index.json") and draw(st.booleans()):
        return file, ("weight_map", draw(st.sampled_from(sorted(content["weight_map"])))), draw(VALUES)
    field = draw(st.sampled_from(sorted({*content, *OTHER_FIELDS[file]})))
    return file, (field,), draw(VALUES | st.just(DELETED))


def change_field(path: Path, field: tuple[str, ...], value: object):
    content = json.loads(path.read_text())
    part = content
    for name in field[:-1]:
        part = part[name]
    part.pop(field[-1], None)
    if value is not DELETED:
        part[field[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("command", "file", "field", "value", "message"),
    [
        ("trim", "tokenizer_config.json", "auto_map", [None, [], []], "auto_map in tokenizer_config.json of"),
        ("trim", "config.json", "output_attentions", True, "The config of .* is invalid: .*'eager'"),
        ("push", "config.json", "output_attentions", True, "The config of .* is invalid: .*'eager'"),
        ("push", "config.json", "chunk_size_feed_forward", None, "cannot generate: '>' not supported"),
    ],
)
def test_faults_that_a_long_search_found(converted, text, tmp_path, command, file, field, value, message):
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    change_field(folder / file, (field,), value)
    with pytest.raises(ConversionError, match=message):
        COMMANDS[command](folder, tmp_path / "output", text)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("command", ["convert", "trim", "trim model", "inspect", "push"])
def test_a_wrong_field_is_an_error_of_our_own_or_none(encoder_folder, converted, text, tmp_path, command, sharded):
    source = Path(
        shutil.copytree(encoder_folder if command in ("convert", "trim") else converted, tmp_path / "source")
    )
    if sharded:
        write_shards(source, "model", "safetensors")

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(change=changes(source))
    def check(change):
        file, field, value = change
        with tempfile.TemporaryDirectory(dir=tmp_path) as place:
            folder = Path(shutil.copytree(source, Path(place, "model")))
            change_field(folder / file, field, value)
            try:
                COMMANDS[command.split()[0]](folder, Path(place, "output"), text)
            except ConversionError as error:
                assert "\n" not in str(error) and "Report this bug" not in str(error)

    check()
