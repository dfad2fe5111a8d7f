"""`inspect` names faults in weights, configs and saved code. `refresh` repairs the code."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused
from support.encoders import edit_config, edit_tensors, write_shards
from support.folders import contents, cut_short
from support.remote_code import CODE
from transformers import AutoModel
from typer.testing import CliRunner, Result

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.checkpoints.inspection import inspect
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.compat_xlm_swcm import VERSION
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.released_xlm_swcm import ReleasedXLMSWCMConfig, ReleasedXLMSWCMForConditionalGeneration


QUERY = "model.decoder.layers.1.self_attn.q_proj.weight"


def run(command: str, folder: Path) -> Result:
    return CliRunner().invoke(main, [command, str(folder)])


def edit_json(name: str, **fields) -> Callable[[Path], None]:
    def edit(folder: Path):
        content = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps(content))

    return edit


def shards(edit: Callable[[Path, dict], object]) -> Callable[[Path], None]:
    """Write three shards and change the folder or the index."""

    def change(folder: Path):
        write_shards(folder, "model", "safetensors")
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        edit(folder, index["weight_map"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(
        folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}
    )


def with_tensors(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda found: found | tensors)


def cut_off_the_last_byte(folder: Path):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


SECOND = "model-00002-of-00003.safetensors"
CASES = {
    "half a file": (lambda folder: cut_short(folder / "model.safetensors"), ["model.safetensors", "cut short"]),
    "a byte less": (cut_off_the_last_byte, ["model.safetensors", "cut short"]),
    "an empty file": (lambda folder: os.truncate(folder / "model.safetensors", 0), ["model.safetensors"]),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["has no weights"]),
    "half a shard": (shards(lambda folder, _: cut_short(folder / SECOND)), [SECOND, "cut short"]),
    "a missing shard": (
        shards(lambda folder, _: (folder / SECOND).unlink()),
        ["model.safetensors.index.json", SECOND],
    ),
    "a shard that no tensor is in": (
        shards(lambda _, weight_map: weight_map.update({QUERY: max(set(weight_map.values()) - {weight_map[QUERY]})})),
        [QUERY, "model.safetensors.index.json"],
    ),
    "an index that lacks a shard": (
        shards(
            lambda _, weight_map: [weight_map.pop(name) for name, file in list(weight_map.items()) if file == SECOND]
        ),
        ["lack ", "which its config.json describes. Download the weights again."],
    ),
    "a missing tensor": (without(QUERY), [f"lack {QUERY}, which its config.json describes."]),
    "a missing bias of the output": (without("lm_head.bias"), ["lack lm_head.bias, which its config.json describes."]),
    "missing word embeddings": (
        without("model.encoder.embeddings.word_embeddings.weight"),
        ["lack model.encoder.embeddings.word_embeddings.weight"],
    ),
    "a tensor of nobody": (
        with_tensors(adapter=torch.ones(3)),
        ["has a tensor that its config.json does not describe: adapter."],
    ),
    "a tensor of a layer that is not there": (
        with_tensors(**{"model.decoder.layers.9.ffn1.fc1.weight": torch.ones(3, 4)}),
        ["has a tensor that its config.json does not describe: model.decoder.layers.9.ffn1.fc1.weight."],
    ),
    "a tensor of another shape": (
        with_tensors(**{QUERY: torch.ones(32, 33)}),
        [f"{QUERY} of ", "has shape [32, 33], but config.json describes shape [32, 32]."],
    ),
    "a config with another vocabulary": (
        lambda folder: edit_config(folder, vocab_size=77),
        ["word_embeddings.weight of ", "config.json describes shape [77, 32]."],
    ),
    "a config with a layer more": (
        lambda folder: edit_config(folder, num_hidden_layers=5, decoder_layers=5, decoder_blocks=5 * ["prefix"]),
        ["lack model.encoder.encoder.layer.4.attention.self.query.weight, which its config.json describes."],
    ),
    "a config that is no JSON": (lambda folder: cut_short(folder / "config.json"), ["config.json is not valid JSON."]),
    "a config with a wrong kind": (lambda folder: edit_config(folder, hidden_size="32"), ["config of", "hidden_size"]),
    "a config of an encoder": (
        lambda folder: edit_config(folder, model_type="bert"),
        ['an encoder (BERT) of type "bert"', "Convert it with xlm-swcm convert."],
    ),
    "a config of another model": (
        lambda folder: edit_config(folder, model_type="gpt2"),
        ['a model of type "gpt2"', "Pass an XLM-SWCM model."],
    ),
    "languages of a wrong kind": (
        edit_json("tokenizer_config.json", languages="bo"),
        ["languages in tokenizer_config.json of", "is not a list of codes."],
    ),
    "a report that is none": (edit_json("conversion_report.json", counts=3), ["is not a conversion report"]),
}


@pytest.mark.parametrize("case", CASES)
def test_inspect_says_what_is_wrong(folder, case):
    change, words = CASES[case]
    change(folder)
    assert_refused(run("inspect", folder), *words)


@pytest.mark.parametrize("change", [lambda folder: None, shards(lambda *_: None)], ids=["a file", "shards"])
def test_a_whole_model_is_described(folder, change):
    change(folder)
    result = run("inspect", folder)
    assert result.exit_code == 0, result.stderr
    assert "61,791 as F32" in result.stdout
    assert f" code xlm-swcm {VERSION} encoder " in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "options",
    [{"weight_sharing": "tied"}, {"decoder": "paper"}, {"normal_layers": "none"}, {"decoder_init": "shared"}],
    ids=str,
)
def test_every_kind_of_decoder_is_whole(encoder_folder, output, options):
    convert(encoder_folder, output, **options)
    assert inspect(str(output)).report["options"].items() >= options.items()


def test_a_released_model_is_whole(tmp_path):
    model = ReleasedXLMSWCMForConditionalGeneration(
        ReleasedXLMSWCMConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    model.save_pretrained(tmp_path)
    assert sum(inspect(str(tmp_path)).parts.values()) == model.num_parameters()


def test_a_model_without_a_head_is_whole_too(folder, tmp_path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    assert inspect(str(tmp_path / "bare")).parts["output"] == 0
    without("decoder.layers.1.self_attn.q_proj.weight")(tmp_path / "bare")
    assert_refused(run("inspect", tmp_path / "bare"), "lack decoder.layers.1.self_attn.q_proj.weight")


def test_an_untied_model_without_output_projection_is_whole(folder):
    # Loading copies the word embeddings to the output projection.
    edit_json("config.json", tie_word_embeddings=False)(folder)
    assert inspect(str(folder)).parts["output"] > 0


class TestCode:
    def test_changed_bytes_are_named_also_under_the_same_version(self, folder):
        with (folder / "modeling_xlm_swcm.py").open("a") as file:
            file.write("# changed\n")
        (folder / "loss_xlm_swcm.py").unlink()
        assert inspect(str(folder)).changed_code == ["loss_xlm_swcm.py", "modeling_xlm_swcm.py"]
        printed = " ".join(run("inspect", folder).stdout.split())
        assert (
            f"xlm-swcm {VERSION}, but these files are missing or changed: loss_xlm_swcm.py, modeling_xlm_swcm.py "
            f"Replace it: xlm-swcm refresh {folder}" in printed
        )
        assert run("refresh", folder).exit_code == 0
        assert inspect(str(folder)).changed_code == []

    def test_a_newer_version_is_named(self, folder):
        (folder / "compat_xlm_swcm.py").write_text('VERSION = "99.0"\n')
        printed = run("inspect", folder).stdout
        assert f"xlm-swcm 99.0, newer than the installed {VERSION}" in printed

    @pytest.mark.parametrize("names", [["config.json"], ["tokenizer_config.json"]])
    def test_code_that_no_auto_map_names_is_not_used_until_a_refresh(self, folder, names):
        before = contents(folder)
        for name in names:
            fields = json.loads((folder / name).read_text())
            del fields["auto_map"]
            (folder / name).write_text(json.dumps(fields))
        printed = " ".join(run("inspect", folder).stdout.split())
        assert f"not used, because {names[0]} lacks auto_map Replace it: xlm-swcm refresh {folder}" in printed
        result = run("refresh", folder)
        assert result.stdout == f"Replaced in {folder}: {names[0]}.\n"
        assert json.loads((folder / names[0]).read_text()) == json.loads(before[names[0]])
        assert run("refresh", folder).stdout == f"{folder} is up to date.\n"

    def test_a_folder_without_code_gets_all_of_it(self, folder):
        for name in CODE:
            (folder / name).unlink()
        fields = json.loads((folder / "config.json").read_text())
        del fields["auto_map"]
        (folder / "config.json").write_text(json.dumps(fields))
        assert "none. The model loads only where xlm-swcm is installed" in " ".join(
            run("inspect", folder).stdout.split()
        )
        assert run("refresh", folder).exit_code == 0
        assert json.loads((folder / "config.json").read_text())["auto_map"] == XLMSWCMConfig.auto_classes
        assert inspect(str(folder)).changed_code == []

    def test_damaged_code_is_replaced(self, folder):
        installed = (folder / "modeling_xlm_swcm.py").read_bytes()
        (folder / "modeling_xlm_swcm.py").write_bytes(b"\xff\xfe from .x import y")
        result = run("refresh", folder)
        assert result.exit_code == 0, result.stderr
        assert (folder / "modeling_xlm_swcm.py").read_bytes() == installed

    @pytest.mark.parametrize("command", ["refresh", "export", "push", "inspect"])
    def test_a_file_is_no_folder_of_a_model(self, folder, command):
        more = {"export": [str(folder.parent / "out")], "push": ["someone/model", "--dry-run"]}.get(command, [])
        file = str(folder / "config.json")
        result = CliRunner().invoke(main, [command, file, *more])
        assert_refused(result, file, "Pass the folder", "is a file." if command == "inspect" else "is not a folder.")
