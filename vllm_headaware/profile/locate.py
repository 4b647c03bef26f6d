"""Where a profile comes from: a path, next to the model, the user's cache, this package, or
measured now."""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_headaware.errors import HeadAwareError
from vllm_headaware.profile.format import SINK, WINDOW, HeadProfile
from vllm_headaware.profile.model_hash import model_hash
from vllm_headaware.profile.parents import find_parent, quantised_by, require_parent
from vllm_headaware.profile.user_cache import user_cache

FILE_NAME = "headaware_profile.json"
SHIPPED = Path(__file__).with_name("shipped")
"""Profiles that come with the package, named by the hash of their model."""


def find_profile(
    model_dir: str | Path,
    where: str = "auto",
    *,
    sink: int = SINK,
    window: int = WINDOW,
) -> HeadProfile:
    """A profile that fits the model.

    Args:
        where: a file, or "auto": next to the model, then the user's cache, then those that come
            with the package, else measure now (with a progress bar, on the CPU: a GPU is the
            engine's) and keep it in the first of the first two places that can be written.
            A model with quantised weights is served by its parent's (profile/parents.py).
        sink, window: what will be served, in tokens. A profile that has to be measured is measured
            with that window or with WINDOW, whichever is narrower; one that was measured with other
            sinks or with a wider window than is served is used, and stderr says so.

    Raises:
        HeadAwareError: an unusable file, or one of another model.
    """
    digest = model_hash(model_dir)
    places = [Path(where)] if where != "auto" else profile_places(model_dir, digest)
    for path in [*places, shipped_place(digest)] if where == "auto" else places:
        if where != "auto" and not path.exists():
            raise HeadAwareError(
                f"head profile {path} does not exist; make it with `vllm-headaware profile MODEL"
                f" -o {path}`, or use --kv-head-profile auto"
            )
        if path.exists():
            profile = HeadProfile.load(path)
            if where == "auto":
                profile.require_model(digest, path=path)
            else:
                require_parent(profile, path, Path(model_dir), digest)
            _say_if_measured_otherwise(profile, path, sink, window)
            return profile

    folder = Path(model_dir)
    if method := quantised_by(folder):
        cached = places[1].parent.glob("*.json")
        parent = find_parent(folder, [*sorted(cached), *sorted(SHIPPED.glob("*.json"))])
        if parent is not None:
            return parent
        raise HeadAwareError(
            f"the weights of {model_dir} are quantised ({method}), and no profile of the model it"
            " was made from is known here; measure that with `vllm-headaware profile PARENT -o"
            f" FILE` and add --kv-head-profile FILE, or `vllm-headaware profile {model_dir}"
            " --through-engine`"
        )

    from vllm_headaware.profile.run import profile_model

    print(
        f"no head profile for {model_dir} yet: measuring one (a few minutes, once)",
        file=sys.stderr,
        flush=True,
    )
    profile = profile_model(
        model_dir, sink=sink, window=min(window, WINDOW), progress=True, resume=True
    )
    keep_profile(profile, places)
    return profile


def _say_if_measured_otherwise(profile: HeadProfile, path: Path, sink: int, window: int) -> None:
    own = profile.method.get("sink"), profile.method.get("window")
    if own[0] != sink or own[1] is None or own[1] > window:
        print(
            f"head profile {path} was measured with sinks of {own[0]} and a window of {own[1]}"
            f" tokens, not {sink} and {window}: other heads might rank higher; to measure again,"
            f" `vllm-headaware profile MODEL --sink {sink} --window {window}`",
            file=sys.stderr,
            flush=True,
        )


def profile_places(model_dir: str | Path, digest: str) -> list[Path]:
    """Files where `auto` looks first, in order, and where it keeps what it measures."""
    name = digest.removeprefix("sha256:")
    return [
        Path(model_dir) / FILE_NAME,
        user_cache() / "profiles" / f"{name}.json",
    ]


def shipped_place(digest: str) -> Path:
    """Where the package has the profile of a model, if it has one."""
    return SHIPPED / f"{digest.removeprefix('sha256:')}.json"


def keep_profile(profile: HeadProfile, places: list[Path]) -> Path:
    """Save to the first place that can be written, and say where.

    Raises:
        HeadAwareError: none can.
    """
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.save(path)
        except OSError:
            continue
        print(f"head profile kept in {path}", file=sys.stderr, flush=True)
        return path
    raise HeadAwareError(
        f"cannot write a head profile to any of {', '.join(str(path) for path in places)}; make one"
        " with `vllm-headaware profile MODEL -o FILE` and pass --kv-head-profile FILE"
    )
