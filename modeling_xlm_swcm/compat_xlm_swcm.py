"""Bridge the differences between the supported versions of Transformers.

Each item names the version of Transformers at which it can go. The other travelling files import this one first, so
that an unsupported version ends with the error of `check_transformers` and not with a missing name.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable

import torch
import transformers


# Version of this code. A model on the Hub contains a copy of it.
VERSION = "0.2.0"
MINIMUM_TRANSFORMERS = "5.20"


def check_transformers(installed: str):
    """Raise an `ImportError` if `installed` is older than the oldest supported version of Transformers."""
    oldest = tuple(int(part) for part in MINIMUM_TRANSFORMERS.split("."))
    if tuple(int(part) for part in installed.split(".")[:2]) < oldest:
        raise ImportError(
            f"XLM-SWCM needs transformers>={MINIMUM_TRANSFORMERS}, but transformers {installed} is installed. "
            f'Run: pip install "transformers>={MINIMUM_TRANSFORMERS},<6"'
        )


check_transformers(transformers.__version__)

from transformers.masking_utils import create_causal_mask  # noqa: E402
from transformers.utils import TransformersKwargs  # noqa: E402
from transformers.utils.output_capturing import OutputRecorder  # noqa: E402


# Transformers 5.24 renamed the cache of every forward, mask helper and model output. Remove this when 5.23 is no
# longer supported.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
OLD_CACHE = "past_key_values"
# Decorators of Transformers read `return_dict`. The loss of XLM-SWCM reads `label_smoothing`. A whole model has two
# kinds of positions, so it does not know `position_ids`.
KNOWN_KEYWORDS = {*TransformersKwargs.__annotations__, "return_dict", "label_smoothing"} - {"position_ids"}


def checked_forward(forward: Callable, ignored: Iterable[str] = ()) -> Callable:
    """
    Decorate the `forward` of a module that takes its cache as `cache` and passes `**kwargs` on.

    The cache is accepted as `cache` and as `past_key_values`. The signature has the name that the installed version
    of Transformers uses, because `generate` reads it there. A keyword raises an error if `forward` and Transformers'
    attention and loss functions do not know it. Without this check, a keyword that Transformers renames would be
    ignored.

    Args:
        forward (`Callable`):
            Method to decorate.
        ignored (`Iterable[str]`, *optional*):
            Unknown keywords that Transformers passes to this module. The module ignores them.

    Returns:
        `Callable`: the decorated method.

    Raises:
        TypeError: if an unknown keyword has a value other than `None`, or if the cache is given twice.
    """
    signature = inspect.signature(forward)
    # Dynamo of PyTorch 2.8 cannot trace operations on sets.
    known = tuple((signature.parameters.keys() | KNOWN_KEYWORDS) - {"self", "kwargs"})

    @functools.wraps(forward)
    def checked(self, *args, **kwargs):
        if (old_cache := kwargs.pop(OLD_CACHE, None)) is not None:
            if kwargs.get("cache") is not None:
                raise TypeError(
                    f"`cache` and `{OLD_CACHE}` are both set. Pass only `cache`. If you use prefix tuning of PEFT, "
                    "use LoRA instead."
                )
            kwargs["cache"] = old_cache
            if CACHE != OLD_CACHE and not torch.compiler.is_compiling():
                warnings.warn(f"`{OLD_CACHE}` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=2)
        for name in list(kwargs):
            if name not in known and kwargs.pop(name) is not None and name not in ignored:
                raise TypeError(
                    f"{type(self).__name__}.forward does not know the keyword `{name}`. Remove it, or check that "
                    f"your version of Transformers is supported by xlm-swcm {VERSION}."
                )
        return forward(self, *args, **kwargs)

    checked.__signature__ = signature.replace(
        parameters=[
            parameter.replace(name=CACHE) if parameter.name == "cache" else parameter
            for parameter in signature.parameters.values()
        ]
    )
    return checked


def output_recorder(target_class: type, num_hidden_layers_key: str) -> OutputRecorder:
    """Return a recorder of hidden states."""
    # 5.23 added `num_hidden_layers_key`. Remove this when 5.22 is no longer supported.
    if "num_hidden_layers_key" in inspect.signature(OutputRecorder).parameters:
        return OutputRecorder(target_class, num_hidden_layers_key=num_hidden_layers_key)
    return OutputRecorder(target_class)


def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Return the positions of `hidden_states` that the output projection needs."""
    # 5.21 added this function. Remove it here when 5.20 is no longer supported.
    if isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.ndim == 2:
        if logits_to_keep.dtype == torch.bool:
            return hidden_states[logits_to_keep]
        return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, kept]
