"""Small tasks for the training loop; run as a script under torchrun, it trains them in several processes."""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from partlib.training import Task, fit, gathered

N, D = 50, 6
SHARED = {"epochs": 3, "batch": 12, "rate": 0.03}  # steps of 10: 5 for each of two processes
UNEVEN = {"epochs": 3, "batch": 17, "rate": 0.03}  # steps of 17, 17 and 16: one process has an example more


class Regression(Task):
    """Linear regression; one weight never learns, and one never gets a gradient."""

    def __init__(self, n=N, spoiled=None):
        super().__init__()
        chance = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(n, D, generator=chance), torch.randn(n, generator=chance)
        self.spoiled = spoiled
        self.weight = nn.Parameter(torch.randn(D, generator=chance))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def __len__(self):
        return len(self.x)

    def forward(self, rows):
        errors = (self.x[rows] @ self.weight + self.frozen - self.y[rows]) ** 2
        if self.spoiled in rows.tolist():
            errors = errors * torch.nan
        return {"error": errors.mean(), "size": 0.1 * self.weight.square().sum()}


class Net(Regression):
    """All that a run must find again: drawn noise, dropout, a buffer made before each epoch, a weight that starts anew."""

    def __init__(self, n=N, dropout=0.5):
        super().__init__(n)
        chance = torch.Generator().manual_seed(6)
        self.hidden, self.norm = nn.Linear(D, 8), nn.BatchNorm1d(8, affine=False)
        self.head = nn.Parameter(torch.empty(8))
        for weight in (self.hidden.weight, self.hidden.bias, self.head):
            nn.init.normal_(weight, generator=chance)
        self.dropout = nn.Dropout(dropout)
        self.begun, self.seen = [], []
        self.register_buffer("targets", torch.zeros(n))
        self.register_buffer("chosen", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def begin(self, epoch, generator):
        self.targets = self.y + 0.1 * torch.randn(len(self), generator=generator) + 0.1 * self.head.detach().sum()
        self.chosen = self.targets + 0.1 * torch.randn(len(self)) > 0  # torch's own chance as well
        anew = [self.head] if epoch % 2 else []
        for weight in anew:
            nn.init.normal_(weight, generator=generator)
        self.begun.append((epoch, self.targets, self.chosen, self.head.detach().clone()))
        return anew

    def draw(self, rows, generator):
        self.seen.append((rows, 0.1 * torch.randn(len(rows), D, generator=generator)))
        return self.seen[-1]

    def forward(self, rows, noise):
        self.steps += 1
        hidden = self.dropout(self.norm(self.hidden(self.x[rows] + noise)).relu())
        return {"error": ((hidden @ self.head - self.targets[rows]) ** 2 * (1.0 + self.chosen[rows])).mean()}

    def end(self, epoch):
        return {"length": self.head.detach().norm()}

    def groups(self):
        return [{"params": [*self.hidden.parameters(), self.unused]}, {"params": [self.head], "scale": 3.0}]


class Pairs(Net):
    """Two noisy views of each example must find each other within the whole batch."""

    def draw(self, rows, generator):
        return rows, *(0.3 * torch.randn(2, len(rows), D, generator=generator))

    def forward(self, rows, one, other):
        self.steps += 1
        one, other = (gathered(F.normalize(self.hidden(self.x[rows] + noise) * self.head)) for noise in (one, other))
        return {"pairs": F.cross_entropy(one @ other.T / 0.2, torch.arange(len(one))), "rows": gathered(rows).float().mean()}


def state(task, history):
    """What a run gave, without what differs by the clock."""
    history = [{name: value for name, value in epoch.items() if name != "examples a second"} for epoch in history]
    return {"weights": {name: value.detach().clone() for name, value in task.state_dict().items()}, "history": history}


LONG = {"epochs": 6, "batch": 4, "rate": 0.02, "averaging": 0.9, "seed": 3}


def at_step(task, step, do):
    """Let something happen in the middle of a step."""

    def hook(*_):
        if task.steps == step:
            do()

    task.register_forward_hook(hook)
    return task


def long_run(folder, tell=None):
    """A run with a checkpoint at each step; `tell` hears of each step. What it gave is left in a file."""
    torch.set_num_threads(1)
    task = Net()
    for step in range(1, 100 if tell else 0):
        at_step(task, step, lambda step=step: tell.send(step))
    history = fit(task, **LONG, checkpoint=folder / "run.pt", every=0)
    torch.save(state(task, history), folder / "result.pt")
    return task


def fill_the_disk(folder):
    """A run whose disk is full from its fourth step on: no file may grow any more."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    task = at_step(Net(), 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    try:
        fit(task, **SHARED, checkpoint=folder / "run.pt", every=0)
    except OSError as error:
        (folder / "error").write_text(str(error), encoding="utf-8")


def in_processes(folder, start):
    """What the test of several processes compares; the last run is killed at the first start."""
    rank = int(os.environ["RANK"])
    if start == "first":
        results = {}
        for options in (SHARED, UNEVEN):
            for task in (Regression(), Pairs()):
                history = fit(task, **options)
                results[type(task).__name__, options["batch"]] = state(task, history)
        for name, task, batch in (("spoiled", Regression(spoiled=7), 12), ("small", Regression(), 1)):
            try:
                fit(task, batch=batch)
            except (FloatingPointError, ValueError) as error:
                results[name] = str(error)
        torch.save(results, folder / f"results{rank}.pt")
    task = Pairs()
    if start == "first":
        at_step(task, 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    history = fit(task, **UNEVEN, checkpoint=folder / "run.pt", every=0)
    torch.save(state(task, history) | {"begun": [epoch for epoch, *_ in task.begun]}, folder / f"restarted{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_processes(Path(sys.argv[1]), sys.argv[2])
