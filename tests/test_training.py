"""The training loop: what it computes, written out; the same weights whatever stops it; the same in several processes."""

import copy
import math
import os
import pickle
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import training_task
from common import close, one_sentence
from processes import forks, in_two, killed_until_done, same
from torch import nn
from training_task import LONG, SHARED, UNEVEN, N, Net, Pairs, Regression, at_step, fill_the_disk, long_run, state

from partlib import training
from partlib.training import DamagedCheckpoint, fit, gathered

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(task, **options):
    return state(task, fit(task, **options))


# ---- what is computed ----

RATES = {
    "constant": lambda done: 0.05,
    "cosine": lambda done: 0.05 * math.cos(math.pi * done / 2) ** 2,
    "step": lambda done: 0.05 if done < 1 / 3 else 0.005 if done < 2 / 3 else 0.0005,
}
OPTIMIZERS = {"adam": torch.optim.Adam, "momentum": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01)}


@pytest.mark.parametrize("averaging", [0.0, 0.8])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", RATES)
def test_fit_is_the_loop_written_out(schedule, optimizer, averaging):
    task, epochs, steps = Net(dropout=0.0), 4, 5
    twin, new = copy.deepcopy(task), OPTIMIZERS[optimizer]
    history = fit(task, epochs, 12, 0.05, new, schedule, averaging)
    weights = [*twin.hidden.parameters(), twin.head]
    average = [p.detach().clone() for p in weights]
    body, head = new(weights[:2], lr=1.0), new(weights[2:], lr=1.0)
    assert len(history) == len(task.begun) == epochs and len(task.seen) == epochs * steps
    for epoch in range(epochs):
        drawn, losses = task.seen[epoch * steps : (epoch + 1) * steps], []
        assert sorted(row for rows, _ in drawn for row in rows.tolist()) == list(range(N))
        begun, targets, chosen, start = task.begun[epoch]
        assert begun == epoch
        if epoch % 2:
            twin.head.detach().copy_(start)
            average[2], head = start, new(weights[2:], lr=1.0)
        for step, (rows, noise) in enumerate(drawn):
            rate = RATES[schedule]((epoch + step / steps) / epochs)
            body.param_groups[0]["lr"], head.param_groups[0]["lr"] = rate, 3 * rate
            hidden = twin.norm(twin.hidden(twin.x[rows] + noise)).relu()
            loss = ((hidden @ twin.head - targets[rows]) ** 2 * (1.0 + chosen[rows])).mean()
            losses.append(loss.item())
            body.zero_grad()
            head.zero_grad()
            loss.backward()
            body.step()
            head.step()
            average = [averaging * a + (1 - averaging) * p.detach() for a, p in zip(average, weights)]
        assert history[epoch]["epoch"] == epoch and history[epoch]["examples a second"] > 0
        assert history[epoch]["error"] == pytest.approx(sum(losses) / steps, rel=1e-4)
        assert history[epoch]["rate"] == pytest.approx(RATES[schedule](epoch / epochs), rel=1e-6, abs=1e-12)
        assert history[epoch]["length"] == pytest.approx(twin.head.norm().item(), rel=1e-4)
    for weight, expected in zip((*task.hidden.parameters(), task.head), average):
        close(weight, expected)
    close(task.norm.running_mean, twin.norm.running_mean)
    assert torch.equal(task.unused, twin.unused) and torch.equal(task.weight, twin.weight)


def test_batches_are_of_one_size_nearly():
    task = Net(n=23)
    fit(task, epochs=2, batch=10)
    assert [len(rows) for rows, _ in task.seen] == [8, 8, 7] * 2
    assert not torch.equal(task.seen[0][0], task.seen[3][0])  # each epoch has an order of its own
    fit(other := Net(n=3), epochs=1, batch=1000)
    assert [len(rows) for rows, _ in other.seen] == [3]


def test_a_loss_of_two_terms_is_their_sum():
    task = Regression()
    x, y = task.x, task.y - 1
    history = fit(task, epochs=300, batch=N, rate=0.5, optimizer=torch.optim.SGD)
    exact = torch.linalg.solve(x.T @ x / N + 0.1 * torch.eye(x.shape[1]), x.T @ y / N)
    close(task.weight, exact)
    assert history[-1]["size"] == pytest.approx(0.1 * float(exact.square().sum()), rel=1e-3)
    assert history[-1]["error"] == pytest.approx(float((x @ exact - y).square().mean()), rel=1e-3)


