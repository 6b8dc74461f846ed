"""One of two processes that train a tiny Llama whole, and with its frozen weights sharded by FSDP2, and print both."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from tiny_causal import tiny_llama
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from elalora import Budget, ElaLoRA, ElaLoRAConfig, RowwiseAdamW, Schedule

STEPS = 12


def train(sharded: bool) -> dict[str, object]:
    """Losses, rounds, final factors and the frozen numbers that this process holds."""
    model = tiny_llama().double()
    method = ElaLoRA(ElaLoRAConfig(t_initial=2, t_final=3, interval=2, b=4), Budget(3))
    method.attach(model, ["q_proj", "v_proj", "down_proj"], STEPS, seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, ignored_params=set(trained))
    frozen = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters() if not p.requires_grad]
    optimizer = RowwiseAdamW(method.groups(model, lr=5e-3, weight_decay=0.01), method.directions())
    schedule, losses = Schedule(optimizer, STEPS, warmup=2), []
    for step in range(STEPS):
        ids = (torch.arange(20)[None] * (step + 2) + dist.get_rank()) % 300 + 4  # each process has rows of its own
        penalty = method.penalty()
        loss = model(input_ids=ids, labels=ids).loss
        (loss + penalty).backward()
        for parameter in trained:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "losses": losses, "grown": [list(r.grown) for r in method.rounds_seen], "ranks": method.ranks(),
        "factors": [p.detach().flatten().tolist() for p in trained], "frozen": sum(p.numel() for p in frozen),
    }  # fmt: skip


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {"whole": train(False), "sharded": train(True)}
    with open(f"{sys.argv[1]}/{dist.get_rank()}.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
    dist.destroy_process_group()
