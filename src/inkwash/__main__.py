"""The program `inkwash`, also as `python -m inkwash`."""

import os
import signal
import sys
import warnings

from inkwash.process import interrupts_held


def run() -> int:
    """Run the command line of this process and return its exit code.

    Ctrl-C ends in one line also while modules are imported, SIGTERM removes temporary files; other packages' warnings are
    not for users of the command line, unless Python is asked for warnings.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with interrupts_held():
            from inkwash.cli import main
        code = main()
    except KeyboardInterrupt:
        print("inkwash: interrupted", file=sys.stderr)
        code = 130
    if code == 130:
        # Python would end by the signal itself where it interrupted code that was made from a string, caught or not
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
