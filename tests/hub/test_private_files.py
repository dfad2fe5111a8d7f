"""A push sends only the files of the model, without links, local paths or tokens."""

import json
import shutil
from pathlib import Path

import pytest
from support.commands import assert_refused
from support.encoders import edit_config
from support.hub_client import SENT
from support.loopback_hub import WRITE
from support.models import wants_peft
from transformers import AutoModelForSeq2SeqLM

from modeling_xlm_swcm.hub.push import collect_files
from modeling_xlm_swcm.hub_xlm_swcm import without_paths


SECRET = b"-----BEGIN PRIVATE KEY-----\n"


@pytest.fixture
def key(tmp_path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "key").write_bytes(SECRET)
    return tmp_path / "elsewhere" / "key"


def edit_json(path: Path, **fields):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    "name",
    [
        "vocabulary_report.json",
        "metrics.json",
        "README.md",
        "LICENSE",
        "training.png",
        "config.json",
        "tokenizer.json",
    ],
)
def test_a_link_out_of_the_folder_is_refused_before_anything_is_sent(hub, client, folder, key, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(key)
    assert_refused(client.command("push", folder, "someone/model"), name, "is a link to", "outside its folder")
    assert hub.requests == []


def test_files_that_look_like_files_of_a_model_are_left_out_and_named(hub, client, folder, key):
    (folder / "my_xlm_swcm_keys.py").write_bytes(SECRET)
    (folder / "other_xlm_swcm.py").symlink_to(key)
    for name in ("model-backup.safetensors", "model-00001-of-00009.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    outcome = client.command("push", folder, "someone/model")
    assert outcome.exit_code == 0, outcome.output
    assert hub.repositories["someone/model"].files.keys() == SENT


def test_what_is_left_out_is_said_in_one_line(folder, caplog):
    (folder / "notes.txt").write_text("x")
    (folder / "checkpoint-1").mkdir()
    collect_files(folder, "someone/model")
    (line,) = [record.getMessage() for record in caplog.records if "are not sent" in record.getMessage()]
    assert line.endswith(": checkpoint-1/, notes.txt.")


def test_only_the_shards_that_the_index_names_are_sent(hub, client, folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    shutil.copy(folder / min(shards), folder / "model-00001-of-00009.safetensors")
    outcome = client.command("push", folder, "someone/model")
    assert outcome.exit_code == 0, outcome.output
    expected = (SENT - {"model.safetensors"}) | shards | {"model.safetensors.index.json"}
    assert hub.repositories["someone/model"].files.keys() == expected


def test_a_snapshot_of_the_cache_whose_files_are_links_is_pushed(hub, client, converted, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(converted, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs", path.name))
    outcome = client.command("push", snapshot, "someone/model")
    assert outcome.exit_code == 0, outcome.output
    files = hub.repositories["someone/model"].files
    assert files.keys() == SENT
    assert files["model.safetensors"] == (converted / "model.safetensors").read_bytes()


def test_local_paths_are_shortened_in_every_file_that_is_sent(hub, client, folder):
    home = "/home/anna/private data"
    edit_json(
        folder / "metrics.json",
        dataset=f"{home}/test.tsv",
        training={"data": f"{home}/a.tsv", "log": "see ~/b/c.txt."},
    )
    edit_json(folder / "tokenizer_config.json", name_or_path=f"{home}/model")
    edit_json(folder / "generation_config.json", note="C:\\Users\\anna\\model")
    edit_json(folder / "vocabulary_report.json", options={"corpus": [f"{home}/bo.txt", "zh=/home/anna/zh.txt"]})
    edit_config(folder, _name_or_path=f"{home}/model")
    outcome = client.command("push", folder, "someone/model")
    assert outcome.exit_code == 0, outcome.output
    files = hub.repositories["someone/model"].files
    assert [name for name, content in files.items() if b"anna" in content or b"~/b" in content] == []
    assert json.loads(files["metrics.json"])["training"] == {"data": "a.tsv", "log": "see c.txt."}
    assert json.loads(files["vocabulary_report.json"])["options"]["corpus"] == ["bo.txt", "zh=zh.txt"]
    assert "| data | a.tsv |" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/model", "model"),
        ("~/model/x", "x"),
        ("../../me/model", "model"),
        ("file:///home/me/x", "x"),
        (r"D:\me\model", "model"),
        ("from /data/me/x.txt, twice", "from x.txt, twice"),
        ("https://huggingface.co/someone/model", "https://huggingface.co/someone/model"),
        ("someone/model", "someone/model"),
        ("base_model:adapter:/home/me/model", "base_model:adapter:model"),
        ("http://localhost:8000/a/b", "http://localhost:8000/a/b"),
        ("</s>", "</s>"),
        ("/", "/"),
        ("1/2/3 and/or 4", "1/2/3 and/or 4"),
    ],
)
def test_a_local_path_is_shortened_and_other_text_stays(text, public):
    assert without_paths({"a": [text]}) == {"a": [public]}


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "config.json", "LICENSE"])
@pytest.mark.parametrize("token", [WRITE, "hf_" + 34 * "a"])
def test_a_token_in_a_file_is_refused_and_not_repeated(hub, client, folder, name, token):
    if name == "README.md":
        card = "---\nlicense: mit\nlibrary_name: x\npipeline_tag: y\nlanguage: [bo]\n---\n"
        (folder / name).write_text(f"{card}My token is {token}.\n")
    elif name == "LICENSE":
        (folder / name).write_text(f"MIT. My token is {token}.\n")
    else:
        edit_json(folder / name, **({"dataset": token} if name == "metrics.json" else {"note": token}))
    outcome = client.command("push", folder, "someone/model")
    assert_refused(outcome, name, "holds a token", "revoke")
    assert token not in outcome.stderr and hub.requests == []


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("config.json", {"auto_map": {"AutoModel": "someone/other--code.Model"}}, ["auto_map", "someone/other--code"]),
        (
            "config.json",
            {"custom_pipelines": {"x": {"impl": "code.Pipe", "pt": []}}},
            ["custom_pipelines", "code.Pipe"],
        ),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Tok", None]}}, ["auto_map", "code.Tok"]),
    ],
)
def test_code_that_is_not_pushed_may_not_be_named(hub, client, folder, file, fields, words):
    edit_json(folder / file, **fields)
    assert_refused(client.command("push", folder, "someone/model"), file, *words)
    assert hub.requests == []


