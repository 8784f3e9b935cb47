"""A server's figures as metrics."""

from ps.server.figures import ServerFigures
from runtime.metrics_export import Figure


def server_figures(index: int, figures: ServerFigures) -> list[Figure]:
    """Return the figures of one server, its tables' among them."""
    process = figures.process
    counters = {
        "bytes_sent": process.bytes_sent,
        "bytes_received": process.bytes_received,
        "gradients_of_evicted_keys": figures.gradients_of_evicted_keys,
        "dense_non_finite": figures.dense_non_finite,
    }
    found = [
        Figure("shard_step", figures.step, "server", index),
        Figure("peak_rss_bytes", process.peak_rss_bytes, "server", index),
        *(Figure(name, value, "server", index, "counter") for name, value in counters.items()),
    ]
    for name, table in figures.tables.items():
        label = {"table": name}
        found += [
            Figure("table_rows", table.rows, "server", index, labels=label),
            Figure("table_bytes", table.bytes, "server", index, labels=label),
            Figure("table_non_finite", table.non_finite, "server", index, "counter", label),
        ]
        if table.tiers is not None:
            tiers = table.tiers
            found += [
                Figure("table_memory_rows", tiers.memory_rows, "server", index, labels=label),
                Figure("table_disk_rows", tiers.disk_rows, "server", index, labels=label),
                Figure("table_disk_bytes", tiers.disk_bytes, "server", index, labels=label),
                Figure("table_memory_hits", tiers.hits, "server", index, "counter", label),
                Figure("table_cache_hits", tiers.cached, "server", index, "counter", label),
                Figure("table_disk_reads", tiers.reads, "server", index, "counter", label),
                Figure("table_prefetched", tiers.prefetched, "server", index, "counter", label),
            ]
    return found
