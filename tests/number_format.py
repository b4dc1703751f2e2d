"""The number format of the runs of tests that name none: that of users who name none.

``PACKEDESM_TEST_DTYPE=int8`` lets them run in int8: what is promised of a run holds there, too.
"""

import os

# As keys of a configuration.
NUMBER_FORMAT = (
    {"dtype": name} if (name := os.environ.get("PACKEDESM_TEST_DTYPE", "auto")) != "auto" else {}
)
