"""The progress bar of whatever takes long."""

import os

from tqdm.auto import tqdm


def progress(*args, **kwargs):
    """A tqdm bar in notebooks and terminals; none where TQDM_DISABLE is set, which tqdm's notebook bar overlooks."""
    return tqdm(*args, disable=os.environ.get("TQDM_DISABLE", "0") not in ("", "0"), **kwargs)
