"""`python -m luthier` is the command `luthier`."""

import os
import sys

# `python -m` puts the current folder first: a user's own `json.py` there would be taken for the library's.
if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
    del sys.path[0]

from luthier.cli.app import main

if __name__ == "__main__":
    main()
