"""Old checkpoints, renamed keywords and unsupported versions of Transformers."""

import copy
import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import save_file
from support.commands import assert_refused
from support.models import tiny_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments
from typer.testing import CliRunner

from modeling_xlm_swcm import XLMSWCMModel
from modeling_xlm_swcm.checkpoints.code import read_code_version
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.loading import check_cache
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.compat_xlm_swcm import CACHE, MINIMUM_TRANSFORMERS, VERSION, check_transformers


TEXTS = ["The river rises early", "我们早上去了河边", "жел жоқ еді"]
# Number of beams -> tokens that xlm-swcm 0.1.0 generated with Transformers 5.23.0.
WRITTEN = {
    1: [
        [0, 149, 123, 12, 12, 49, 86, 123, 123, 31, 130, 1, 31],
        [0, 149, 12, 12, 12, 12, 12, 49, 123, 123, 123, 31, 130],
        [0, 149, 123, 12, 12, 12, 49, 123, 123, 31, 130, 1, 123],
    ],
    3: [
        [0, 149, 123, 49, 49, 86, 123, 123, 123, 31, 130, 1, 31],
        [0, 149, 12, 12, 12, 12, 12, 49, 123, 123, 31, 130, 1],
        [0, 149, 123, 12, 12, 12, 49, 123, 123, 31, 130, 38, 149],
    ],
}

# Load the first folder with an old Transformers, and generate with the other folders.
ALONE = """
import importlib.abc, json, sys
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_xlm_swcm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def write(folder, texts):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang="bo", trust_remote_code=True)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    options = dict(forced_bos_token_id=tokenizer.get_lang_id("zh"), max_new_tokens=12, min_new_tokens=12)
    return {beams: model.generate(**inputs, **options, num_beams=beams).tolist() for beams in (1, 3)}

sys.meta_path.insert(0, Absent())
texts, first, *folders = sys.argv[1:]
version, transformers.__version__ = transformers.__version__, "5.19.0"
try:
    AutoModelForSeq2SeqLM.from_pretrained(first, trust_remote_code=True)
except ImportError as error:
    print("refused:", error)
transformers.__version__ = version
for folder in folders:
    print("written:", json.dumps(write(folder, json.loads(texts))))
"""


