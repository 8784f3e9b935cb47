"""Train a job: python scripts/train.py JOB.yaml [key.path=value ...]

The same as `synchromesh train`.
"""

import sys

from synchromesh.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
