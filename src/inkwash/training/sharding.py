"""A U-Net spread over processes (FSDP2, Zhao et al. 2023), and states that any number of them goes on from.

Each process holds its share of every weight, gradient and moment, and gathers the weights of a block while it computes. A
state is a folder of safetensors files, one a process, that torch's distributed checkpoints (DCP) write and read; nothing
is pickled.
"""

import json
import shutil
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from inkwash.files import ModelFileError, write_text
from inkwash.models.unet import Block, UNet
from inkwash.training.checkpoints import States, contents, fill_groups, load_first, take_next
from inkwash.training.distributed import World

FOLDERS = "state-next", "state", "state-previous"  # as of `take_next`
ABOUT = "about.json"  # written last, so that a folder with it is whole


def shard(unet: UNet, world: World) -> None:
    """Spread the U-Net's weights over the processes, block by block; alone nothing changes."""
    if world.size == 1:
        return
    for parameter in unet.parameters():
        parameter.data = parameter.data.contiguous()  # shards are of rows
    mesh = init_device_mesh(next(unet.parameters()).device.type, (world.size,))
    for block in [module for module in unet.modules() if isinstance(module, Block)]:
        fully_shard(block, mesh=mesh)
    # by default the outermost weights stay gathered, and a second step would compute with those of the first
    fully_shard(unet, mesh=mesh, reshard_after_forward=True)


def check_alike(module: nn.Module) -> None:
    """Check that all trained parameters are sharded, or none is; raise ValueError otherwise."""
    if len({isinstance(p, DTensor) for p in module.parameters() if p.requires_grad}) > 1:
        raise ValueError("parallel fsdp: what learns must be of the U-Net alone, or beside it; see text_lr")


def save_shards(folder: Path, step: int, states: States, world: World) -> None:
    """Write the state after `step` steps, each process its share; the newest one until now is kept as the previous one."""
    place = folder / FOLDERS[0]
    if world.is_first:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    world.wait()
    tensors, about = contents(states)
    tensors = {key: v if isinstance(v, DTensor) else v.contiguous() for key, v in tensors.items()}
    writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
    save(tensors, storage_writer=writer, no_dist=world.size == 1)
    world.wait()
    sums = checksums(place, world)
    if world.is_first:
        write_text(place / ABOUT, json.dumps(about | {"step": step, "crc32": sums}, sort_keys=True))
        take_next(folder, FOLDERS)
    world.wait()


def load_shards(folder: Path, states: States, world: World) -> int:
    """Fill everything in place from the newest state that is whole, written by however many processes; its step, 0 for none.

    Raises ModelFileError where there are states and none can be used.
    """

    def is_whole(place: Path) -> bool:
        return (place / ABOUT).exists()

    return load_first(folder, FOLDERS, is_whole, lambda place: load_folder(place, states, world), world)


def load_folder(place: Path, states: States, world: World) -> int:
    """Fill everything in place. Raises ModelFileError where a file is damaged, or of another training."""
    try:
        about = json.loads((place / ABOUT).read_text())
        if checksums(place, world) != about["crc32"]:
            raise ValueError("a checksum does not fit, so its bytes have changed")
        reader = HuggingFaceStorageReader(str(place))
        saved = set(reader.read_metadata().state_dict_metadata)
        for name, optimizer in states.optimizers.items():
            begin(
                optimizer, {int(key.split("/")[2]) for key in saved if key.startswith(f"optimizers/{name}/")}
            )
        tensors, _ = contents(states)
        if different := saved ^ set(tensors):
            raise ValueError(f"one of the two has no {min(different)}")
        load(tensors, storage_reader=reader, no_dist=world.size == 1)
        fill_groups(states, about)
        return int(about["step"])
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        CheckpointException,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"{place} is not a state of this training: {reason}") from error


def begin(optimizer: Optimizer, indices: set[int]) -> None:
    """Give the optimizer the states of these of its parameters, by a step of rate 0 that changes nothing."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for i in indices:
        parameters[i].grad = torch.zeros_like(parameters[i])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def checksums(place: Path, world: World) -> dict[str, int]:
    """CRC-32 of a folder's files, of which each process reads its share."""
    names = sorted(path.name for path in place.glob("*.safetensors"))
    mine = {name: crc32(place / name) for name in names[world.rank :: world.size]}
    if world.size == 1:
        return mine
    parts: list[dict[str, int]] = [{} for _ in range(world.size)]
    dist.all_gather_object(parts, mine)
    return {name: value for part in parts for name, value in part.items()}


def crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            total = zlib.crc32(block, total)
    return total
