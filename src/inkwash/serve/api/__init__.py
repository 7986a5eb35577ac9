"""inkwash's own dialect, /api: tasks from the table, jobs, events, and the page's other calls."""

from fastapi import APIRouter

from inkwash.serve.api import builds, jobs, pictures, server
from inkwash.serve.settings import Settings


def routes(settings: Settings) -> APIRouter:
    """The routes of a server, as its settings allow."""
    router = APIRouter(prefix="/api", tags=["inkwash"])
    for part in (server.router, jobs.router, pictures.router, builds.routes(settings)):
        router.include_router(part)
    return router
