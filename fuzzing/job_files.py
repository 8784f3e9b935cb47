"""Job files and overrides: damaged text, and values that stand where others should."""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.mutations import changed_value, damaged
from fuzzing.run import Target, WrongResultError
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.job_yaml import read_yaml

# A line of every section, so that what is changed is read by every check.
JOB = """\
name: small
data: {train: "x/*.parquet", eval: [y.parquet], dense: [d1], batch_size: 64, sparse: [a, {column: b,
  table: t, combiner: mean, weights: w, max_length: 3, pad: 0, max_norm: 1.5}, {column: c,
  combiner: none, max_length: 9, keep: last}]}
embedding: {dim: 4, initializer: {type: normal, stddev: 0.1}, optimizer: {type: adam}}
tables:
  t: {dim: 8, optimizer: {type: adagrad, schedule: {type: cosine, decay_steps: 100}},
    admission: {min_count: 2}, eviction: {steps_to_live: 10}}
  a: {composition: {type: multi_hash, modulus: 100}}
model: {type: dlrm, bottom: [8], top: [8, 1], optimizer: {type: sgd, momentum: 0.9}}
training: {mode: sync, global_batch: 128, max_samples: 1000000, shifts: [{at: 5, mode: gba}]}
cluster: {workers: 2, servers: 1, resources: {worker: {gpu: 1}}, buffer_bytes: 67108864}
run: {dir: &d runs/x, overwrite: true, progress_every_seconds: 1}
"""
_OVERRIDES = (
    "training.mode=gba",
    "data.sparse.1.max_norm=2",
    "tables.t.dim=4",
    "cluster.workers=3",
)
_PIECES = (
    *(b": ", b"- ", b"{", b"[", b"}", b"]", b"*d", b"&x ", b"<<: ", b"---\n", b"\t", b"? ", b"| "),
    *(b"!!binary ", b"!!python/object:os.x ", b"!<tag:yaml.org,2002:set> ", b"%YAML 9.9\n"),
    *(b"1:30", b"0x1F", b"2026-01-01", b"1e999", b".nan", b"~", b"\xef\xbb\xbf", b"\x85"),
)


class JobFiles:
    """A job file and overrides, read as by `synchromesh train`.

    Args:
        work: a folder, best in memory.
    """

    def __init__(self, work: Path) -> None:
        self._path = work / "job.yaml"
        self._text = JOB.encode()
        self._data = read_yaml(JOB)

    def target(self) -> Target:
        return Target("job-files", self.make, self.read, (ConfigError,))

    def make(self, rng: Random) -> tuple[bytes, list[str]]:
        overrides = []
        if rng.random() < 0.3:
            text = rng.choice(_OVERRIDES).encode()
            overrides = [damaged(text, rng, _PIECES).decode(errors="replace")]
        if rng.random() < 0.5:
            text = damaged(self._text, rng, _PIECES)
            if rng.random() < 0.6:
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(_PIECES) + text[at:]
            return text, overrides
        return _yaml(changed_value(self._data, rng)), overrides

    def read(self, data: tuple[bytes, list[str]]) -> str:
        text, overrides = data
        self._path.write_bytes(text)
        job = JobConfig.from_yaml(self._path, overrides)
        # What is taken is written into the run directory, and read from there.
        self._path.write_text(job.to_yaml())
        if JobConfig.from_yaml(self._path) != job:
            raise WrongResultError(f"a job is another one when it is written and read: {job}")
        return "a job"


@cache
def _dumper() -> Any:
    return getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _yaml(data: Any) -> bytes:
    """Return values as YAML, or as JSON, which is YAML for all but what is nested deep."""
    try:
        return yaml.dump(data, Dumper=_dumper(), default_flow_style=True, width=1000).encode(
            errors="surrogatepass"
        )
    except (RecursionError, yaml.YAMLError, UnicodeEncodeError):
        pass
    try:
        return json.dumps(data, allow_nan=True).encode()
    except RecursionError:
        return b"a: " + b"[" * 5000
