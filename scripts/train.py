"""Train a job: python scripts/train.py JOB.yaml [key.path=value ...]

The same as `synchromesh train`.
"""

import sys

from synchromesh.door import enter

if __name__ == "__main__":
    sys.exit(enter(["train", *sys.argv[1:]]))
