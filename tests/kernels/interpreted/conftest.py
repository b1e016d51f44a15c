"""These tests run the kernels in Triton's interpreter, which has to be switched on before a kernel is imported.

`tests/kernels/test_interpreted.py` starts them in a process of their own.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
