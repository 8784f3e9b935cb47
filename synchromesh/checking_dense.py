"""What servers are asked to carry of a job's dense parameters, where that is much for few."""

MUCH_BYTES = 64_000_000  # for one server and global batch: 50 ms of a link of 10 Gbit/s


def warnings_of_dense(dense_size: int, *, workers: int, servers: int, batches: int) -> list[str]:
    """Return what to say of it, if anything.

    As many servers as workers carry no more each than a worker does, and as little as any other
    way of summing in the order of the batches (docs/performance.md).

    Args:
        dense_size: dense parameters.
        batches: of a global batch.
    """
    taken = 4 * dense_size * batches / servers
    if servers >= workers or taken < MUCH_BYTES:
        return []
    return [
        f"the model has {dense_size:,} dense parameters, which every batch pushes: each of"
        f" {servers} servers takes {taken / 1e6:,.0f} MB of gradients for a global batch of"
        f" {batches:,} batches. Where workers are on several nodes, have a server for each of"
        f" these (cluster.servers), up to {workers}, and no more batches than workers"
        " (data.batch_size)"
    ]
