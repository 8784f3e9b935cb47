"""Figures become gauges and counters with their tags; counters only ever rise."""

from typing import Any

from runtime.metrics_export import Figure, MetricsExport


class Recorded:
    """Stands for Ray's module of metrics and remembers what it was told."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, ...]] = {}
        self.told: list[tuple[str, str, float, dict[str, str]]] = []

    def export(self) -> MetricsExport:
        return MetricsExport("my-run", self._maker("set"), self._maker("inc"))

    def _maker(self, verb: str) -> Any:
        def make(name: str, tag_keys: tuple[str, ...]) -> Any:
            assert name not in self.made, "a metric is made once"
            self.made[name] = tag_keys
            told = self.told

            class Metric:
                def __getattr__(self, called: str) -> Any:
                    assert called == verb
                    return lambda value, tags: told.append((name, verb, value, tags))

            return Metric()

        return make


def test_a_gauge_is_set_with_run_role_index_and_labels() -> None:
    recorded = Recorded()
    figure = Figure("table_rows", 5, "server", 1, labels={"table": "user"})

    recorded.export().publish([figure])

    tags = {"run": "my-run", "role": "server", "index": "1", "table": "user"}
    assert recorded.told == [("synchromesh_table_rows", "set", 5, tags)]
    assert recorded.made == {"synchromesh_table_rows": ("run", "role", "index", "table")}


def test_a_counter_rises_by_what_is_new_for_each_process() -> None:
    recorded = Recorded()
    export = recorded.export()
    for first, second in ((5, 1), (5, 4), (7, 4)):
        export.publish(
            [
                Figure("batches", first, "worker", 0, "counter"),
                Figure("batches", second, "worker", 1, "counter"),
            ]
        )

    rises = [(tags["index"], value) for _, _, value, tags in recorded.told]
    assert rises == [("0", 5), ("1", 1), ("1", 3), ("0", 2)]


def test_a_counter_of_a_process_that_began_anew_rises_by_its_whole_sum() -> None:
    recorded = Recorded()
    export = recorded.export()
    for value in (10, 3):
        export.publish([Figure("batches", value, "worker", 0, "counter")])

    assert [value for _, _, value, _ in recorded.told] == [10, 3]