@pytest.fixture
def old_folder(tmp_path) -> Path:
    """Return a folder that xlm-swcm 0.1.0 saved, with weights from a formula."""
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "saved_by_0_1_0", folder)
    tensors = {}
    for index, (name, shape) in enumerate(json.loads((folder / "tensors.json").read_text()).items()):
        steps = torch.arange(math.prod(shape), dtype=torch.float64)
        values = torch.sin(steps * (1.7 + 0.37 * index) + index).reshape(shape)
        if len(shape) == 1:
            is_norm = name.endswith(("layer_norm.weight", "LayerNorm.weight"))
            values = 0.1 * values + (1 if is_norm else 0)
        elif "embeddings" not in name:
            values = 0.5 * values
        tensors[name] = values.float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class TestOldCheckpoints:
    @pytest.mark.parametrize("use_cache", [True, False])
    def test_the_package_writes_the_tokens_of_the_version_that_saved_the_folder(self, old_folder, use_cache):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(old_folder, output_loading_info=True)
        assert not any(info.values())
        tokenizer = AutoTokenizer.from_pretrained(old_folder, src_lang="bo")
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        options = dict(forced_bos_token_id=tokenizer.get_lang_id("zh"), max_new_tokens=12, min_new_tokens=12)
        for beams, tokens in WRITTEN.items():
            assert model.generate(**inputs, **options, num_beams=beams, use_cache=use_cache).tolist() == tokens

    def test_transformers_alone_writes_them_after_a_refresh_and_an_old_one_is_refused(self, old_folder, tmp_path):
        refreshed = Path(shutil.copytree(old_folder, tmp_path / "refreshed"))
        result = CliRunner().invoke(main, ["refresh", str(refreshed)])
        assert result.exit_code == 0, result.output
        assert "modeling_xlm_swcm.py" in result.stdout
        assert "up to date" in CliRunner().invoke(main, ["refresh", str(refreshed)]).stdout
        installed = Version(transformers.__version__)
        # A second copy, because Transformers loads the code of a folder once. The name of the folder is its module.
        again = shutil.copytree(refreshed, tmp_path / "again")
        # The code of 0.1.0 needs Transformers 5.23. It is wrong from 5.24 on.
        folders = [again, refreshed, *[old_folder] * (installed >= Version("5.23"))]
        command = [sys.executable, "-c", ALONE, json.dumps(TEXTS), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        (refused,) = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
        assert refused == (
            f"refused: XLM-SWCM needs transformers>={MINIMUM_TRANSFORMERS}, but transformers 5.19.0 is installed. "
            f'Run: pip install "transformers>={MINIMUM_TRANSFORMERS},<6"'
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("written: ")]
        after, *before = (json.loads(line.removeprefix("written: ")) for line in lines)
        expected = {str(beams): tokens for beams, tokens in WRITTEN.items()}
        assert after == expected
        assert all((written != expected) == (installed >= Version("5.24")) for written in before)

    def test_inspect_tells_the_version_and_the_remedy(self, old_folder):
        before = CliRunner().invoke(main, ["inspect", str(old_folder)]).stdout
        assert f"xlm-swcm 0.1.0, older than the installed {VERSION}." in " ".join(before.split())
        assert "5.24" in before and "xlm-swcm refresh" in before
        CliRunner().invoke(main, ["refresh", str(old_folder)])
        after = CliRunner().invoke(main, ["inspect", str(old_folder)]).stdout
        assert f"xlm-swcm {VERSION}" in after and "older" not in after

    def test_code_that_nothing_imports_any_more_is_removed_and_other_files_stay(self, old_folder):
        for name, text in {"gone_xlm_swcm.py": "", "mine.py": "x = 1\n"}.items():
            (old_folder / name).write_text(text)
        with (old_folder / "modeling_xlm_swcm.py").open("a") as file:
            file.write("from .gone_xlm_swcm import nothing\n")
        assert CliRunner().invoke(main, ["refresh", str(old_folder)]).exit_code == 0
        assert not (old_folder / "gone_xlm_swcm.py").exists()
        assert (old_folder / "mine.py").read_text() == "x = 1\n"

    def test_a_link_is_replaced_and_not_the_file_that_it_leads_to(self, old_folder, tmp_path):
        blob = tmp_path / "blob"
        (old_folder / "modeling_xlm_swcm.py").rename(blob)
        (old_folder / "modeling_xlm_swcm.py").symlink_to(blob)
        before = blob.read_bytes()
        assert CliRunner().invoke(main, ["refresh", str(old_folder)]).exit_code == 0
        assert blob.read_bytes() == before
        assert not (old_folder / "modeling_xlm_swcm.py").is_symlink()

    @pytest.mark.parametrize("number", [0, 3, 6])
    def test_an_interrupted_refresh_stays_outdated_and_can_be_repeated(self, old_folder, number, monkeypatch):
        replace, calls = Path.replace, []

        def interrupt(self, target):
            if len(calls) == number:
                raise KeyboardInterrupt
            calls.append(target)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", interrupt)
        result = CliRunner().invoke(main, ["refresh", str(old_folder)])
        assert result.exit_code == 130 and "Run xlm-swcm refresh again." in result.stderr
        assert not list(old_folder.glob("*.partial")) + list(old_folder.glob(".*.partial"))
        assert read_code_version(str(old_folder)) == "0.1.0"
        monkeypatch.undo()
        assert CliRunner().invoke(main, ["refresh", str(old_folder)]).exit_code == 0
        assert read_code_version(str(old_folder)) == VERSION

    def test_a_full_disk_names_the_folder(self, old_folder, monkeypatch):
        def fail(self, content):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(Path, "write_bytes", fail)
        result = CliRunner().invoke(main, ["refresh", str(old_folder)])
        assert_refused(result, f"error: No space left on device: {old_folder}. Free some space.")

    def test_a_folder_in_the_place_of_a_code_file_is_named_before_anything_is_written(self, old_folder):
        (old_folder / "layers_xlm_swcm.py").mkdir()
        before = (old_folder / "modeling_xlm_swcm.py").read_bytes()
        assert_refused(CliRunner().invoke(main, ["refresh", str(old_folder)]), "layers_xlm_swcm.py", "Remove the")
        assert (old_folder / "modeling_xlm_swcm.py").read_bytes() == before

    def test_code_without_a_readable_version_is_not_replaced(self, old_folder):
        (old_folder / "compat_xlm_swcm.py").write_text('VERSION = "nonsense"\n')
        assert_refused(CliRunner().invoke(main, ["refresh", str(old_folder)]), "compat_xlm_swcm.py", "VERSION")

    @pytest.mark.parametrize("line", ['VERSION = "99.0"', "VERSION = '99.0'  # newer", 'VERSION: str = "99.0"'])
    def test_newer_code_is_not_replaced(self, old_folder, line):
        (old_folder / "compat_xlm_swcm.py").write_text(line + "\n")
        before = (old_folder / "modeling_xlm_swcm.py").read_bytes()
        assert_refused(CliRunner().invoke(main, ["refresh", str(old_folder)]), "xlm-swcm 99.0", VERSION)
        assert (old_folder / "modeling_xlm_swcm.py").read_bytes() == before


class TestKeywords:
    def test_a_renamed_keyword_of_generate_is_an_error_and_not_wrong_text(self, trained_model, pairs, monkeypatch):
        prepare = trained_model.prepare_inputs_for_generation

        def rename(*args, **kwargs):
            inputs = prepare(*args, **kwargs)
            return {{CACHE: "kv_cache"}.get(name, name): value for name, value in inputs.items()}

        monkeypatch.setattr(trained_model, "prepare_inputs_for_generation", rename)
        with pytest.raises(TypeError, match="does not know the keyword `kv_cache`"):
            trained_model.generate(pairs["input_ids"], max_new_tokens=3)

    @pytest.mark.parametrize("part", ["whole", "model", "encoder", "decoder"])
    def test_every_forward_refuses_an_unknown_keyword(self, model, source, target, part):
        inputs = {
            "whole": (model, source | {"decoder_input_ids": target}),
            "model": (model.model, source | {"decoder_input_ids": target}),
            "encoder": (model.model.encoder, source),
            "decoder": (model.model.decoder, {"input_ids": target, "encoder_hidden_states": torch.zeros(3, 9, 32)}),
        }
        module, kwargs = inputs[part]
        # An unknown keyword with the value None is allowed.
        module(**kwargs, unknown=None)
        with pytest.raises(TypeError, match="does not know the keyword `unknown`"):
            module(**kwargs, unknown=1)

    def test_a_whole_model_has_positions_of_the_target_only(self, model, source, target):
        with pytest.raises(TypeError, match="does not know the keyword `position_ids`"):
            model(**source, decoder_input_ids=target, position_ids=torch.zeros_like(source["input_ids"]))

    @pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")
    @pytest.mark.parametrize("name", ["cache", "past_key_values"])
    def test_the_cache_has_two_names(self, source, target, name):
        model = tiny_model()
        first = model(**source, decoder_input_ids=target[:, :3], use_cache=True)
        second = model(**source, decoder_input_ids=target[:, 3:], **{name: getattr(first, CACHE)})
        whole = model(**source, decoder_input_ids=target)
        torch.testing.assert_close(second.logits, whole.logits[:, 3:], atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")
    def test_only_one_of_the_names_may_have_a_value(self, model, source, target):
        inputs = source | {"decoder_input_ids": target[:, :1]}
        cache = getattr(model(**source, decoder_input_ids=target[:, :3], use_cache=True), CACHE)
        expected = model(**inputs, **{CACHE: copy.deepcopy(cache)}).logits
        for names in ({"cache": None, "past_key_values": cache}, {"cache": cache, "past_key_values": None}):
            given = {name: copy.deepcopy(value) for name, value in names.items()}
            assert torch.equal(model(**inputs, **given).logits, expected)
        with pytest.raises(TypeError, match="are both set"):
            model(**inputs, cache=cache, past_key_values=cache)

    def test_the_trainer_leaves_the_cache_out_of_its_predictions(self, model, source, target, tmp_path):
        rows = [
            {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": tokens}
            for ids, mask, tokens in zip(source["input_ids"], source["attention_mask"], target, strict=True)
        ]
        args = Seq2SeqTrainingArguments(tmp_path, use_cpu=True, use_cache=True, report_to="none", disable_tqdm=True)
        predictions = Seq2SeqTrainer(model, args).predict(rows).predictions
        logits = predictions[0] if isinstance(predictions, tuple) else predictions
        assert logits.shape == (3, 7, 99)


class TestCheckOfTheCache:
    @pytest.mark.parametrize(
        "settings", [{"stop_strings": ["a"]}, {"guidance_scale": 1.5}, {"num_beams": 3}, {"max_length": 3}], ids=str
    )
    def test_settings_of_the_checkpoint_do_not_disturb_it(self, trained_model, settings):
        model = copy.deepcopy(trained_model).train()
        model.generation_config.update(**settings)
        own = model.generation_config
        check_cache(model, "folder")
        assert model.generation_config is own and model.training

    def test_weights_that_are_not_finite_are_named(self, trained_model):
        model = copy.deepcopy(trained_model)
        model.lm_head.bias.data[5] = float("nan")
        with pytest.raises(ConversionError, match="not finite"):
            check_cache(model, "folder")

    def test_a_model_that_decodes_rightly_passes(self, trained_model):
        check_cache(trained_model, "folder")

    def test_a_cache_that_is_lost_is_found(self, trained_model, monkeypatch):
        forward = XLMSWCMModel.forward
        monkeypatch.setattr(XLMSWCMModel, "forward", lambda self, **kwargs: forward(self, **kwargs | {CACHE: None}))
        with pytest.raises(ConversionError, match="folder is wrong: with a cache, logits differ"):
            check_cache(trained_model, "folder")

    def test_a_broken_model_is_neither_exported_nor_pushed(self, converted, tmp_path, monkeypatch):
        forward = XLMSWCMModel.forward
        monkeypatch.setattr(XLMSWCMModel, "forward", lambda self, **kwargs: forward(self, **kwargs | {CACHE: None}))
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        for command in (["export", converted, tmp_path / "exported"], ["push", converted, "someone/model"]):
            result = CliRunner().invoke(main, list(map(str, command)))
            assert result.exit_code == 1
            assert "with a cache, logits differ" in result.stderr.splitlines()[-1]
        assert not (tmp_path / "exported").exists()


class TestFloor:
    @pytest.mark.parametrize("installed", ["4.57.3", "5.0.0rc1", "5.19.0", "5.9.2"])
    def test_an_older_transformers_is_refused(self, installed):
        with pytest.raises(ImportError, match=f"transformers {installed} is installed.*pip install"):
            check_transformers(installed)

    @pytest.mark.parametrize("installed", ["5.20.0", "5.24.1", "5.100.0", "6.0.0.dev0"])
    def test_a_newer_one_is_not(self, installed):
        check_transformers(installed)
