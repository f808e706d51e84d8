"""Settings and fixtures that all tests share."""

import pytest
import torch
from hypothesis import settings

# The same examples each time, so that a red test stays red until it is mended; no deadline, because the first call into a
# library is slow and the machine may be busy.
settings.register_profile("book", deadline=None, derandomize=True)
settings.load_profile("book")


@pytest.fixture(scope="module")
def one_thread():
    """Small networks and small tensors gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
