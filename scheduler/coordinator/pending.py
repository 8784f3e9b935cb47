"""The batches that wait to be given out, kept so that no choice has to look at all of them.

A fleet of thousands of workers has thousands of pending batches, and every report chooses some.
"""

import heapq
from collections.abc import Iterator

from scheduler.coordinator.batches import Batch


class Pending:
    """Pending batches, by how well they suit a worker.

    The lowest steps go first. Within `window` of them, what was given out before goes first; then
    a worker's own lanes, those that nobody has had, all others; then the lowest id.

    Args:
        window: steps within which lanes may decide who gets which batch, >= 1.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._lane_owner: dict[int, int] = {}
        # By (window, whether they go out for the first time). A few are open at a time.
        self._groups: dict[tuple[int, bool], _Group] = {}
        # By batch id; what a batch was when it was added.
        self._group_of: dict[int, tuple[int, bool]] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __iter__(self) -> Iterator[Batch]:
        for group in self._groups.values():
            yield from group.batches.values()

    def add(self, batch: Batch) -> None:
        """Take a batch with the step and attempt that it has now."""
        place = batch.step // self._window, batch.attempt == 0
        self._group_of[batch.batch_id] = place
        group = self._groups.get(place)
        if group is None:
            group = self._groups[place] = _Group(self._lane_owner)
        group.add(batch)

    def remove(self, batch: Batch) -> None:
        """Give out or forget a batch; it must be there."""
        place = self._group_of.pop(batch.batch_id)
        group = self._groups[place]
        group.remove(batch)
        if not group.batches:
            del self._groups[place]

    def take(self, worker: int) -> Batch | None:
        """Give a worker the best batch that there is, and with it its lane."""
        if not self._groups:
            return None
        first = min(self._groups) if len(self._groups) > 1 else next(iter(self._groups))
        batch = self._groups[first].best(worker)
        self.remove(batch)
        if self._lane_owner.get(batch.lane) != worker:
            self._lane_owner[batch.lane] = worker
            for group in self._groups.values():
                group.owner_changed(batch.lane)
        return batch

    @property
    def lowest_step(self) -> int | None:
        """The lowest step of all; None: there is no batch."""
        if not self._groups:
            return None
        window, _ = min(self._groups)
        if self._window == 1:
            return window
        lowest = [group for place, group in self._groups.items() if place[0] == window]
        return min(batch.step for group in lowest for batch in group.batches.values())

    def rearrange(self, window: int) -> None:
        """Batches have got other steps, and a window may be another."""
        batches, self._window = list(self), window
        self._groups.clear()
        for batch in batches:
            self.add(batch)


class _Group:
    """Batches among which nothing but lanes and ids decides.

    Of every lane the first batch is listed under the lane's owner. What is not its first any more,
    or has another owner, is left in the lists until it comes to their top.
    """

    def __init__(self, lane_owner: dict[int, int]) -> None:
        self.batches: dict[int, Batch] = {}
        self._lane_owner = lane_owner
        # Heaps: of ids by lane; of (first id, lane) by owner, None: nobody; and of all lanes.
        self._lanes: dict[int, list[int]] = {}
        self._owned: dict[int | None, list[tuple[int, int]]] = {}
        self._all: list[tuple[int, int]] = []

    def add(self, batch: Batch) -> None:
        batch_id, lane = batch.batch_id, batch.lane
        self.batches[batch_id] = batch
        ids = self._lanes.get(lane)
        if ids is None:
            self._lanes[lane] = [batch_id]
            self._list(lane, batch_id)
            return
        heapq.heappush(ids, batch_id)
        if ids[0] == batch_id:
            self._list(lane, batch_id)

    def remove(self, batch: Batch) -> None:
        del self.batches[batch.batch_id]
        ids = self._lanes[batch.lane]
        was_first = ids[0] == batch.batch_id
        if was_first:
            heapq.heappop(ids)
        else:
            # Seldom: it ended or was given another step while it was pending.
            ids.remove(batch.batch_id)
            heapq.heapify(ids)
        if not ids:
            del self._lanes[batch.lane]
        elif was_first:
            self._list(batch.lane, ids[0])

    def best(self, worker: int) -> Batch:
        """Return the batch that suits a worker best; there must be one."""
        for owner in (worker, None):
            listed = self._owned.get(owner)
            while listed:
                first, lane = listed[0]
                if self._is_first(first, lane) and self._lane_owner.get(lane) == owner:
                    return self.batches[first]
                heapq.heappop(listed)
        while not self._is_first(*self._all[0]):
            heapq.heappop(self._all)
        return self.batches[self._all[0][0]]

    def owner_changed(self, lane: int) -> None:
        ids = self._lanes.get(lane)
        if ids is not None:
            self._list_owned(lane, (ids[0], lane))

    def _list(self, lane: int, first: int) -> None:
        """List a lane under its first batch, which is a new one."""
        listed = (first, lane)
        heapq.heappush(self._all, listed)
        self._list_owned(lane, listed)

    def _list_owned(self, lane: int, listed: tuple[int, int]) -> None:
        owner = self._lane_owner.get(lane)
        owned = self._owned.get(owner)
        if owned is None:
            self._owned[owner] = [listed]
        else:
            heapq.heappush(owned, listed)

    def _is_first(self, batch_id: int, lane: int) -> bool:
        ids = self._lanes.get(lane)
        return ids is not None and ids[0] == batch_id
