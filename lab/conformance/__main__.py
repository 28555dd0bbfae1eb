"""`python -m lab.conformance`: see `suite.py`."""

import sys

from lab.conformance.suite import main

if __name__ == "__main__":
    sys.exit(main())
