"""`python -m vivant.cli` is the command `vivant`."""

import sys

from vivant.cli import main

sys.exit(main())
