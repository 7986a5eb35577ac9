"""ComfyUI's dialect: graphs are queued by /prompt, told of by /ws and /history, and looked at by /view."""

from fastapi import APIRouter

from inkwash.serve.comfy import graphs, nodes, pictures, socket

router = APIRouter(tags=["ComfyUI"])
for part in (graphs, pictures, nodes, socket):
    router.include_router(part.router)
