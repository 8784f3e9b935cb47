"""`python -m synchromesh`: the command where nothing was installed, as in an uploaded folder."""

import sys

from synchromesh.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
