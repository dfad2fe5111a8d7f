"""The guide to LoRA runs from the first command to the last Python block."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from support.encoders import wake
from support.folders import load
from support.models import logits_of, random_tokens

from modeling_xlm_swcm.conversion import convert


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "lora.md").read_text(encoding="utf-8")
CLI = "from modeling_xlm_swcm.cli import main; main()"


def run(folder: Path, *words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    outcome = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def test_the_guide_to_lora_runs(encoder_folder, tmp_path):
    convert(encoder_folder, tmp_path / "pretrained", languages=["zh", "bo"])
    wake(tmp_path / "pretrained")
    (tmp_path / "bo.txt").write_text("བཀྲ་ཤིས་བདེ་ལེགས སྐད་ཡིག་སློབ་སྦྱོང རྒྱལ་ཁབ\n" * 20, encoding="utf-8")
    (tmp_path / "train.tsv").write_text("zh\tbo\n我们\tབཀྲ་ཤིས\n河边没有风\tང་ཚོ\n", encoding="utf-8")
    commands = "".join(re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)).replace("\\\n", " ")
    for line in commands.replace("8000", "120").splitlines():
        words = shlex.split(line)
        if words[0] == "xlm-swcm":
            run(tmp_path, "-c", CLI, *words[1:])
        else:
            # The small model is too short for the default lengths.
            lengths = ["--max_source_length", "30", "--max_target_length", "30", "--use_cpu", "--report_to", "none"]
            run(tmp_path, str(ROOT / words[1]), *words[2:], *lengths)

    tokens = json.loads((tmp_path / "pretrained-bo" / "vocabulary_report.json").read_text())["tokens"]
    before, after = (load(tmp_path / name).get_input_embeddings().weight for name in ("pretrained-bo", "zh-bo"))
    changed = (before != after).any(1).nonzero().flatten().tolist()
    # Two language tags stand in front of the new tokens.
    assert changed == list(range(tokens["before"] - 2, tokens["after"]))

    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    printed = run(tmp_path, "-W", "ignore", "-c", "\n".join(blocks))
    assert len(ast.literal_eval(printed)) == 2
    inputs = {"input_ids": random_tokens(2, 9), "decoder_input_ids": random_tokens(2, 6)}
    # Both runs have the same seed, but not the same number of epochs.
    assert logits_of(load(tmp_path / "zh-bo-merged").eval(), **inputs).isfinite().all()
    rows = load(tmp_path / "zh-bo-merged").get_input_embeddings().weight
    assert torch.equal(rows[: changed[0]], before[: changed[0]]) and not torch.equal(rows, before)
