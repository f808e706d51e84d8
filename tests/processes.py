"""Runs in processes of their own: really killed and started again, or two that share the work."""

import multiprocessing
import random
import signal
import subprocess
import sys
import time

import torch


def forks(preload):
    """A server of processes, each forked from one that has torch and the module `preload` loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload, "torch._dynamo"])
    return context


def killed_until_done(server, target, arguments, folder, least, most):
    """How often a run was killed before it wrote `folder / "result.pt"`, each time between `least` and `most` steps after the last.

    `target(*arguments, send)` sends the number of every step that it has done, and goes on where it was when it is started again.
    """
    killed = reached = 0
    while not (folder / "result.pt").exists():
        receive, send = server.Pipe(duplex=False)
        child = server.Process(target=target, args=(*arguments, send))
        child.start()
        send.close()
        stop_at = reached + random.randint(least, most)
        try:
            while reached < stop_at:
                reached = receive.recv()
            time.sleep(random.uniform(0, 0.01))
            child.kill()
        except EOFError:  # it came to its end
            pass
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        killed += child.exitcode == -signal.SIGKILL
    return killed


def in_two(script, folder, timeout):
    """Run a script under torchrun in two processes, which break off, and again, when they go on; the folder with what they gave."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    for start, code in (("first", 1), ("again", 0)):
        done = subprocess.run([*torchrun, folder, start], capture_output=True, text=True, timeout=timeout)
        assert done.returncode == code and (folder / "results1.pt").exists(), done.stderr
        assert (folder / "restarted0.pt").exists() == (start == "again")
    return folder


def same(a, b):
    """Two results of `training_task.state` agree bit for bit."""
    assert a["history"] == b["history"]
    assert a["weights"].keys() == b["weights"].keys()
    for name, value in a["weights"].items():
        assert value.dtype == b["weights"][name].dtype and torch.equal(value, b["weights"][name]), name
