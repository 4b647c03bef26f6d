"""Routes of the live page, on vLLM's own server.

The page itself carries no data and is open; its JSON needs the server's API key when there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse

from vllm_headaware.observability.live import LiveState

PAGE = Path(__file__).with_name("page.html")


def add_routes(app: FastAPI, live_state: Any, may_see: Any) -> None:
    """Add /headaware, /headaware/heads.json and /headaware/plan.json to an app.

    Args:
        live_state: from a request to the LiveState of this process, or None without a policy.
        may_see: from a request to whether it carries a key that is asked for.
    """

    def live(request: Request) -> LiveState:
        if not may_see(request):
            raise HTTPException(401, "send the server's API key as Authorization: Bearer KEY")
        state = live_state(request)
        if state is None:
            raise HTTPException(
                404, "nothing to show: serve with --kv-policy headaware, with log stats on"
            )
        return state

    router = APIRouter(prefix="/headaware", include_in_schema=False)

    @router.get("", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @router.get("/heads.json")
    async def heads(state: LiveState = Depends(live)) -> dict[str, Any]:  # noqa: B008
        return state.heads()

    @router.get("/plan.json")
    async def plan(state: LiveState = Depends(live)) -> dict[str, Any]:  # noqa: B008
        return state.plan_json()

    app.include_router(router)
