"""Settings that all tests share."""

from hypothesis import settings

# The same examples each time, so that a red test stays red until it is mended; no deadline, because the first call into a
# library is slow and the machine may be busy.
settings.register_profile("book", deadline=None, derandomize=True)
settings.load_profile("book")
