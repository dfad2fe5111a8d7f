"""What speed.py measures, each time in a process of its own, on models of the size of XLM-R base and random weights.

python benchmarks/workloads.py '{"task": "decode", "model": "init", "quick": true}'    # prints figures as JSON
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    XLMRobertaConfig,
)

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.loss_xlm_swcm import cross_entropy, linear_cross_entropy


WORDS = 250002
# batch size and beams
DECODING = {"batch 1": (1, 1), "batch 8": (8, 1), "beam 5": (1, 5)}
BATCHES = [1, 2, 4, 8, 16]
GPU_BATCHES = {"batch 1": 1, "batch 8": 8, "batch 64": 64}


def make_model(name: str, quick: bool, decoder_layers: int | None = None) -> PreTrainedModel:
    """All without dropout of attention weights, which MBart has not by default: it costs memory, and fast kernels."""
    torch.manual_seed(0)
    layers, words = (2, 5000) if quick else (12, WORDS)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    if name == "MBart":
        sizes = dict(d_model=768, encoder_layers=layers, decoder_layers=decoder_layers or layers)
        sizes |= dict(encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072)
        config = MBartConfig(vocab_size=words, decoder_ffn_dim=3072, forced_eos_token_id=None, **sizes, **ids)
        return MBartForConditionalGeneration(config)
    if name == "EncoderDecoder":
        half = XLMRobertaConfig(
            vocab_size=words, num_hidden_layers=layers, max_position_embeddings=514, attention_probs_dropout_prob=0.0
        )
        return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(half, half, **ids))
    config = XLMSWCMConfig(
        vocab_size=words, num_hidden_layers=layers, weight_sharing=name, attention_probs_dropout_prob=0.0
    )
    return XLMSWCMForConditionalGeneration(config)


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(10, 4990, shape, generator=torch.Generator().manual_seed(0))


def now() -> float:
    """The time, with all work done that was given to a GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Once to warm up, then the mean."""
    work()
    start = now()
    for _ in range(times):
        work()
    return (now() - start) / times


def peak_memory() -> int:
    """In bytes: what was allocated on the GPU, or the resident memory of a process that uses none."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_step(model: PreTrainedModel, batch: int, length: int, optimizer: Callable, bf16: bool) -> Callable[[], None]:
    """A step of training with `batch` sources and targets of `length` tokens."""
    source, labels = (random_tokens(batch, length).to(model.device) for _ in range(2))
    optimizer = optimizer(model.parameters())

    def step():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=source, attention_mask=torch.ones_like(source), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(model: str, quick: bool, checkpointing: bool = False, bf16: bool = False) -> dict:
    """Seconds of a step with SGD after one to warm up, in float32 or in autocast to bfloat16."""
    model = make_model(model, quick).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch, length = (2, 16) if quick else (8, 128)
    return {"seconds": seconds_of(make_step(model, batch, length, partial(torch.optim.SGD, lr=1e-3), bf16), 1)}


def make_decoder(name: str, quick: bool, weights: str = "float32") -> PreTrainedModel:
    model = make_model(name, quick).eval()
    if weights == "bfloat16":
        return model.bfloat16()
    if weights == "int8, PyTorch":
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    if weights == "int8, torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    return model


def write(model: PreTrainedModel, batch: int, length: int, new: int, beams: int = 1, **options):
    source = random_tokens(batch, length).to(model.device)
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    fixed = dict(do_sample=False, num_beams=beams, max_new_tokens=new, min_new_tokens=new)
    written = model.generate(**inputs, **fixed, **options)
    assert written.shape == (batch, new + 1)


@torch.no_grad()
def decode(model: str, quick: bool, new: int = 64, **options) -> dict:
    """Tokens a second, for each setting."""
    model = make_decoder(model, quick, **options)
    length, new = (16, 4) if quick else (128, new)
    speeds = {}
    for name, (batch, beams) in DECODING.items():
        again = partial(write, model, batch, length, beams=beams)
        again(new=3)
        start = time.perf_counter()
        again(new=new)
        speeds[name] = batch * new / (time.perf_counter() - start)
    return speeds


