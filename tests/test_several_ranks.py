"""One rank or two, in every way of splitting the work: the same bases and weights."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from transformers_sem import TASKS
from transformers_sem.modeling_sem import SEMDecoderStage, SEMIntraTaskModule, mean_over_images

from .samples import random_labels, random_logits
from .test_modeling_sem import ALL_TASKS, assert_same, bases_of, build_model, random_images


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


def cost_of_share(rank, folder):
    """Loss and gradient of every task on this rank's share of eight images, which are valid to different degrees."""
    join_group(rank, 2, folder)
    torch.save(costs(slice(0, 3) if rank == 0 else slice(3, 8)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def costs(share):
    torch.manual_seed(0)
    found = {}
    for task in TASKS:
        parts = [random_labels(task, 1, (6, 7), invalid_share=image / 8) for image in range(8)]
        logits = random_logits(task, 8, (6, 7)).requires_grad_()
        loss = TASKS[task].loss(logits[share], torch.cat(parts)[share])
        loss.backward()
        found[task] = loss.detach(), logits.grad
    return found


def test_the_mean_loss_of_the_ranks_is_that_of_all_images(tmp_path):
    mp.start_processes(cost_of_share, args=(tmp_path,), nprocs=2, start_method="fork")
    ranks, expected = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)], costs(slice(0, 8))
    for task in TASKS:
        mean = [sum(values) / 2 for values in zip(*(rank[task] for rank in ranks), strict=True)]
        assert_same(mean, list(expected[task]), rtol=1e-5, atol=1e-7)


def learn_from_part(rank, folder, is_training):
    """Each rank has labels of other tasks, and one of more than the other."""
    join_group(rank, 2, folder)
    model = DistributedDataParallel(build_model(task_num_labels=ALL_TASKS).train(is_training))
    tasks = ["depth", "semseg"] if rank == 0 else ["normal"]
    labels = {task: random_labels(task, 2, (64, 96), num_labels=ALL_TASKS[task]) for task in tasks}
    outputs = model(random_images(2, seed=rank), labels=labels)
    outputs.loss.backward()
    torch.save((outputs.losses, [value.grad for value in model.parameters()]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("is_training", [True, False])  # the latter keeps bases and batch norms as they are
def test_ranks_may_have_labels_of_different_tasks(tmp_path, is_training):
    mp.spawn(learn_from_part, args=(tmp_path, is_training), nprocs=2)
    (first, gradients), (second, same) = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))
    for task in ALL_TASKS:
        assert (first[task] > 0) == (task in ("depth", "semseg")) and (second[task] > 0) == (task == "normal")


def shard(model, **options):
    for module in model.modules():
        if isinstance(module, (SEMDecoderStage, SEMIntraTaskModule)):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def test_input_embeddings_of_a_sharded_encoder_are_sharded_with_it(tmp_path):
    """accelerate shards the input embeddings unless they are sharded, and FSDP2 refuses a layer inside of a sharded module."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model, mesh = build_model(), init_device_mesh("cpu", (1,))
        fully_shard(model.sem.backbone, mesh=mesh)
        assert model.get_input_embeddings() is model.sem.backbone
        fully_shard(model, mesh=mesh)
        assert model.get_input_embeddings() is model.sem.backbone
    finally:
        dist.destroy_process_group()


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
    """Trains on this rank's share; saves bases and weights."""
    join_group(rank, num_ranks, folder)
    init_device_mesh("cpu", (num_ranks,))
    model = WAYS[way](build_model(task_num_labels=ALL_TASKS).train())
    take_steps(model, slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks))
    weights = [value.full_tensor() if isinstance(value, DTensor) else value.detach() for value in model.parameters()]
    torch.save((bases_of(model), weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def take_steps(model, share):
    """On some of eight images, which are valid to different degrees."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(NUM_STEPS):
        torch.manual_seed(step)
        images = random_images(8, seed=step)
        labels = {
            task: torch.cat(
                [random_labels(task, 1, tuple(images.shape[-2:]), image / 8, num_labels) for image in range(8)]
            )
            for task, num_labels in ALL_TASKS.items()
        }
        model(images[share], labels={task: label[share] for task, label in labels.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def learn_alone():
    model = build_model(task_num_labels=ALL_TASKS).train()
    take_steps(model, slice(0, 8))
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
