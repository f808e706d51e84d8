"""One loop for everything that is trained by gradient: a task says what is lost on some examples, `fit` makes it less.

A run can be killed at any step and started again: it ends with the weights of one that was never stopped, bit for bit on a
CPU. Nothing random is carried along for that; the order of an epoch and whatever a step draws come from seeds of their own,
(seed, epoch, step). Under `torchrun` the same call trains in several processes; what a task draws is drawn for the whole
batch before it is shared out, so that their number changes nothing but the time. (It does change dropout, and the batch
norm of a share: a task that wants neither draws its own chance, and gathers what it compares.)
"""

import math
import os
import signal
import threading
import time
import zipfile
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ._checks import check_count
from ._progress import progress

SCHEDULES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "step": lambda done: 0.1 ** int(3 * done),  # a tenth after each third
}


class DamagedCheckpoint(ValueError):
    """A file that holds no checkpoint of this run; the message says why and what to do."""


class Task(nn.Module, ABC):
    """What `fit` trains: a module that knows `n` examples by their numbers, and what is lost on some of them.

    Everything that a run must find again belongs to its parameters and buffers, of lasting shapes: pseudo-labels and memory
    banks too.
    """

    @abstractmethod
    def __len__(self):
        """n."""

    def draw(self, rows: Int[Tensor, "m"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """What one step works on: tensors of `m` entries, one for each example, and all of the step's chance."""
        return (rows,)

    @abstractmethod
    def forward(self, *drawn: Tensor) -> dict[str, Tensor]:
        """The terms of the loss by name, each a number, weighed; means over the examples."""

    def begin(self, epoch: int, generator: torch.Generator) -> list[nn.Parameter]:
        """Whatever comes before an epoch, as clustering; the parameters that start anew, whose momentum is forgotten."""
        return []

    def end(self, epoch: int) -> dict[str, float]:
        """What to remember of the state after an epoch: it goes into the history."""
        return {}

    def groups(self) -> list[dict]:
        """Parameter groups as optimizers take them; `scale` multiplies the rate of a group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def fit(
    task: Task, epochs=10, batch=256, rate=1e-3, optimizer: Callable = torch.optim.Adam, schedule="cosine", averaging=0.0,
    mixed=False, checkpoint=None, every=30.0, seed=0,
) -> list[dict]:  # fmt: skip
    """Train the task in place; what each epoch gave: its terms' means, rate at first, examples a second, `task.end`.

    Args:
        batch: examples of a step, at most: the batches of an epoch are of one size, nearly. With several processes each
            takes its share of it.
        optimizer: parameter groups, lr → optimizer: `functools.partial(torch.optim.SGD, momentum=0.9)`, for instance.
        schedule: "cosine" to 0, "step": a tenth after each third, or "constant".
        averaging: each step's weights enter a running average by 1 − averaging, and the task ends with that; 0: as it is.
        mixed: bfloat16 where the device computes in it.
        checkpoint: a file that the run is kept in, and goes on from where it exists (one that all processes see).
        every: seconds between two writings; the end of the run, and Ctrl-C between its steps, write once more.
        seed: of the order of examples and of whatever a step draws.

    Raises:
        FloatingPointError: a term of the loss, or its gradient, is NaN or infinite; the message names the step and which.
        DamagedCheckpoint: the file holds something else, or another run.
        OSError: the file cannot be written; an older one is still whole.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: the rate follows {', '.join(SCHEDULES)}")
    if not 0 <= averaging < 1:
        raise ValueError(f"averaging={averaging}: the share that an average keeps at each step is from 0 to below 1")
    if not any(p.requires_grad for p in task.parameters()):
        raise ValueError(f"{type(task).__name__} has no parameters that learn: at least one must have requires_grad=True")
    n = len(task)
    batch = check_count(min(batch, n), n, "examples a batch", "examples")
    rank, count = _processes(next(task.parameters()).device)
    if n // math.ceil(n / batch) < count:
        raise ValueError(f"{count} processes for batches of {batch} of {n} examples: take larger batches, or fewer processes")
    run = _Run(task, epochs, batch, rate, optimizer, schedule, averaging, mixed, every, seed, rank, count)
    return run.go(None if checkpoint is None else Path(checkpoint))


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, one share after the other, gradients included; with one process, `x`.

    What a loss compares within the batch must be gathered first: then several processes lose what one would.
    """
    if not several():
        return x
    rank = distributed.get_rank()
    lengths = torch.zeros(distributed.get_world_size(), dtype=torch.long, device=x.device)
    lengths[rank] = len(x)
    distributed.all_reduce(lengths)
    before, after = int(lengths[:rank].sum()), int(lengths[rank + 1 :].sum())
    return summed(torch.cat([x.new_zeros(before, *x.shape[1:]), x, x.new_zeros(after, *x.shape[1:])]))


def summed(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, gradients included; with one process, `x`."""
    return _Sum.apply(x) if several() else x


def several() -> bool:
    """Whether the batch is shared by several processes."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each of them loses by it is summed as well."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


class _Run:
    def __init__(self, task, epochs, batch, rate, optimizer, schedule, averaging, mixed, every, seed, rank, count):
        self.task, self.epochs, self.batch, self.rate, self.schedule = task, epochs, batch, rate, SCHEDULES[schedule]
        self.averaging, self.mixed, self.every, self.seed, self.rank, self.count = averaging, mixed, every, seed, rank, count
        self.optimizer = optimizer(task.groups(), lr=rate)
        self.weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.averages = [p.detach().clone() for p in self.weights] if averaging else []
        self.device = self.weights[0].device
        self.history, self.epoch, self.step, self.sums = [], 0, 0, {}
        self.about = {
            "task": type(task).__name__, "examples": len(task), "epochs": epochs, "batch": batch, "rate": rate,
            "optimizer": type(self.optimizer).__name__, "schedule": schedule, "averaging": averaging, "mixed": mixed,
            "seed": seed, "shapes": {name: list(value.shape) for name, value in task.state_dict().items()},
        }  # fmt: skip

    def go(self, file):
        self.file, self.saved = file, time.monotonic()
        if file is not None and file.exists():
            self._load()
        else:
            self._save()  # a file that cannot be written is known before the work
        # Frozen layers and terms that come and go leave some weights without a gradient, as they may in one process.
        module = DistributedDataParallel(self.task, find_unused_parameters=True) if self.count > 1 else self.task
        n, steps = len(self.task), math.ceil(len(self.task) / self.batch)
        done = round((self.epoch + self.step / steps) * n)
        name = type(self.task).__name__.lower()
        bar = progress(total=self.epochs * n, initial=done, desc=name, unit="image", leave=False)
        with bar, _own_chance(self.device) as self.chance:
            while self.epoch < self.epochs:
                self._one_epoch(module, steps, bar)
        for weight, average in zip(self.weights, self.averages):
            weight.detach().copy_(average)
        return self.history

    def _one_epoch(self, module, steps, bar):
        if self.step == 0:
            self._begin()
        order = torch.randperm(len(self.task), generator=self._chance(1))
        start, seen = time.monotonic(), 0
        with _interruptions() as interrupted:
            for rows in order.tensor_split(steps)[self.step :]:
                self._one_step(module, rows, (self.epoch + self.step / steps) / self.epochs)
                self.step, seen = self.step + 1, seen + len(rows)
                bar.update(len(rows))
                bar.set_postfix(loss=f"{sum(self.sums.values()) / self.step:.3f}", refresh=False)
                if interrupted or time.monotonic() - self.saved >= self.every:
                    self._save()
                if interrupted:
                    break
        if interrupted:
            raise KeyboardInterrupt
        means = {name: value / steps for name, value in self.sums.items()}
        rate = {"rate": self.rate * self.schedule(self.epoch / self.epochs)}
        speed = {"examples a second": seen / max(time.monotonic() - start, 1e-9)}
        state = {name: float(value) for name, value in self.task.end(self.epoch).items()}
        self.history.append({"epoch": self.epoch} | means | rate | speed | state)
        self.epoch, self.step = self.epoch + 1, 0
        if self.epoch == self.epochs:
            self._save()

    def _begin(self):
        self.sums = {}
        anew = set(self.task.begin(self.epoch, self._chance(0)))
        if self.count > 1:  # what each process computed may differ by rounding
            for value in self.task.state_dict().values():
                distributed.broadcast(value, 0)
        for parameter in anew:
            self.optimizer.state.pop(parameter, None)
        for weight, average in zip(self.weights, self.averages):
            if weight in anew:
                average.copy_(weight.detach())

    def _one_step(self, module, rows, done):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group.get("scale", 1.0) * self.schedule(done)
        drawn = self.task.draw(rows, self._chance(2 + self.step))
        mine = [x.tensor_split(self.count)[self.rank].to(self.device) for x in drawn]
        share = len(mine[0]) * self.count / len(rows)  # 1, nearly: one process may have an example more than another
        self.task.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            terms = {name: share * term for name, term in module(*mine).items()}
        self._note(terms)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        gradients = [w.grad for w in self.weights if w.grad is not None]
        self._check("its gradient", float(nn.utils.get_total_norm(gradients)))
        self.optimizer.step()
        if self.averaging:
            torch._foreach_lerp_(self.averages, [w.detach() for w in self.weights], 1 - self.averaging)

    def _note(self, terms):
        """Add to the epoch's sums; every process sees the means over all of them, and stops at the same NaN."""
        values = torch.stack([term.detach().float() for term in terms.values()])
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        for name, value in zip(terms, values.tolist()):
            self._check(name, value)
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _check(self, name, value):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is no number at step {self.step + 1} of epoch {self.epoch + 1}: {name} is {value}. Take a lower rate "
                f"than {self.rate}, or look for NaN in the maps; the weights are those before this step"
            )

    def _chance(self, what):
        """A generator for this part of the epoch; torch's own chance (dropout and its like) starts anew as well."""
        seed = int(np.random.SeedSequence([self.seed, self.epoch, what]).generate_state(1)[0])
        for own in self.chance:
            own.manual_seed(seed + self.rank)
        return torch.Generator().manual_seed(seed)

    # The file.

    def _save(self):
        self.saved = time.monotonic()
        if self.file is None or self.rank > 0:
            return
        state = {
            "about": self.about, "epoch": self.epoch, "step": self.step, "sums": self.sums, "history": self.history,
            "task": self.task.state_dict(), "optimizer": self.optimizer.state_dict(), "averages": self.averages,
        }  # fmt: skip
        part = self.file.with_name(self.file.name + ".part")
        try:
            torch.save(state, part)
            os.replace(part, self.file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            part.unlink(missing_ok=True)
            why = f"could not be written ({str(error).splitlines()[0]}): is there such a folder, and room on the disk?"
            raise OSError(f"the checkpoint {self.file} {why}") from None

    def _load(self):
        try:
            with zipfile.ZipFile(self.file) as file:
                whole = file.testzip() is None  # torch compares no checksums
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            kept = {name: state[name] for name in ("epoch", "step", "sums", "history")}
            about, task, optimizer, averages = dict(state["about"]), state["task"], state["optimizer"], state["averages"]
        except OSError:
            raise
        except Exception:  # a damaged file fails in many ways
            whole = False
        if not whole:
            raise DamagedCheckpoint(f"{self.file} holds no checkpoint, or is damaged: delete it, and the run starts anew")
        other = [name for name, value in self.about.items() if about.get(name) != value]
        if other:
            named = ", ".join(name if name == "shapes" else f"{name} {about.get(name)}" for name in other)
            raise DamagedCheckpoint(f"{self.file} is of another run (its {named}): give another file, or delete it")
        self.task.load_state_dict(task)
        self.optimizer.load_state_dict(optimizer)
        self.averages = [average.to(self.device) for average in averages]
        vars(self).update(kept)


def _processes(device):
    """This process's number and how many there are: those that torchrun started, or one."""
    if distributed.is_torchelastic_launched() and not distributed.is_initialized():
        # It stays until the program ends: a second group would look for the ends of the first one, and not find them.
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


@contextmanager
def _interruptions():
    """Ctrl-C is noted in a list, nothing else: half a step is no state that a run could go on from."""
    noted = []
    if threading.current_thread() is not threading.main_thread():  # the others never hear of it
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda *what: noted.append(what))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _own_chance(device):
    """Where torch takes its chance from, for work on this device; the caller's random state is as it was, afterwards."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    before = [own.get_state() for own in generators]
    try:
        yield generators
    finally:
        for own, state in zip(generators, before):
            own.set_state(state)
