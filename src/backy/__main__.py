"""`python -m backy` is `backy`."""

import sys

from backy.cli import main

sys.exit(main())
