#!/usr/bin/env bash
# usearch 2.26.6, Python: keys are uint64, int64 ones are taken, and the vector of key -1 can't be found: it is counted, `contains` and `get`
# know it, but `search` never returns it, not for its own vector, and gives the next one in its place. -1 has the bits
# of a mark for removed entries. All other negative keys come back as other numbers, 2^64 larger, and bits are kept: half of all 64-bit hashes.
# Expected: ids as they went in, as faiss 1.15.1 gives them (shown beside it), or an error. -1 is what many pipelines write for "unknown" or "rest";
# that vector is lost for retrieval, and a look-up of what was found in a catalog of int64 ids misses half of it.
# What to do: keys.view(np.int64) of what search returns, and no key -1; or keys of your own, 0 to n - 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check usearch==2.26.6 faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import faiss
import numpy as np
from usearch.index import Index

ids = np.array([-1, -2, 0, 5, 2**40, 2**63 - 1, -(2**63), 7], np.int64)
vectors = np.eye(len(ids), dtype=np.float32)  # each is nearest to itself

index = Index(ndim=len(ids), metric="l2sq", dtype="f32")
index.add(ids, vectors)
found = index.search(vectors, 1).keys.ravel()
print("usearch:", found.dtype, found.tolist(), "of", len(index), "vectors, contains(-1):", index.contains(ids)[0])
assert len(index) == len(ids) and index.contains(ids).all() and index.get(ids)[0][0] == 1
assert found.dtype == np.uint64 and found.view(np.int64)[1:].tolist() == ids[1:].tolist()
assert ids[0] not in index.search(vectors[0], len(ids)).keys.view(np.int64)
assert sum(int(key) in ids.tolist() for key in found[1:]) == 5  # as Python numbers -2 and -2^63 are not there

other = faiss.IndexIDMap2(faiss.IndexFlatL2(len(ids)))
other.add_with_ids(vectors, ids)
print("faiss:", other.search(vectors, 1)[1].ravel().tolist())
assert other.search(vectors, 1)[1].ravel().tolist() == ids.tolist()
PYTHON
