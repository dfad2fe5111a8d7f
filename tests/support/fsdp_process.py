"""One training step, sharded over processes as in examples/presets/fsdp.yaml, equals the step of the whole model.

Accelerate shards only on accelerators, so this module wraps the model itself, with the policy of Accelerate over gloo.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import FullyShardedDataParallelPlugin
from support.models import random_tokens, tiny_model
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from modeling_xlm_swcm.training.sharding import shard_layers


def make_step(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()


def read_plugin() -> FullyShardedDataParallelPlugin:
    settings = yaml.safe_load((Path(__file__).parents[2] / "examples/presets/fsdp.yaml").read_text())["fsdp_config"]
    assert settings["fsdp_version"] == 1
    return FullyShardedDataParallelPlugin(
        fsdp_version=1,
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        use_orig_params=settings["fsdp_use_orig_params"],
        sync_module_states=settings["fsdp_sync_module_states"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
    )


def check_step(folder: Path, **options):
    """Write the names of the units and the share of the parameters that a process keeps to `units.json`."""
    options |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batches = [
        {"input_ids": random_tokens(4, 9, seed=seed), "labels": random_tokens(4, 6, seed=-seed)} for seed in (1, 2)
    ]

    whole = tiny_model(**options).train()
    make_step(whole, {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]})

    model, plugin = tiny_model(**options).train(), read_plugin()
    shard_layers(plugin, model)
    plugin.set_auto_wrap_policy(model)
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=plugin.auto_wrap_policy, use_orig_params=plugin.use_orig_params,
        device_id=torch.device("cpu"),
    )  # fmt: skip
    units = [type(module.module).__name__ for module in FullyShardedDataParallel.fsdp_modules(sharded)]
    kept = sum(parameter.numel() for parameter in sharded.parameters())
    total = sum(parameter.numel() for parameter in whole.parameters())
    make_step(sharded, batches[dist.get_rank()])

    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT):
        state = sharded.state_dict()
    expected = whole.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    if dist.get_rank() == 0:
        (folder / "units.json").write_text(json.dumps([sorted(units), round(kept / total, 2)]))