def test_bfloat16():
    exact, coarse = trained(Net(), **SHARED), trained(Net(), **SHARED, mixed=True)
    assert all(value.dtype == exact["weights"][name].dtype for name, value in coarse["weights"].items())
    close(coarse["weights"]["hidden.weight"], exact["weights"]["hidden.weight"], 0.2)
    assert not torch.equal(coarse["weights"]["hidden.weight"], exact["weights"]["hidden.weight"])


def test_seeds():
    tasks = [Net(), Net(), Net()]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(tasks[0], **SHARED, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same(trained(tasks[1], **SHARED, seed=4), first)
    other = trained(tasks[2], **SHARED, seed=5)
    assert not torch.equal(other["weights"]["hidden.weight"], first["weights"]["hidden.weight"])
    before = torch.get_rng_state()
    with pytest.raises(FloatingPointError):
        fit(Regression(spoiled=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_gathered_alone_is_what_it_was():
    x = torch.rand(3, 2)
    assert gathered(x) is x


# ---- stopped and started again ----


@pytest.fixture(scope="module")
def never_stopped():
    return trained(Net(), **LONG)


@pytest.fixture(scope="module")
def server():
    return forks("training_task")


def test_killed_at_any_moment(server, never_stopped, tmp_path):
    steps = LONG["epochs"] * math.ceil(N / LONG["batch"])
    killed = killed_until_done(server, long_run, (tmp_path,), tmp_path, 2, steps // 4)
    assert killed >= 3 and [*tmp_path.glob("run.pt*")]
    same(torch.load(tmp_path / "result.pt"), never_stopped)


BROKEN_OFF = {  # at which call of which function → the epoch that begins first when the run goes on
    ("begin", 1): 0, ("begin", 3): 2, ("draw", 1): 0, ("draw", 2): 1, ("forward", 15): 2, ("end", 1): 1, ("end", 6): 6,
    ("_save", 1): 0, ("_save", 2): 0, ("_save", 3): 1, ("_load", 1): 0,
}  # fmt: skip


@pytest.mark.parametrize("where, call", BROKEN_OFF)
def test_broken_off_anywhere(monkeypatch, never_stopped, tmp_path, where, call):
    owner, calls = training._Run if where.startswith("_") else Net, []
    original = getattr(owner, where)

    def stop(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError
        return original(*arguments)

    monkeypatch.setattr(owner, where, stop)
    if where != "_load":
        with pytest.raises(ZeroDivisionError):
            long_run(tmp_path)
    monkeypatch.undo()
    again = long_run(tmp_path)
    same(torch.load(tmp_path / "result.pt"), never_stopped)
    assert [epoch for epoch, *_ in again.begun] == list(range(BROKEN_OFF[where, call], LONG["epochs"]))


@pytest.mark.parametrize("step", [1, 5, 13])  # the last one: all steps of an epoch are done
def test_ctrl_c_waits_for_the_step_and_writes(never_stopped, tmp_path, step):
    task, file = at_step(Net(), step, lambda: os.kill(os.getpid(), signal.SIGINT)), tmp_path / "run.pt"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(task, **LONG, checkpoint=file)
    assert signal.getsignal(signal.SIGINT) is before
    kept = torch.load(file)
    assert (kept["epoch"], kept["step"], len(task.seen)) == (0, step, step)
    again = Net()
    same(trained(again, **LONG, checkpoint=file), never_stopped)
    assert len(again.seen) == 6 * 13 - step and len(again.begun) == 5


def test_ctrl_c_between_the_steps_ends_at_once(never_stopped, tmp_path):
    class Slow(Net):
        def begin(self, epoch, generator):
            anew = super().begin(epoch, generator)
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return anew

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Slow(), **LONG, checkpoint=tmp_path / "run.pt", every=0)
    finally:
        signal.signal(signal.SIGINT, before)
    Slow.begin = Net.begin
    same(trained(Slow(), **LONG, checkpoint=tmp_path / "run.pt"), never_stopped)


def test_outside_the_main_thread(never_stopped, tmp_path):
    thread = threading.Thread(target=long_run, args=[tmp_path])
    thread.start()
    thread.join()
    assert (tmp_path / "result.pt").exists(), "the run in the thread failed"
    same(torch.load(tmp_path / "result.pt"), never_stopped)


def test_a_finished_run_returns_at_once(never_stopped, tmp_path):
    file = tmp_path / "run.pt"
    first = Net()
    history = fit(first, **LONG, checkpoint=file)
    before, task = file.read_bytes(), Net()
    assert fit(task, **LONG, checkpoint=file) == history
    same(state(task, history), never_stopped)
    assert not task.seen and not task.begun and file.read_bytes() == before


def test_how_often_it_is_written(monkeypatch, tmp_path):
    written, save = [], training._Run._save
    monkeypatch.setattr(training._Run, "_save", lambda run: (written.append((run.epoch, run.step)), save(run)))
    fit(Net(), **SHARED, checkpoint=tmp_path / "run.pt")
    assert written == [(0, 0), (3, 0)]
    written.clear()
    fit(Net(), **SHARED, checkpoint=tmp_path / "other.pt", every=0)
    assert written == [(0, 0), *((epoch, step) for epoch in range(3) for step in range(1, 6)), (3, 0)]


# ---- the file ----


@pytest.fixture
def file(tmp_path):
    fit(Net(), **SHARED, checkpoint=tmp_path / "run.pt")
    return tmp_path / "run.pt"


def flip(file):
    data = bytearray(file.read_bytes())
    data[data.index(torch.load(file)["task"]["hidden.weight"].numpy().tobytes()) + 9] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("weights"),
    "a flipped bit in the weights": lambda file: flip(file),
    "weights alone": lambda file: torch.save(Net().state_dict(), file),
    "a list": lambda file: torch.save([1, 2], file),
    "a pickle": lambda file: file.write_bytes(pickle.dumps({"about": {}})),
    "a whole module": lambda file: torch.save({"about": nn.Linear(2, 2)}, file),
    "half of it": lambda file: torch.save({"about": torch.load(file)["about"], "epoch": 0}, file),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(file, damage):
    DAMAGE[damage](file)
    task, before = Net(), file.read_bytes()
    with pytest.raises(DamagedCheckpoint) as caught:
        fit(task, **SHARED, checkpoint=file)
    one_sentence(caught, str(file), "damaged", "delete it")
    assert not task.seen and file.read_bytes() == before
    same(state(task, []), state(Net(), []))


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_a_checkpoint_runs_nothing(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(file) | {"sums": Trap()}, file)
    with pytest.raises(DamagedCheckpoint):
        fit(Net(), **SHARED, checkpoint=file)
    assert not Path("trapped").exists()
    torch.load(file, weights_only=False)
    assert Path("trapped").exists()  # so it was one


OTHER = {
    "batch 12": {"batch": 10}, "seed 0": {"seed": 1}, "epochs 3": {"epochs": 4}, "rate 0.03": {"rate": 0.1}, "averaging 0.0": {"averaging": 0.5},
    "schedule cosine": {"schedule": "step"}, "optimizer Adam": {"optimizer": torch.optim.SGD}, "mixed False": {"mixed": True},
    "task Net": {"task": Pairs()}, "examples 50": {"task": Net(40)}, "shapes": {"task": Net(40)},
}  # fmt: skip


@pytest.mark.parametrize("named", OTHER)
def test_another_run_is_refused(file, named):
    options = {"task": Net()} | SHARED | OTHER[named]
    before = file.read_bytes()
    with pytest.raises(DamagedCheckpoint) as caught:
        fit(**options, checkpoint=file)
    said = one_sentence(caught, str(file), "another run", named, "another file")
    assert len(OTHER) == 11 and not [word for word in OTHER if word != named and word in said and "task" not in OTHER[named]]
    assert file.read_bytes() == before


def test_a_full_disk_leaves_the_older_checkpoint(server, tmp_path):
    child = server.Process(target=fill_the_disk, args=[tmp_path])
    child.start()
    child.join()
    said, file = (tmp_path / "error").read_text(encoding="utf-8"), tmp_path / "run.pt"
    assert "\n" not in said and str(file) in said and "could not be written" in said and "room on the disk" in said
    assert torch.load(file)["step"] == 3 and {path.name for path in tmp_path.iterdir()} == {"error", "run.pt"}
    same(trained(Net(), **SHARED, checkpoint=file), trained(Net(), **SHARED))


def test_a_missing_folder_is_named_before_the_work(tmp_path):
    task = Net()
    with pytest.raises(OSError) as caught:
        fit(task, checkpoint=tmp_path / "missing" / "run.pt")
    one_sentence(caught, "missing", "is there such a folder")
    assert not task.begun


# ---- what cannot be trained ----


def test_nan_names_the_step_and_the_term():
    task = Regression(spoiled=7)
    order = []
    task.register_forward_pre_hook(lambda _, drawn: order.append((drawn[0].tolist(), task.weight.detach().clone())))
    with pytest.raises(FloatingPointError) as caught:
        fit(task, batch=12)
    step = [7 in rows for rows, _ in order].index(True)
    one_sentence(caught, f"step {step + 1} of epoch 1", "error is nan", "0.001")
    assert len(order) == step + 1 and torch.equal(task.weight, order[-1][1])


def test_a_gradient_of_nan_stops_before_the_weights_take_it():
    class Root(Regression):
        def forward(self, rows):
            return {"root": (0 * self.weight).square().sum().sqrt()}

    task = Root()
    before = task.weight.detach().clone()
    with pytest.raises(FloatingPointError) as caught:
        fit(task)
    one_sentence(caught, "step 1 of epoch 1", "its gradient is nan")
    assert torch.equal(task.weight, before)


def test_too_high_a_rate_is_stopped():
    with pytest.raises(FloatingPointError, match="lower rate than 1000000"):
        fit(task := Regression(), epochs=50, rate=1e6, optimizer=torch.optim.SGD, batch=5)
    assert task.weight.isfinite().all()


@pytest.mark.parametrize("options, words", [
    ({"schedule": "linear"}, ("'linear'", "cosine")), ({"batch": 0}, ("0 examples a batch",)), ({"batch": 2.5}, ("2.5 examples a batch",)),
    ({"task": Regression(0)}, ("no examples",)), ({"averaging": 1.0}, ("averaging=1.0", "below 1")),
    ({"task": Regression().requires_grad_(False)}, ("Regression", "no parameters that learn")),
])  # fmt: skip
def test_refused(options, words):
    with pytest.raises(ValueError) as caught:
        fit(**{"task": Regression()} | options)
    one_sentence(caught, *words)


# ---- several processes ----


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What two processes gave, the second half after both were killed and started again."""
    return in_two(training_task.__file__, tmp_path_factory.mktemp("processes"), timeout=120)


def alike(a, b):
    """Two results of `state` agree to 1e-5."""
    for epoch, expected in zip(a["history"], b["history"], strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for name, value in b["weights"].items():
        close(a["weights"][name].float(), value.float(), 1e-5)


@pytest.mark.parametrize("options", [SHARED, UNEVEN], ids=["shared", "uneven"])
@pytest.mark.parametrize("task", [Regression, Pairs])
def test_two_processes_give_what_one_gives(processes, task, options):
    alone = trained(task(), **options)
    results = [torch.load(processes / f"results{rank}.pt")[task.__name__, options["batch"]] for rank in (0, 1)]
    alike(results[0], alone)
    same(*results)
    assert not torch.allclose(alone["weights"]["weight" if task is Regression else "head"], getattr(task(), "weight" if task is Regression else "head"), atol=0.01)


def test_two_processes_killed_and_started_again(processes):
    results = [torch.load(processes / f"restarted{rank}.pt") for rank in (0, 1)]
    alike(results[0], trained(Pairs(), **UNEVEN))
    same(*results)
    assert all(result["begun"] == [] for result in results)  # it went on within the third epoch


def test_two_processes_stop_at_the_same_nan(processes):
    for rank in (0, 1):
        said = torch.load(processes / f"results{rank}.pt")
        assert "step" in said["spoiled"] and "error is nan" in said["spoiled"]
        assert "2 processes for batches of 1 of 50" in said["small"]