@torch.no_grad()
def decode_compiled(model: str, quick: bool) -> dict:
    """Tokens a second at batch 1 with a static cache and a compiled step, and what compiling took."""
    model = make_decoder(model, quick)
    length, new = (16, 4) if quick else (128, 64)
    model.forward = torch.compile(model.forward, fullgraph=True)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        write(model, 1, length, new, cache_implementation="static")
        seconds.append(time.perf_counter() - start)
    return {"batch 1": new / seconds[1], "compiling": seconds[0] - seconds[1]}


@torch.no_grad()
def decode_long(model: str, quick: bool) -> dict:
    """Milliseconds of each step of a long text, and of a step by batch size."""
    model = make_decoder(model, quick)
    length, new, batches = (16, 20, BATCHES[:2]) if quick else (128, 511, BATCHES)
    starts = []
    model.get_decoder().register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))

    def steps(batch: int, new: int) -> list[float]:
        starts.clear()
        write(model, batch, length, new)
        return [1000 * (later - earlier) for earlier, later in zip(starts[1:], starts[2:], strict=False)]

    steps(1, 3)
    return {"steps": steps(1, new), "batches": {batch: sorted(steps(batch, 12))[5] for batch in batches}}


def find_gpu(quick: bool) -> str:
    if torch.cuda.is_available():
        return "cuda"
    if not quick:
        sys.exit("No GPU is here; --quick shows the same steps on a CPU.")
    print("No GPU is here: these are steps and figures of the CPU.", file=sys.stderr)
    return "cpu"


def train_gpu(model: str, quick: bool) -> dict:
    """
    Source and target tokens a second, with AdamW in autocast to bfloat16, and how well the GPU is used: operations in
    the products of a step, as PyTorch counts them, a second, by those that one large product reaches.
    """
    device = find_gpu(quick)
    model = make_model(model, quick).to(device).train()
    batch, length = (2, 16) if quick else (32, 128)
    step = make_step(model, batch, length, partial(torch.optim.AdamW, lr=1e-5, fused=True), bf16=True)
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = seconds_of(step, 2 if quick else 20)
    size = 512 if quick else 8192
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    fastest = 2 * size**3 / seconds_of(lambda: matrix @ matrix, 20)
    return {
        "tokens": 2 * batch * length / seconds,
        "teraflops": counter.get_total_flops() / seconds / 1e12,
        "utilisation": counter.get_total_flops() / seconds / fastest,
    }


@torch.inference_mode()
def decode_gpu(model: str, quick: bool, **options) -> dict:
    """Greedy tokens a second in bfloat16; with a static cache Transformers compiles the step by itself on a GPU."""
    model = make_decoder(model, quick, "bfloat16").to(find_gpu(quick))
    length, new = (16, 4) if quick else (128, 128)
    return {
        name: batch * new / seconds_of(partial(write, model, batch, length, new, **options), 1 if quick else 3)
        for name, batch in GPU_BATCHES.items()
    }


def loss_gpu(kind: str, quick: bool) -> dict:
    """Milliseconds of the loss over the vocabulary and all its gradients, bfloat16, 4,096 tokens."""
    device, (tokens, words) = find_gpu(quick), (8, 5000) if quick else (4096, WORDS)
    states = torch.randn(tokens, 768, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(words, 768, device=device, dtype=torch.bfloat16).mul_(0.02).requires_grad_()
    bias = torch.zeros(words, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = random_tokens(tokens).to(device)
    if kind == "Liger":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def loss() -> torch.Tensor:
        if kind == "Liger":
            return liger_fused_linear_cross_entropy(states, weight, labels, bias)
        if kind == "logits":
            return cross_entropy(nn.functional.linear(states, weight, bias), labels, words)
        return linear_cross_entropy(states, weight, bias, labels)

    return {"milliseconds": 1000 * seconds_of(lambda: loss().backward(), 1 if quick else 10)}


def load(folder: str, **_) -> dict:
    start = time.perf_counter()
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    seconds = time.perf_counter() - start
    file_gb = os.path.getsize(f"{folder}/model.safetensors") / 1e9
    assert not any(parameter.is_meta for parameter in model.parameters())
    return {"seconds": seconds, "file_gb": file_gb}


if __name__ == "__main__":
    tasks = (train, decode, decode_compiled, decode_long, load, train_gpu, decode_gpu, loss_gpu)
    options = json.loads(sys.argv[1])
    figures = {task.__name__: task for task in tasks}[options.pop("task")](**options)
    figures["peak_gb"] = peak_memory() / 1e9
    print(json.dumps(figures))
