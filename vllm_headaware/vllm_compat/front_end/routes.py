"""The live page on vLLM's own server, with its API key.

Endpoint plugins load only when VLLM_PLUGINS names them; wrapping the step that attaches them needs
no such setting, and vLLM's middleware applies in the same way.
"""

from __future__ import annotations

from typing import Any

from vllm_headaware.vllm_compat.front_end.metrics_sink import metrics_of
from vllm_headaware.vllm_compat.on_import import on_import
from vllm_headaware.vllm_compat.wrap import wrap

APP = "vllm.entrypoints.launchers.app"


def install() -> None:
    """Hook the app builder once it is imported; engine processes never import it."""
    on_import(APP, _hook)


def _hook() -> None:
    import sys

    wrap(sys.modules[APP], "attach_endpoint_plugins", _attach_endpoint_plugins)


def _attach_endpoint_plugins(original: Any, app: Any, *args: Any, **kwargs: Any) -> None:
    original(app, *args, **kwargs)
    from vllm_headaware.observability.http import add_routes

    add_routes(app, _live_state, _key_check(app.state.args))


def _live_state(request: Any) -> Any:
    metrics = metrics_of(getattr(request.app.state, "engine_client", None))
    return metrics.live if metrics else None


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """The app behind a middleware of which only the check is used."""


def _key_check(args: Any) -> Any:
    """The check vLLM's middleware makes of the paths it guards; ours are not among them."""
    import vllm.envs as envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if not keys:
        return lambda request: True
    middleware = AuthenticationMiddleware(_nothing, keys)
    return lambda request: middleware.verify_token(request.headers)
