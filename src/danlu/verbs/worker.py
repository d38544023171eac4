"""One process of a training that `danlu train` has started with several: `python -m danlu.verbs.worker`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings

from danlu.core.console import err
from danlu.core.errors import DanluError, explained
from danlu.core.ranks import OWN_LOG
from danlu.core.workspace import share_cores


def main() -> None:
    """Do this process's part, and leave an error where the launcher looks for it."""
    os.dup2(2, 1)  # one log
    share_cores()
    warnings.simplefilter("ignore")
    _follow(int(os.environ.get(OWN_LOG, "0")))
    from danlu.tune.parallel.failure import leave
    from danlu.tune.parallel.start import VARIABLE, Start
    from danlu.verbs.train import train_as_rank

    try:
        train_as_rank(Start.read(os.environ[VARIABLE]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        known = isinstance(error, DanluError)
        text = str(explained(error))
        leave(os.environ.get("TORCHELASTIC_ERROR_FILE"), text, known=known)
        if not known:
            traceback.print_exc()
        elif os.environ.get("RANK") != "0":  # of the first one, the launcher says it
            err.print(f"error: {text}", markup=False, soft_wrap=True)
        sys.stderr.flush()
        os._exit(explained(error).exit_code)  # threads of a broken process group would keep it alive


def _follow(launcher: int) -> None:
    """End when the launcher is gone: nobody else would."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
