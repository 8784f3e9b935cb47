"""How much memory this process had resident at most."""

import resource


def peak_rss_bytes() -> int:
    """Return the peak resident set size since the process started, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
