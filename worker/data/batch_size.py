"""How much a batch is, as far as the footer of a file tells before anything is read."""

from collections import defaultdict

from worker.data.footers import open_source, read_footer
from worker.data.plan import Plan
from worker.errors import UnreadableError
from worker.spec import FeatureSpec


def keys_in_a_sample(plan: Plan, features: FeatureSpec) -> list[float]:
    """Return how many keys each sparse feature has in a sample, on average, in their order.

    Those of the first file, whose footer counts the values of a list's leaf; a file that can't be
    read any more counts as one key each.
    """
    file = plan.files[0]
    names = {column.name: column.column for column in file.columns}
    try:
        with open_source(file.path) as source:
            metadata = read_footer(source, file.path).metadata
    except UnreadableError:
        return [1.0] * len(features.sparse)
    values: dict[str, int] = defaultdict(int)
    for group in range(metadata.num_row_groups):
        for leaf in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(leaf)
            values[chunk.path_in_schema.split(".")[0]] += chunk.num_values
    found = []
    for feature in features.sparse:
        column = names.get(feature.column, feature.column)
        mean = values.get(column or "", 0) / max(1, metadata.num_rows)
        most = feature.max_length or mean
        found.append(max(1.0, min(mean, most)))
    return found
