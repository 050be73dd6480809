"""One rank or two, in every way of splitting the work: the same bases and weights."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from transformers_sem.modeling_sem import SEMDecoderStage, SEMIntraTaskModule, mean_over_images

from .test_modeling_sem import NYUD_TASKS, assert_same, bases_of, build_model, random_images, random_labels


NUM_STEPS = 2


def join_group(rank, num_ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=num_ranks)


def average_share(rank, folder):
    """Rank 0 holds three of eight images, rank 1 the others."""
    join_group(rank, 2, folder)
    values = torch.arange(16.0).view(8, 2)
    torch.save(mean_over_images(values[:3] if rank == 0 else values[3:]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_mean_is_over_the_images_of_all_ranks(tmp_path):
    # fork, which is quick, will do: the ranks add up a handful of numbers in one thread
    mp.start_processes(average_share, args=(tmp_path,), nprocs=2, start_method="fork")
    expected = torch.arange(16.0).view(8, 2).mean(dim=0)
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=0, atol=1e-6)


def shard(model, **options):
    for module in model.modules():
        if isinstance(module, (SEMDecoderStage, SEMIntraTaskModule)):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def compiled(model):
    return DistributedDataParallel(torch.compile(model, backend="eager", fullgraph=True))


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return DistributedDataParallel(model)


def sharded_in_half_precision(model):
    return shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


WAYS = {
    "ddp": DistributedDataParallel,
    "compiled ddp": compiled,
    "checkpointed ddp": checkpointed,
    "fsdp2": shard,
    "fsdp2 in half precision": sharded_in_half_precision,
}


def learn(rank, num_ranks, folder, way):
    """Trains on this rank's share of eight images; saves bases and weights."""
    join_group(rank, num_ranks, folder)
    init_device_mesh("cpu", (num_ranks,))
    model = WAYS[way](build_model().train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    share = slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks)
    for step in range(NUM_STEPS):
        labels = {task: label[share] for task, label in random_labels(NYUD_TASKS, 8, seed=step).items()}
        # every image has as many valid pixels, so the mean over ranks is the mean over images
        model(random_images(8, seed=step)[share], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = [value.full_tensor() if isinstance(value, DTensor) else value.detach() for value in model.parameters()]
    torch.save((bases_of(model), weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def learn_alone():
    model = build_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(NUM_STEPS):
        model(random_images(8, seed=step), labels=random_labels(NYUD_TASKS, 8, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return bases_of(model), [value.detach() for value in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_eight_images_on_one_rank_are_two_times_four(way, tmp_path):
    mp.spawn(learn, args=(2, tmp_path, way), nprocs=2)
    bases, weights = learn_alone()
    half = "half" in way
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert_same(together[0], bases, rtol=0, atol=0.005 if half else 1e-5)
        assert_same(together[1], weights, rtol=0, atol=0.05 if half else 1e-4)
        assert {value.dtype for value in (*together[0], *together[1])} == {torch.float32}
    for ours, theirs in zip(*(torch.load(tmp_path / f"{rank}.pt")[0] for rank in range(2)), strict=True):
        assert torch.equal(ours, theirs)
