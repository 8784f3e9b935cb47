#!/usr/bin/env bash
# vowpalwabbit 9.11.9, "the hashing trick": a feature whose name is of digits is not hashed. Its weight is that of its
# number, plus the hash of its namespace, modulo the table's size, 2^18 by default. So ids that differ by multiples of 2^18 are one feature, all
# of them where a generator makes ids in such steps (shard << 20 | ...), "007" is 7, and the ids of one namespace run into those
# of another in their order, by thousands, not by chance. A letter before the number, or --hash all, has them hashed.
# What to do: --hash all, or names such as id_7, else a comparison with it says little about ids.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check vowpalwabbit==9.11.9
cd "$folder"
venv/bin/python - <<'PYTHON'
from vowpalwabbit import Workspace

SIZE = 2**18


def known(options, trained, asked):
    """Return which of the features count for more than the constant once one was trained."""
    workspace = Workspace("--quiet --loss_function logistic " + options)
    for _ in range(50):
        workspace.learn(f"1 |{trained}")
    least = workspace.predict("|nothing nothing")
    found = [name for name in asked if workspace.predict(f"|{name}") > least + 0.1]
    workspace.finish()
    return found


steps = [f"user {number * SIZE}" for number in range(5)]
print("steps of 2^18:", known("", "user 0", steps), "with --hash all:", known("--hash all", "user 0", steps))
assert known("", "user 0", steps) == steps
assert known("--hash all", "user 0", steps) == steps[:1]
assert known("", "user id_0", [step.replace(" ", " id_") for step in steps]) == ["user id_0"]
assert known("", "user 7", ["user 7", "user 007", "user 7x"]) == ["user 7", "user 007"]

workspace = Workspace("--quiet")
shift = (workspace.hash_space("user") - workspace.hash_space("item")) % SIZE
workspace.finish()
for user in (0, 1, 1000, 5000):
    same = known("", f"user {user}", [f"item {(user + shift) % SIZE}", f"item {user}"])
    print(f"user {user} is", same)
    assert same == [f"item {(user + shift) % SIZE}"]
PYTHON
