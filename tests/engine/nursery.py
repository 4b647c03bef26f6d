"""A process that has imported everything an engine needs, and forks one for each child.

Importing vLLM takes longer than most scenarios. Nothing runs here but imports, so what is forked is
as good as new. Reads one JSON object a line: module, argument, env, and the files that get the
child's stdout and stderr; answers with its exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any


def main() -> None:
    """Fork until stdin ends."""
    import vllm.model_executor.models.llama
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    import vllm_headaware.attention.choice
    import vllm_headaware.vllm_compat.engine_core.admission  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(asked))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(asked: dict[str, Any]) -> int:
    for number, path in ((0, os.devnull), (1, asked["stdout"]), (2, asked["stderr"])):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = [asked["module"], asked["argument"]]
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except BaseException:  # so that nothing of the parent's runs here
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
