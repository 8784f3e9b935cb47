"""`python -m synchromesh`: the command where nothing was installed, as in an uploaded folder."""

from synchromesh.door import script

if __name__ == "__main__":
    script()
