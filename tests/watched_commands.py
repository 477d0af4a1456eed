"""Run commands in children of one process; say how each ended, how much memory it took, and what it should not do.

Reads a JSON list of commands from standard input and writes a JSON list of results.  The children begin with everything
imported, so that their peaks differ by what they read.
"""

import json
import os
import sys
from typing import Any

from neural_polarizer.cli.main import main

HARMFUL = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.", "pickle.find_class")
CHANGING = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watched(words: list[str]) -> dict[str, Any]:
    """Exit code, standard error, peak of memory in MB, and the harmful deeds of one command."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 2)
        code: Any = 0

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            if writes or event.startswith((*HARMFUL, *CHANGING)):
                os.write(2, f"DEED {event} {arguments!r}\n".encode(errors="replace"))

        sys.addaudithook(hear)
        try:
            main([*words, "--quiet"])
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            os.write(2, f"uncaught {error!r}\n".encode(errors="replace"))
            code = 1
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    os.close(writing)
    with os.fdopen(reading, "r", errors="replace") as pipe:
        told = pipe.read().splitlines()
    _, status, usage = os.wait4(child, 0)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": [line for line in told if not line.startswith("DEED ")],
        "deeds": [line for line in told if line.startswith("DEED ")],
        "peak": usage.ru_maxrss / unit,
    }


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    json.dump([watched(words) for words in json.loads(sys.stdin.read())], sys.stdout)
