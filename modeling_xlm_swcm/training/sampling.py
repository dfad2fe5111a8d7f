"""The order of training examples with `train_sampling_strategy="group_by_length"`."""

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthBucketSampler(LengthGroupedSampler):
    """
    Sample batches of similar length, in random order.

    Transformers returns up to 50 batches from the longest to the shortest, and then the next 50. In that order the
    loss swings with the length, and the order depends on a random state that no checkpoint stores.

    Args:
        sampler (`LengthGroupedSampler`):
            Sampler of Transformers with the batch size and the lengths.
        seed (`int`):
            Random seed of the order in epoch 0.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int):
        super().__init__(sampler.batch_size, lengths=sampler.lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Choose the order of an epoch."""
        self.generator.manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        indices, size = list(super().__iter__()), self.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        # The first batch has the longest example, which shows early if memory suffices. The last may be incomplete.
        middle = batches[1:-1]
        order = torch.randperm(len(middle), generator=self.generator)
        batches[1:-1] = [middle[number] for number in order]
        return iter([index for batch in batches for index in batch])
