"""One process of a distributed training in the stock Trainer; writes what it decided and trained."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hf_runs import bert, ela, moves, stock, weights

folder = Path(sys.argv[1])
torch.set_num_threads(1)
method, model = ela(), bert()
model.accepts_loss_kwargs = False
trainer = stock(folder, method, model, per_device_train_batch_size=8 // int(os.environ["WORLD_SIZE"]))
trainer.train()
rank = int(os.environ["RANK"])
torch.save(weights(trainer.model), folder / f"weights-{rank}.pt")
(folder / f"moves-{rank}.json").write_text(json.dumps(moves(method)))
dist.destroy_process_group()  # else its threads are torn down by the interpreter, which aborts now and then
