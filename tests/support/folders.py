"""Load and compare the folders that commands write."""

from pathlib import Path

import torch
from support.encoders import Tensors
from transformers import AutoModelForSeq2SeqLM

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def different_tensors(first: Tensors, second: Tensors) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(bits(first[name]), bits(second[name]))]


def load(folder: Path, **options) -> XLMSWCMForConditionalGeneration:
    """Load a converted folder, and check that no tensor is missing or unexpected."""
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def cut_short(file: Path):
    """Cut a file as an interrupted download does."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
