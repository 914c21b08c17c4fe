import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests started in the background of a script ignore Ctrl-C; what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
