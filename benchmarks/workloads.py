"""Run one measurement of speed.py in this process, on a model with random weights and the size of XLM-R base.

python benchmarks/workloads.py '{"task": "decode", "model": "init", "quick": true}'

The script prints its figures as JSON.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from peers import DECODING, GPU_BATCHES, WORDS, make_model, make_modern_model, random_tokens
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from modeling_xlm_swcm.loss_xlm_swcm import cross_entropy, linear_cross_entropy


BATCHES = [1, 2, 4, 8, 16]


def now() -> float:
    """Return the time after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Return the mean time of `work` after one call to warm up."""
    work()
    start = now()
    for _ in range(times):
        work()
    return (now() - start) / times


def peak_memory() -> int:
    """Return the peak memory in bytes: allocated on the GPU, or resident in a process without GPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_step(model: PreTrainedModel, batch: int, length: int, optimizer: Callable, bf16: bool) -> Callable[[], None]:
    """Return a function that does a training step with `batch` sources and targets of `length` tokens."""
    source, labels = (random_tokens(batch, length).to(model.device) for _ in range(2))
    optimizer = optimizer(model.parameters())

    def step():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=source, attention_mask=torch.ones_like(source), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(model: str, quick: bool, checkpointing: bool = False, bf16: bool = False, words: int = WORDS) -> dict:
    """Measure the seconds of a training step with SGD, in float32 or with autocast to bfloat16."""
    model = make_model(model, quick, words=words).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch, length = (2, 16) if quick else (8, 128)
    return {"seconds": seconds_of(make_step(model, batch, length, partial(torch.optim.SGD, lr=1e-3), bf16), 1)}


def read_long(work: str, length: int, quick: bool) -> dict:
    """Measure the CPU seconds in which a small ModernBERT encodes or learns a text of `length` tokens."""
    is_paper = work == "train the paper's decoder"
    decoder = dict(weight_sharing="init", normal_layer_interval=3) if is_paper else dict(weight_sharing="tied")
    model, length = make_modern_model(**decoder), length // 8 if quick else length
    source = random_tokens(1, length)
    start = time.process_time()
    if work != "encode":
        make_step(model.train(), 1, length, torch.optim.SGD, bf16=False)()
    else:
        with torch.no_grad():
            model.eval().get_encoder()(source, torch.ones_like(source))
    return {"seconds": time.process_time() - start}


def make_decoder(name: str, quick: bool, weights: str = "float32", words: int = WORDS) -> PreTrainedModel:
    """Return a model in evaluation mode with weights in float32, bfloat16 or int8."""
    model = make_model(name, quick, words=words).eval()
    if weights == "bfloat16":
        return model.bfloat16()
    if weights == "int8, PyTorch":
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    if weights == "int8, torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    return model


def generate_tokens(model: PreTrainedModel, batch: int, length: int, new: int, beams: int = 1, **options):
    """Generate exactly `new` tokens for each source."""
    source = random_tokens(batch, length).to(model.device)
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    fixed = dict(do_sample=False, num_beams=beams, max_new_tokens=new, min_new_tokens=new)
    written = model.generate(**inputs, **fixed, **options)
    assert written.shape == (batch, new + 1)


@torch.no_grad()
def decode(model: str, quick: bool, new: int = 64, **options) -> dict:
    """Measure generated tokens per second for each setting, with and without the time to read the source."""
    model = make_decoder(model, quick, **options)
    length, new = (16, 4) if quick else (128, new)
    starts, speeds = [], {}
    model.get_decoder().register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    for name, (batch, beams) in DECODING.items():
        again = partial(generate_tokens, model, batch, length, beams=beams)
        again(new=3)
        starts.clear()
        start = time.perf_counter()
        again(new=new)
        speeds[name] = batch * new / (time.perf_counter() - start)
        speeds[f"{name}, later steps"] = batch * (new - 2) / (starts[-1] - starts[1])
    return speeds


@torch.no_grad()
def decode_compiled(model: str, quick: bool) -> dict:
    """Measure tokens per second at batch 1 with a static cache and a compiled step, and the time to compile."""
    model = make_decoder(model, quick)
    length, new = (16, 4) if quick else (128, 64)
    model.forward = torch.compile(model.forward, fullgraph=True)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        generate_tokens(model, 1, length, new, cache_implementation="static")
        seconds.append(time.perf_counter() - start)
    return {"batch 1": new / seconds[1], "compiling": seconds[0] - seconds[1]}


@torch.no_grad()
def decode_long(model: str, quick: bool) -> dict:
    """Measure the milliseconds of each step of a long text, and of a step by batch size."""
    model = make_decoder(model, quick)
    length, new, batches = (16, 20, BATCHES[:2]) if quick else (128, 511, BATCHES)
    starts = []
    model.get_decoder().register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))

    def steps(batch: int, new: int) -> list[float]:
        starts.clear()
        generate_tokens(model, batch, length, new)
        return [1000 * (later - earlier) for earlier, later in zip(starts[1:], starts[2:], strict=False)]

    steps(1, 3)
    return {"steps": steps(1, new), "batches": {batch: sorted(steps(batch, 12))[5] for batch in batches}}


def find_gpu(quick: bool) -> str:
    """Return the device. Exit without a GPU, unless the run is quick."""
    if torch.cuda.is_available():
        return "cuda"
    if not quick:
        sys.exit("No GPU is available. Use --quick to run the same steps on the CPU.")
    print("No GPU is available. These figures are from the CPU.", file=sys.stderr)
    return "cpu"


def train_gpu(model: str, quick: bool) -> dict:
    """
    Measure tokens per second and the utilisation of the GPU, with AdamW and autocast to bfloat16.

    Tokens are source and target tokens. Utilisation is the rate of operations in the matrix products of a step,
    divided by the rate of one large product. PyTorch counts the operations.
    """
    device = find_gpu(quick)
    with torch.device(device):
        model = make_model(model, quick).train()
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
    """Measure greedy tokens per second in bfloat16. With a static cache Transformers compiles the step on a GPU."""
    with torch.device(find_gpu(quick)):
        model = make_decoder(model, quick, "bfloat16")
    length, new, times = (16, 4, 1) if quick else (128, 64, 2)
    seconds = {
        name: seconds_of(partial(generate_tokens, model, batch, length, new, **options), times)
        for name, batch in GPU_BATCHES.items()
    }
    return {name: GPU_BATCHES[name] * new / value for name, value in seconds.items()}


def loss_gpu(kind: str, quick: bool, max_logits: int | None = None) -> dict:
    """Measure the milliseconds of the loss and all its gradients in bfloat16 for 4,096 tokens."""
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
        return linear_cross_entropy(states, weight, bias, labels, max_logits=max_logits)

    return {"milliseconds": 1000 * seconds_of(lambda: loss().backward(), 1 if quick else 10)}


def load(folder: str, **_) -> dict:
    """Measure the seconds to load a model, the size of its file and the number of its parameters."""
    start = time.perf_counter()
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    seconds = time.perf_counter() - start
    file_gb = os.path.getsize(f"{folder}/model.safetensors") / 1e9
    assert not any(parameter.is_meta for parameter in model.parameters())
    return {"seconds": seconds, "file_gb": file_gb, "million_parameters": model.num_parameters() / 1e6}


if __name__ == "__main__":
    tasks = (train, read_long, decode, decode_compiled, decode_long, load, train_gpu, decode_gpu, loss_gpu)
    options = json.loads(sys.argv[1])
    figures = {task.__name__: task for task in tasks}[options.pop("task")](**options)
    figures["peak_gb"] = peak_memory() / 1e9
    print(json.dumps(figures))
