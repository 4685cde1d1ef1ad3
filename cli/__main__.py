"""`python -m ov_weight_compression.cli`: the command, as `ov-compress` runs it."""

import sys

from ov_weight_compression.entry import main

sys.exit(main())
