"""A decode step of three head classes: captured in a CUDA graph, replayed with other lengths, and
compared with the same step run eagerly. Last line: JSON.

Run as `python -m checks.gpu.replay [--dry-run | --once]`; --once only launches every kernel, which
is what compute-sanitizer is given.
"""

from __future__ import annotations

import argparse
import json


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="in the interpreter, nothing captured"
    )
    parser.add_argument("--once", action="store_true", help="every kernel once, nothing captured")
    args = parser.parse_args()
    if args.dry_run:
        from testbench.triton_interpreter import enable

        enable()
    import torch

    from checks.gpu.shapes import DRY, Load
    from checks.gpu.sides import Inputs, Ours
    from checks.gpu.timing import graph_of

    torch.set_default_device("cpu" if args.dry_run else "cuda")
    g = DRY.geometry
    steps = {}
    for queries in (1, 40):
        inputs = Inputs(g, Load(3, 150), queries, torch.bfloat16)
        side = Ours(g, inputs, ("int8", "int4"), g.retrieval_heads)
        del side.layers[1:]

        def step(side: Ours = side) -> None:
            side.work = side.list_work()
            side()

        steps[queries] = (inputs, step)
    if args.once or args.dry_run:
        for _, step in steps.values():
            step()
        finite = all(bool(inputs.output.isfinite().all()) for inputs, _ in steps.values())
        print(json.dumps({"part": "kernels once", "ok": finite}))
        return
    equal = True
    for inputs, step in steps.values():
        graph = graph_of(step)
        for lengths in ((150, 150, 150), (41, 97, 128), (60, 150, 44)):
            inputs.lens.copy_(torch.tensor(lengths, dtype=torch.int32))
            step()
            eager = inputs.output.clone()
            inputs.output.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            equal &= torch.equal(inputs.output, eager)
    print(json.dumps({"part": "graph replay equals eager", "ok": equal}))


if __name__ == "__main__":
    main()
