"""Loops over own clusters and a pretext task, small; run as a script under torchrun, it trains them in two processes."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from training_task import at_step, state

from partlib.pretext import Crops, Rotation, convnet
from partlib.selfcluster import DeepCluster, DeepClusterV2, DeeperCluster
from partlib.training import fit

KINDS, EACH = 4, 11
# Not Adam, which divides by a gradient's size: where that is next to nothing, rounding becomes a step.
OPTIONS = {"epochs": 4, "batch": 12, "rate": 1e-3, "optimizer": partial(torch.optim.SGD, momentum=0.9), "seed": 5}


def planted(seed=0, side=16):
    """Pictures of four kinds, by colour and by the direction of their stripes, with some noise: `(44, 3, 16, 16)`, and the kinds."""
    draw, kinds = torch.Generator().manual_seed(seed), torch.arange(KINDS * EACH) % KINDS
    phase = 6 * torch.rand(len(kinds), 1, 1, 1, generator=draw)
    across = torch.arange(side).expand(side, side)[None, None]
    stripes = torch.where((kinds < 2)[:, None, None, None], across, across.transpose(2, 3)) * 1.5
    colour = torch.tensor([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1], [0.9, 0.9, 0.1]])[kinds][:, :, None, None]
    noise = 40 * torch.rand(len(kinds), 3, side, side, generator=draw)
    return (noise + colour * (120 + 80 * torch.sin(stripes + phase))).to(torch.uint8), kinds.numpy()


def counted(task):
    """The task with a buffer that counts its steps, which `at_step` waits for."""
    task.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def count(*_):
        task.steps += 1

    task.register_forward_pre_hook(count)
    return task


def tasks():
    """Each of them anew, by name."""
    seen, known = Crops(planted()[0], 0.8), planted()[1]
    made = {
        "reset": DeepCluster(convnet((6, 8, 8)), seen, 4, "reset", known=known),
        "align": DeepCluster(convnet((6, 8, 8)), seen, 4, "align"),
        "centroids": DeepCluster(convnet((6, 8, 8)), seen, 4, "centroids"),
        "v2": DeepClusterV2(convnet((6, 8, 8)), seen, 4),
        "deeper": DeeperCluster(convnet((6, 8, 8)), seen, 2, 2, every=2),
    }
    torch.manual_seed(0)
    return {name: counted(task) for name, task in (made | {"rotation": Rotation(convnet((6, 8, 8)), seen)}).items()}


def long_run(folder, name, tell=None):
    """A run with a checkpoint at each step; `tell` hears of each step. What it gave is left in a file."""
    torch.set_num_threads(1)
    task = tasks()[name]
    for step in range(1, 100 if tell else 0):
        at_step(task, step, lambda step=step: tell.send(step))
    history = fit(task, **OPTIONS, checkpoint=folder / "run.pt", every=0)
    torch.save(state(task, history), folder / "result.pt")


def in_processes(folder, start):
    """Each task; then one of them with a checkpoint, killed in its third epoch at the first start, going on at the second."""
    rank = int(os.environ["RANK"])
    if start == "first":
        torch.save({name: state(task, fit(task, **OPTIONS)) for name, task in tasks().items()}, folder / f"results{rank}.pt")
    task = tasks()["v2"]
    if start == "first":
        at_step(task, 10, lambda: os.kill(os.getpid(), signal.SIGKILL))
    torch.save(state(task, fit(task, **OPTIONS, checkpoint=folder / "run.pt", every=0)), folder / f"restarted{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_processes(Path(sys.argv[1]), sys.argv[2])
