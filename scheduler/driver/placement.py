"""What a job asks of the cluster: placement groups, and a table where it can't be had."""

import time
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scheduler.errors import StartError
from scheduler.job.config import ClusterConfig

# The label by which Ray knows every node.
NODE_ID = "ray.io/node-id"


class Placement:
    """Bundles for every process of a job, held until `release`.

    Servers are spread over nodes, so that one node's loss costs as little as possible, and a
    standby is on another node than its server, where there is one; workers and the coordinator are
    packed. Workers and servers beyond the planned ones are placed wherever there is room, and
    nothing is held for them when they have left; of a job that scales those beyond `min_workers`
    and `min_servers`.

    Args:
        cluster: the processes, and what they ask for.
        own_cluster: whether Ray was started for this job alone: later ones then ask for nothing but
            GPUs, as the machine's CPUs were counted for the planned ones.
    """

    def __init__(self, cluster: ClusterConfig, *, own_cluster: bool) -> None:
        self._own_cluster = own_cluster
        self._cluster = cluster
        planned = cluster.min_workers if cluster.autoscale else cluster.workers
        servers = cluster.servers
        if cluster.autoscale and cluster.min_servers is not None and not cluster.standby:
            servers = min(servers, cluster.min_servers)
        copies = servers * (1 + cluster.standby)
        self._pairs = [(index, index + servers) for index in range(servers)]
        self._shunned: set[str] = set()
        self._avoided: dict[str, set[str]] = {}  # nodes, by role
        self._bundles = {
            "coordinator": [_bundle(cluster.coordinator_cpus, cluster.resources.coordinator)],
            "server": [_bundle(cluster.server_cpus, cluster.resources.server)] * copies,
            "worker": [
                _bundle(cluster.worker_cpus, cluster.resources.worker, gpus=cluster.worker_gpus)
            ]
            * planned,
            # Relays ask for what the coordinator does.
            "relay": [_bundle(cluster.coordinator_cpus, cluster.resources.coordinator)]
            * cluster.num_relays,
        }
        roles = ("coordinator", "worker", "relay")
        packed = [bundle for role in roles for bundle in self._bundles[role]]
        labels, relays = cluster.labels, cluster.num_relays
        selectors = [labels.coordinator, *[labels.worker] * planned, *[labels.coordinator] * relays]
        self._packed = placement_group(packed, strategy="PACK", **_selectors(selectors))
        self._spread = placement_group(
            self._bundles["server"],
            strategy="SPREAD",
            **_selectors([labels.server] * copies),
        )

    def wait(self) -> None:
        """Wait until the cluster has placed everything; raises StartError after the time limit."""
        limit = self._cluster.start_timeout_seconds
        deadline = time.monotonic() + limit
        for group in (self._packed, self._spread):
            if not group.wait(max(0.1, deadline - time.monotonic())):
                text = self._table()
                self.release()
                raise StartError(
                    f"the cluster could not place the job within {limit:.0f} s"
                    f" (cluster.start_timeout_seconds)\n{text}"
                )

        if self._cluster.standby:
            places = placement_group_table(self._spread)["bundles_to_node_id"]
            self._pairs = pairs_of([places[bundle] for bundle in sorted(places)])

    def bundle(self, index: int, *, beside: int | None = None) -> int:
        """Return a bundle for a server.

        Args:
            index: of the server.
            beside: the bundle of its other copy.
        """
        if index >= len(self._pairs):  # none that is held
            return len(self._bundles["server"])
        first, second = self._pairs[index]
        return second if beside == first else first

    def shun(self, nodes: Collection[str]) -> None:
        """Place nobody in bundles of nodes that will be taken away, but wherever there is room.

        Ray moves a bundle only once its node is gone, and gives such a node no new actors.
        """
        self._shunned |= set(nodes)

    def avoid(self, role: str, node: str) -> None:
        """Place nobody of a role on a node any more."""
        self._avoided.setdefault(role, set()).add(node)

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Return the options with which an actor of a role is created in its bundle.

        Args:
            index: its number; of servers and standbys that of the bundle.
        """
        if index >= len(self._bundles[role]):
            return self._anywhere(role, counted=not self._own_cluster)
        if self._node_of_bundle(role, index) in self._shunned | self._avoided.get(role, set()):
            return self._anywhere(role, counted=True)
        group, number = self._place_of(role, index)
        bundle = self._bundles[role][index]
        resources = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")}
        return {
            "num_cpus": bundle["CPU"],
            **_gpus(bundle.get("GPU", 0)),
            "resources": resources,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group,
                placement_group_bundle_index=number,
            ),
        }

    def _place_of(self, role: str, index: int) -> tuple[PlacementGroup, int]:
        """Return the group that has a process's bundle, and the bundle's number in it."""
        if role == "server":
            return self._spread, index
        before = {"coordinator": 0, "worker": 1, "relay": 1 + len(self._bundles["worker"])}
        return self._packed, before[role] + index

    def _node_of_bundle(self, role: str, index: int) -> str | None:
        """Return where a bundle is; asked only where that matters."""
        if not self._shunned and not self._avoided:
            return None
        group, number = self._place_of(role, index)
        node: str | None = placement_group_table(group)["bundles_to_node_id"].get(number)
        return node

    def _anywhere(self, role: str, *, counted: bool) -> dict[str, Any]:
        """Return the options of a process without a bundle: servers apart, where labels allow it.

        Args:
            counted: whether it asks for what its role asks for, or for nothing but its GPU.
        """
        asks_as = "coordinator" if role == "relay" else role
        selector = dict(getattr(self._cluster.labels, asks_as)) if counted else {}
        if self._avoided.get(role):
            selector[NODE_ID] = f"!in({','.join(sorted(self._avoided[role]))})"
        options: dict[str, Any] = {"num_cpus": 0}
        if role == "worker":  # what Ray does not give it, it does not see
            options |= _gpus(self._cluster.worker_gpus)
        if counted:
            options["num_cpus"] = getattr(self._cluster, f"{asks_as}_cpus")
            options["resources"] = getattr(self._cluster.resources, asks_as)
        if selector:
            options["label_selector"] = selector
        elif role == "server":
            options["scheduling_strategy"] = "SPREAD"
        return options

    def release(self) -> None:
        for group in (self._packed, self._spread):
            remove_placement_group(group)

    def _table(self) -> str:
        wanted: dict[str, float] = {}
        for bundles in self._bundles.values():
            for bundle in bundles:
                for name, amount in bundle.items():
                    wanted[name] = wanted.get(name, 0.0) + amount
        total, free = ray.cluster_resources(), ray.available_resources()
        lines = [f"{'resource':<16}{'requested':>12}{'free':>12}{'cluster':>12}"]
        for name in sorted(wanted):
            lines.append(
                f"{name:<16}{wanted[name]:>12g}{free.get(name, 0):>12g}{total.get(name, 0):>12g}"
            )
        return "\n".join(lines)


def _selectors(labels: list[dict[str, str]]) -> dict[str, Any]:
    """Return what a placement group is told of the labels of its bundles' nodes."""
    return {"bundle_label_selector": labels} if any(labels) else {}


def pairs_of(nodes: Sequence[str]) -> list[tuple[int, int]]:
    """Return the bundles of each server and of its standby, on two nodes where that is possible.

    Args:
        nodes: of each bundle; an even number.
    """
    order = sorted(range(len(nodes)), key=lambda bundle: (nodes[bundle], bundle))
    half = len(order) // 2
    # Of bundles in the order of their nodes, those that are half of all apart are on two nodes,
    # unless one node has more than half of all.
    pairs = [(order[at], order[at + half]) for at in range(half)]
    # In turns, so that not all servers are on the first node and all standbys on the second.
    return [pair if at % 2 == 0 else (pair[1], pair[0]) for at, pair in enumerate(pairs)]


def _bundle(cpus: float, resources: dict[str, float], *, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources}


def _gpus(share: float) -> dict[str, float]:
    """Return the option of an actor that has a share of a GPU, if it has one."""
    return {"num_gpus": share} if share else {}
