#!/usr/bin/env bash
# tfrecord 1.14.6 (the reader of TFRecord files without TensorFlow): each record has two checksums, which its writer computes
# and its reader skips, although the package needs `crc32c`. One flipped bit turns a feature of 1.5 into 1.625, a label of 1
# into 3, or an id into another id, and the record is given out like any other.
# Expected: an error that names the record, as the checksums are there for; tf.data.TFRecordDataset raises DataLossError.
# What to do: verify the masked CRC32C of each record once (16 bytes of framing; below in six lines), before converting such files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tfrecord==1.14.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct

import crc32c
from tfrecord import TFRecordWriter, tfrecord_loader


def intact(path):
    """Return whether the checksum of the only record's data is right."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    crc = crc32c.crc32c(data[12 : 12 + length])
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data[12 + length :] == struct.pack("<I", masked)


writer = TFRecordWriter("whole.tfrecord")
writer.write({"id": ([1_000_003], "int"), "price": ([1.5], "float")})
writer.close()
with open("whole.tfrecord", "rb") as file:
    damaged = bytearray(file.read())
damaged[damaged.index(struct.pack("<f", 1.5)) + 2] ^= 0x10
with open("damaged.tfrecord", "wb") as file:
    file.write(damaged)
for path, price, right in (("whole.tfrecord", 1.5, True), ("damaged.tfrecord", 1.625, False)):
    (record,) = tfrecord_loader(path, None)
    print(f"{path}: id {record['id'].tolist()}, price {record['price'].tolist()}, checksum right: {intact(path)}")
    assert record["price"].tolist() == [price] and record["id"].tolist() == [1_000_003]
    assert intact(path) is right
PYTHON