def test_a_model_that_pushes_itself_follows_no_link(hub, client, folder, key):
    (folder / "tokenization_xlm_swcm.py").unlink()
    (folder / "tokenization_xlm_swcm.py").symlink_to(key)
    code = f"""
import modeling_xlm_swcm
from transformers import AutoModelForSeq2SeqLM
AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}).push_to_hub("someone/model")
"""
    assert client.run(code)["error"] is None
    files = hub.repositories["someone/model"].files
    assert SECRET not in files.values() and "tokenizer.json" in files


TRAIN = """
import modeling_xlm_swcm, os
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq
from modeling_xlm_swcm.training.arguments import TrainingArguments
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer

def train(start, output_dir, repo, lora=False, **options):
    model = AutoModelForSeq2SeqLM.from_pretrained(start)
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    tokenizer = AutoTokenizer.from_pretrained(start, src_lang="zh", tgt_lang="bo")
    text = ["The river", "A quiet morning", "no wind"]
    trainer = XLMSWCMTrainer(
        model,
        TrainingArguments(
            output_dir, max_steps=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
            push_to_hub=True, hub_model_id=repo, hub_always_push=True, hub_token=os.environ["HF_TOKEN"], **options
        ),
        train_dataset=Dataset.from_dict(dict(tokenizer(text, text_target=text))),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.push_to_hub()
"""


def test_a_trainer_sends_neither_strays_nor_links_nor_its_arguments(hub, client, converted, key, tmp_path):
    for name in ("trained", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_bytes(SECRET)
        (tmp_path / name / "other_xlm_swcm.py").symlink_to(key)
    code = f"""{TRAIN}
train({str(converted)!r}, {str(tmp_path / "trained")!r}, "someone/trained", hub_strategy="checkpoint")
train({str(converted)!r}, {str(tmp_path / "adapter")!r}, "someone/adapter", lora=True)
"""
    assert client.run(code)["error"] is None
    files = hub.repositories["someone/trained"].files
    state = {name for name in files if name.startswith("last-checkpoint/")}
    assert files.keys() - state == SENT
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} < state
    adapter = hub.repositories["someone/adapter"].files
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= adapter.keys()
    for name, content in {**files, **adapter}.items():
        assert "training_args" not in name and SECRET not in content and WRITE.encode() not in content, name
        assert str(tmp_path).encode() not in content and str(converted).encode() not in content, name


def test_a_trainer_refuses_a_link_in_place_of_a_file_that_it_sends(hub, client, converted, key, tmp_path):
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "metrics.json").symlink_to(key)
    code = f'{TRAIN}\ntrain({str(converted)!r}, {str(tmp_path / "trained")!r}, "someone/trained")'
    assert "metrics.json is a link" in client.run(code)["error"]
    assert SECRET not in hub.repositories["someone/trained"].files.values()


@wants_peft
def test_an_adapter_that_a_model_pushes_names_its_base_without_folders(hub, client, folder):
    code = f"""
import modeling_xlm_swcm
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r})
model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
model.push_to_hub("someone/adapter")
"""
    assert client.run(code)["error"] is None
    files = hub.repositories["someone/adapter"].files
    assert str(folder.parent).encode() not in b"".join(files.values())


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_token_with_an_invalid_character_is_not_printed(client, tmp_path, command):
    arguments = [command, "someone/model", *([tmp_path / "out"] if command == "convert" else [])]
    outcome = client.command(*arguments, token="hf_with a blank")
    assert_refused(outcome, "invalid character")
    assert "blank" not in outcome.output
