import random

import pytest
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from modeling_xlm_swcm.training.sampling import LengthBucketSampler


LENGTHS = random.Random(0).choices(range(1, 100), k=403)


@pytest.fixture
def sampler() -> LengthBucketSampler:
    return LengthBucketSampler(LengthGroupedSampler(4, lengths=LENGTHS), seed=3)


def batches(sampler: LengthBucketSampler) -> list[list[int]]:
    indices = list(sampler)
    return [indices[start : start + 4] for start in range(0, len(indices), 4)]


def test_every_example_comes_once_and_the_longest_comes_first(sampler):
    assert sorted(sampler) == list(range(len(LENGTHS))) and len(sampler) == len(LENGTHS)
    assert LENGTHS[batches(sampler)[0][0]] == max(LENGTHS)


def test_lengths_are_similar_inside_a_batch_and_do_not_fall_from_batch_to_batch(sampler):
    lengths = [[LENGTHS[index] for index in batch] for batch in batches(sampler)[1:-1]]
    assert max(max(batch) - min(batch) for batch in lengths) < 25
    firsts = torch.tensor([float(batch[0]) for batch in lengths])
    correlation = torch.corrcoef(torch.stack([firsts[:-1], firsts[1:]]))[0, 1]
    assert abs(correlation) < 0.3


def test_each_epoch_has_an_order_of_its_own_which_repeats(sampler):
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first == list(sampler) != second


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8])
def test_few_examples(size):
    sampler = LengthBucketSampler(LengthGroupedSampler(4, lengths=LENGTHS[:size]), seed=0)
    assert sorted(sampler) == list(range(size))
