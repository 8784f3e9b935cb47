"""Which nodes the cluster is about to take away, as far as Ray says."""

import ray


def draining_nodes() -> dict[str, float | None]:
    """Return the ids of nodes that are being drained, each with its deadline.

    Ray takes nothing away and moves nothing, neither at the notice nor at the deadline, and says it
    nowhere else: it gives such a node no new actors, and whoever drains it ends it later on. The
    function is none of Ray's public ones: where another version has it not, no node is drained.

    Returns:
        the deadlines, seconds since 1970; None: it is not known.
    """
    try:
        found = ray._private.state.state.get_draining_nodes()
        return {str(node): ms / 1000 if ms else None for node, ms in found.items()}
    except Exception:  # of an interface that may change in any way
        return {}
