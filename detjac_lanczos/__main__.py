"""``python -m detjac_lanczos``."""

import sys

from detjac_lanczos.cli import main

sys.exit(main())
