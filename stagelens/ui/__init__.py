"""The dashboard, and the only place that imports streamlit."""

import os

# The dashboard, its jobs and the browser share the processor. Torch threads that wait for each
# other by spinning would take it from them: on a busy machine, sums took over ten times as long.
# setdefault: whoever starts the server may choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
